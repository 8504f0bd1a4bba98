#include <signal.h>
#include <sys/wait.h>
#include <torch/types.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "rondo/event/interval.hpp"
#include "rondo/extensions/snapshot/formats.hpp"
#include "rondo/extensions/snapshot/snapshot.hpp"
#include "rondo/writing/register_savefun.hpp"
#include "support/catch.hpp"
#include "support/counting_loop.hpp"
#include "support/gate.hpp"
#include "support/messages.hpp"
#include "support/temporary_directory.hpp"

namespace snapshot_savefun_test {

using namespace rondo;
using namespace rondo::literals;
using rondo::testing::contains;
using rondo::testing::counting;
using rondo::testing::gate;
using rondo::testing::message_of;
using rondo::testing::temporary_directory;
namespace fs = std::filesystem;

namespace {

/// All writers, and those in this process.
const std::vector<std::string> all{"simple", "thread", "thread_queue", "process", "process_queue"};
const std::vector<std::string> here{"simple", "thread", "thread_queue"};

std::shared_ptr<writing::writer> make(const std::string& kind, writing::savefun savefun) {
  if (kind == "simple") return writers::simple({.savefun = std::move(savefun)});
  if (kind == "thread") return writers::thread({.savefun = std::move(savefun)});
  if (kind == "thread_queue") return writers::thread_queue({.savefun = std::move(savefun)});
  if (kind == "process") return writers::process({.savefun = std::move(savefun)});
  return writers::process_queue({.savefun = std::move(savefun)});
}

/// A text file: the iteration, and the smallest and the largest element of the model.
void save_range(const fs::path& temporary, const state::value& state) {
  double least = 1e9;
  double most = -1e9;
  for (const auto& [name, value] : state.at("models").at("main").as<state::dict>()) {
    least = std::min(least, value.as<at::Tensor>().min().item<double>());
    most = std::max(most, value.as<at::Tensor>().max().item<double>());
  }
  std::ofstream(temporary) << state.get<std::int64_t>("_start_iteration") << ' ' << least << ' ' << most;
}

/// Does it well, but for the second iteration, for which it then calls `fail`.
template <class Fail>
auto failing(Fail fail) {
  return [fail](const fs::path& temporary, const state::value& state) {
    save_range(temporary, state);
    if (state.get<std::int64_t>("_start_iteration") == 2) fail(temporary);
  };
}

const auto range = writing::register_savefun("range", save_range);
const auto safetensors = writing::register_savefun("safetensors", formats::safetensors());
const auto throwing = writing::register_savefun(
    "throwing", failing([](const fs::path&) { throw std::runtime_error("the archive is full"); }));
const auto writing_nothing =
    writing::register_savefun("writing_nothing", failing([](const fs::path& file) { fs::remove(file); }));
const auto making_a_folder = writing::register_savefun("making_a_folder", failing([](const fs::path& file) {
                                                         fs::remove(file);
                                                         fs::create_directory(file);
                                                       }));
const auto leaving_it_open = writing::register_savefun("leaving_it_open", failing([](const fs::path& file) {
                                                         static std::ofstream left;
                                                         left = std::ofstream(file);
                                                       }));
const auto filling_the_disk =
    writing::register_savefun("filling_the_disk", [](const fs::path& temporary, const state::value&) {
      std::ofstream(temporary) << "begun";
      std::ofstream disk("/dev/full");
      disk.exceptions(std::ios::badbit | std::ios::failbit);
      disk << std::string(100'000, 'x') << std::flush;
    });
const auto refusing = writing::register_savefun("refusing", [](const fs::path&, const state::value&) {
  throw state_error("models.main.p0", "is not for this format");
});
const auto own = writing::register_savefun("own", formats::checkpoint());
const auto killed = writing::register_savefun("killed", [](const fs::path&, const state::value&) { ::raise(SIGKILL); });
/// Waits until somebody makes the file "go", or removes the directory.
const auto waiting = writing::register_savefun("waiting", [](const fs::path& temporary, const state::value& state) {
  save_range(temporary, state);
  std::ofstream(temporary.parent_path() / "started").close();
  const auto here = temporary.parent_path();
  while (!fs::exists(here / "go") && fs::exists(here)) std::this_thread::sleep_for(std::chrono::milliseconds(1));
});

struct range_in_file {
  std::int64_t iteration = -1;
  double least = 0;
  double most = 0;
};

range_in_file read_range(const fs::path& path) {
  range_in_file found;
  std::ifstream file(path);
  file >> found.iteration >> found.least >> found.most;
  if (!file) throw std::runtime_error("no range in " + path.string());
  return found;
}

std::vector<std::string> files_in(const fs::path& directory) {
  std::vector<std::string> all;
  for (const auto& entry : fs::directory_iterator(directory))
    if (entry.path().filename() != ".rondo.lock") all.push_back(entry.path().filename().string());
  std::ranges::sort(all);
  return all;
}

/// The error that training ends with, when `savefun` has to save the snapshots of iterations 1 and 2.
template <class Error = error>
std::string failure(const fs::path& out, const std::string& kind, writing::savefun savefun) {
  return message_of<Error>([&] {
    const counting training;
    auto loop = training.loop(out, 3);
    loop | snapshot({.writer = make(kind, std::move(savefun))}).triggered(every(1_iterations));
    loop.run();
  });
}

}  // namespace

TEST_CASE("what a writer's savefun is given is one instant", "[snapshot][savefun]") {
  const std::string kind = GENERATE(from_range(all));
  // Each process loads LibTorch. More of them make the same sure more often.
  const char* const wanted = std::getenv("RONDO_TEST_SNAPSHOTS");
  const std::int64_t iterations = wanted != nullptr ? std::stoll(wanted) : kind == "process" ? 10 : 500;
  const temporary_directory dir;
  const counting training(3, 20'000);
  auto loop = training.loop(dir.path(), iterations);
  loop | snapshot({.writer = make(kind, range)}).triggered(every(1_iterations));
  REQUIRE(loop.run().iteration == iterations);
  for (std::int64_t i = 1; i <= iterations; ++i) {
    const auto found = read_range(dir / ("snapshot_iter_" + std::to_string(i)));
    REQUIRE(found.iteration == i);
    REQUIRE(found.least == static_cast<double>(i));
    REQUIRE(found.most == static_cast<double>(i));
  }
}

TEST_CASE("a savefun runs where its writer works, on the writer's memory", "[snapshot][savefun]") {
  const std::string kind = GENERATE(from_range(here));
  const temporary_directory dir;
  const counting training(1, 1'000);
  const void* live = training.model->parameters()[0].data_ptr();
  const auto here = std::this_thread::get_id();
  std::vector<bool> on_this_thread;
  std::vector<bool> in_live_memory;
  const auto look = [&](const fs::path& temporary, const state::value& state) {
    on_this_thread.push_back(std::this_thread::get_id() == here);
    in_live_memory.push_back(state.at("models").at("main").at("p0").as<at::Tensor>().data_ptr() == live);
    save_range(temporary, state);
  };
  const auto writer = make(kind, look);
  auto loop = training.loop(dir.path(), 2);
  loop | snapshot({.writer = writer}).triggered(every(1_iterations));
  loop.run();
  const bool waits = kind == "simple";
  CHECK(on_this_thread == std::vector<bool>{waits, waits});
  CHECK(in_live_memory == std::vector<bool>{waits, waits});
}

TEST_CASE("training goes on while a writer's savefun works", "[snapshot][savefun]") {
  const std::string kind = GENERATE("thread", "thread_queue");
  const temporary_directory dir;
  gate hold;
  const auto slow = [&](const fs::path& temporary, const state::value& state) {
    hold.pass();
    save_range(temporary, state);
  };
  const counting training;
  auto loop = training.loop(dir.path(), 20);
  loop | snapshot({.writer = make(kind, slow)}).triggered(rondo::at({3_iterations})) |
      make_extension("opens", [&](context& ctx) {
        ctx.on<event::iteration_completed>([&] {
          if (ctx.iteration() == 10) hold.open();
        });
      });
  loop.run();
  const auto found = read_range(dir / "snapshot_iter_3");
  CHECK(found.least == 3.0);
  CHECK(found.most == 3.0);
}

TEST_CASE("snapshots of a writer's savefun are retained and resumed from", "[snapshot][savefun][resume]") {
  const std::string kind = GENERATE(from_range(all));
  const temporary_directory dir;
  const auto train = [&](std::int64_t iterations) {
    const counting training;
    auto loop = training.loop(dir.path(), iterations);
    loop |
        snapshot({.n_retains = 2, .autoload = true, .writer = make(kind, safetensors)}).triggered(every(2_iterations));
    return loop.run();
  };
  CHECK_FALSE(train(6).resumed_from.has_value());
  CHECK(files_in(dir.path()) == std::vector<std::string>{"snapshot_iter_4", "snapshot_iter_6"});
  const auto resumed = train(8);
  CHECK(resumed.resumed_from == dir / "snapshot_iter_6");
  const auto state = formats::safetensors().load(dir / "snapshot_iter_8");
  CHECK(state.at("models").at("main").at("p1").as<at::Tensor>().eq(8).all().item<bool>());
}

TEST_CASE("a savefun that fails is an error that names file and reason, and leaves what was there",
          "[snapshot][savefun][error]") {
  const std::string kind = GENERATE(from_range(all));
  const temporary_directory dir;
  SECTION("it throws") {
    const auto text = failure<writing::savefun_error>(dir.path(), kind, throwing);
    CHECK(contains(text, "the archive is full"));
    CHECK(contains(text, "'" + (dir / "snapshot_iter_2").string() + "'"));
  }
  SECTION("it writes nothing") {
    const auto text = failure<io_error>(dir.path(), kind, writing_nothing);
    CHECK(contains(text, "wrote no file"));
    CHECK(contains(text, (dir / "snapshot_iter_2").string()));
  }
  SECTION("it leaves no file but a folder") {
    CHECK(contains(failure<io_error>(dir.path(), kind, making_a_folder), "not a regular file"));
  }
  SECTION("it leaves the file open") {
    CHECK(contains(failure<io_error>(dir.path(), kind, leaving_it_open), "left its file open"));
  }
  CHECK(read_range(dir / "snapshot_iter_1").most == 1.0);
  // Training may have come to the third one before it heard of the failure.
  for (const auto& name : files_in(dir.path())) CHECK((name == "snapshot_iter_1" || name == "snapshot_iter_3"));
}

TEST_CASE("a savefun on a full disk fails as the disk does", "[snapshot][savefun][error]") {
  const std::string kind = GENERATE(from_range(all));
  if (!fs::exists("/dev/full")) return;
  const temporary_directory dir;
  CHECK(contains(failure<writing::savefun_error>(dir.path(), kind, filling_the_disk), "snapshot_iter_1"));
  CHECK(files_in(dir.path()).empty());
}

TEST_CASE("a savefun that ends its process is an error of the writer", "[snapshot][savefun][error]") {
  const std::string kind = GENERATE("process", "process_queue");
  const temporary_directory dir;
  CHECK(contains(failure<io_error>(dir.path(), kind, killed), "was killed by signal 9"));
  CHECK(files_in(dir.path()).empty());
}

TEST_CASE("a savefun in a process that takes too long is ended", "[snapshot][savefun][timeout]") {
  const std::string kind = GENERATE("process", "process_queue");
  const temporary_directory dir;
  // In the function, if it is there by then; else before it.
  const auto limit = std::chrono::milliseconds(kind == "process" ? 5000 : 50);
  const writers::process_options options{.timeout = limit, .savefun = waiting};
  const auto writer = kind == "process" ? writers::process(options) : writers::process_queue(options);
  const auto text = message_of<io_error>([&] {
    const counting training;
    auto loop = training.loop(dir.path(), 1);
    loop | snapshot({.writer = writer}).triggered(every(1_iterations));
    loop.run();
  });
  CHECK(contains(text, "was killed"));
  fs::remove(dir / "started");
  CHECK(files_in(dir.path()).empty());
}

TEST_CASE("trains until its snapshot is being saved, and dies", "[.][savefun_trainer]") {
  const char* const out = std::getenv("RONDO_TEST_OUT");
  const char* const kind = std::getenv("RONDO_TEST_KIND");
  REQUIRE((out != nullptr && kind != nullptr));
  const counting training;
  auto loop = training.loop(out, 1'000'000'000);
  loop | snapshot({.writer = make(kind, waiting)}).triggered(rondo::at({3_iterations})) |
      make_extension("dies", [&](context& ctx) {
        ctx.on<event::iteration_completed>([&] {
          if (fs::exists(fs::path(out) / "started")) ::raise(SIGKILL);
        });
      });
  loop.run();
}

TEST_CASE("what was handed to a savefun in a process is saved although the trainer is killed",
          "[snapshot][savefun][kill]") {
  const std::string kind = GENERATE("process", "process_queue");
  const temporary_directory dir;
  const auto program = fs::read_symlink("/proc/self/exe").string();
  const auto command = "RONDO_TEST_OUT='" + dir.path().string() + "' RONDO_TEST_KIND=" + kind + " exec '" + program +
                       "' '[savefun_trainer]' >/dev/null 2>&1";
  const int status = std::system(command.c_str());
  REQUIRE(WIFSIGNALED(status));
  REQUIRE(WTERMSIG(status) == SIGKILL);
  REQUIRE_FALSE(fs::exists(dir / "snapshot_iter_3"));
  std::ofstream(dir / "go").close();
  while (!fs::exists(dir / "snapshot_iter_3")) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  const auto found = read_range(dir / "snapshot_iter_3");
  CHECK(found.iteration == 3);
  CHECK(found.least == 3.0);
  CHECK(found.most == 3.0);
}

TEST_CASE("writers with processes take registered functions only", "[snapshot][savefun][error]") {
  const std::string kind = GENERATE("process", "process_queue");
  const auto text = message_of<option_error>([&] { make(kind, save_range); });
  CHECK(contains(text, "register_savefun(\"my_format\", function)"));
  const auto late = writing::register_savefun("late", save_range);
  CHECK(contains(message_of<option_error>([&] { make(kind, late); }), "after main had begun"));
}

TEST_CASE("a savefun that takes too long is given up, and its file removed when it returns",
          "[snapshot][savefun][timeout]") {
  const std::string kind = GENERATE("thread", "thread_queue");
  const temporary_directory dir;
  const auto hold = std::make_shared<gate>();
  const auto entered = std::make_shared<std::atomic<bool>>(false);
  const auto hang = [hold, entered](const fs::path& temporary, const state::value& state) {
    save_range(temporary, state);
    *entered = true;
    hold->pass();
  };
  const auto limit = std::chrono::seconds(1);
  const auto writer = kind == "thread" ? writers::thread({.timeout = limit, .savefun = hang})
                                       : writers::thread_queue({.timeout = limit, .savefun = hang});
  const auto text = message_of<io_error>([&] {
    const counting training;
    auto loop = training.loop(dir.path(), 1);
    loop | snapshot({.writer = writer}).triggered(every(1_iterations));
    loop.run();
  });
  CHECK(contains(text, "will not get its name"));
  CHECK(files_in(dir.path()).empty() != *entered);
  hold->open();
  // The thread finds on its own time that it was given up.
  while (!files_in(dir.path()).empty()) std::this_thread::yield();
  CHECK_FALSE(fs::exists(dir / "snapshot_iter_1"));
}

TEST_CASE("an error of Rondo's own stays what it is, wherever the savefun runs", "[snapshot][savefun][error]") {
  const std::string kind = GENERATE(from_range(all));
  const temporary_directory dir;
  const auto text = failure<state_error>(dir.path(), kind, refusing);
  CHECK(contains(text, "models.main.p0"));
  CHECK(contains(text, "not for this format"));
}

TEST_CASE("a registered format of Rondo's own is the default of every writer", "[snapshot][savefun]") {
  const std::string kind = GENERATE(from_range(all));
  const auto writer = make(kind, own);
  CHECK(writer->own_format() == nullptr);
  const temporary_directory dir;
  const counting training;
  auto loop = training.loop(dir.path(), 1);
  loop | snapshot({.writer = writer}).triggered(every(1_iterations));
  loop.run();
  CHECK(rondo::testing::the_number_in(dir / "snapshot_iter_1") == 1.0);
}

TEST_CASE("names of registered functions are unique and not empty", "[snapshot][savefun][error]") {
  CHECK_THROWS_AS(writing::register_savefun("range", save_range), option_error);
  CHECK_THROWS_AS(writing::register_savefun("", save_range), option_error);
  CHECK_THROWS_AS(writing::register_savefun(std::string("a\0b", 3), save_range), option_error);
}

TEST_CASE("options that do not go with a writer's savefun are refused before training", "[snapshot][savefun][error]") {
  const auto refused = [](snapshot_options options) {
    return message_of<option_error>([&] { static_cast<void>(snapshot(std::move(options))); });
  };
  const auto formatted = [](const std::string& kind) { return make(kind, range); };
  for (const auto& kind : all) {
    CHECK(contains(refused({.savefun = save_range, .writer = make(kind, nullptr)}), "give the savefun to the writer"));
    CHECK(contains(refused({.savefun = save_range, .writer = formatted(kind)}), "give the savefun to the writer"));
    CHECK(contains(refused({.autoload = true, .writer = formatted(kind)}), "loadfun"));
    CHECK(contains(refused({.filename = "fixed", .n_retains = 2, .writer = formatted(kind)}), "{iteration}"));
    CHECK(contains(refused({.writer = formatted(kind), .verify = true}), "verify"));
    CHECK(contains(refused({.writer = formatted(kind), .mode = snapshot_mode::sharded}), "sharded"));
    CHECK(contains(refused({.loadfun = formats::safetensors().load, .writer = make(kind, nullptr)}), "loadfun"));
  }
}

TEST_CASE("a writer around another one hands on its savefun, or is told so", "[snapshot][savefun][error]") {
  class around : public writing::writer {
   public:
    explicit around(std::shared_ptr<writing::writer> inner) : inside(std::move(inner)) {}
    task<writing::write_receipt> write(writing::write_request request) override {
      return inside->write(std::move(request));
    }
    task<> close() override { return inside->close(); }
    [[nodiscard]] std::string_view name() const override { return "around"; }
    [[nodiscard]] writing::staging* memory() noexcept override { return inside->memory(); }

    std::shared_ptr<writing::writer> inside;
  };
  class honest final : public around {
   public:
    using around::around;
    [[nodiscard]] const writing::savefun* own_format() const noexcept override { return inside->own_format(); }
  };
  const std::string kind = GENERATE(from_range(all));
  const auto train = [](const fs::path& out, std::shared_ptr<writing::writer> writer) {
    const counting training;
    auto loop = training.loop(out, 1);
    loop | snapshot({.writer = std::move(writer)}).triggered(every(1_iterations));
    loop.run();
  };
  const temporary_directory dir;
  const auto text = message_of<option_error>([&] { train(dir.path(), std::make_shared<around>(make(kind, range))); });
  CHECK(contains(text, "own_format()"));
  CHECK_FALSE(fs::exists(dir / "snapshot_iter_1"));
  train(dir.path(), std::make_shared<honest>(make(kind, range)));
  CHECK(read_range(dir / "snapshot_iter_1").most == 1.0);
}

}  // namespace snapshot_savefun_test

// What surrounds the writing of a snapshot: failures, full writers, requests, the end of training, retention, resuming.
#include <torch/types.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "rondo/checkpoint/reader.hpp"
#include "rondo/checkpoint/tensors.hpp"
#include "rondo/event/interval.hpp"
#include "rondo/event/when.hpp"
#include "rondo/extensions/evaluator.hpp"
#include "rondo/extensions/snapshot/snapshot.hpp"
#include "rondo/writing/memory_file_system.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/counting_loop.hpp"
#include "support/messages.hpp"
#include "support/python.hpp"
#include "support/temporary_directory.hpp"

namespace snapshot_life_test {

using namespace rondo;
using namespace rondo::literals;
using rondo::testing::contains;
using rondo::testing::counting;
using rondo::testing::message_of;
using rondo::testing::temporary_directory;
using rondo::testing::the_number_in;
namespace fs = std::filesystem;

namespace {

using names = std::vector<std::string>;

names files_in(const fs::path& directory) {
  names all;
  for (const auto& entry : fs::directory_iterator(directory))
    if (entry.path().filename() != ".rondo.lock") all.push_back(entry.path().filename().string());
  std::sort(all.begin(), all.end());
  return all;
}

/// The files in `directory` of a memory file system.
names files_in(writing::memory_file_system& files, const fs::path& directory) {
  names all;
  for (const auto& entry : files.list(directory)) all.push_back(entry.name);
  return all;
}

/// A writer of one's own in a few lines: no memory, so it is given live bytes.
class counting_writer final : public writing::writer {
 public:
  task<writing::write_receipt> write(writing::write_request request) override {
    ++written;
    co_return co_await inner_->write(std::move(request));
  }
  task<> close() override {
    ++closed;
    co_return;
  }
  [[nodiscard]] std::string_view name() const override { return "counting"; }

  int written = 0;
  int closed = 0;

 private:
  std::shared_ptr<writing::writer> inner_ = writers::simple();
};

/// Holds up the first creation of a file until the result is told to let go.
class held_up_disk {
 public:
  held_up_disk() {
    files->observe([this, first = true](writing::operation what, const fs::path&) mutable {
      if (what != writing::operation::create || !std::exchange(first, false)) return;
      go_.get_future().wait();
    });
  }
  void let_go() { go_.set_value(); }

  std::shared_ptr<writing::memory_file_system> files = std::make_shared<writing::memory_file_system>();

 private:
  std::promise<void> go_;
};

}  // namespace

TEST_CASE("ppe defects 19 and 20: a failing background writer ends training at once with the reason",
          "[snapshot][writer][error][ppe]") {
  for (const bool queue : {false, true}) {
    const temporary_directory dir;
    const auto files = std::make_shared<writing::memory_file_system>();
    files->fail(writing::operation::create, 2, ENOSPC);
    const auto writer = queue ? writers::thread_queue({.files = files}) : writers::thread({.files = files});
    const counting training;
    auto loop = training.loop(dir.path(), 1'000'000);
    int failures = 0;
    loop | snapshot({.writer = writer}).triggered(every(1_iterations)) | make_extension("watch", [&](context& ctx) {
      ctx.on_end<event::snapshot_completed>([&](const event::snapshot_completed& e) { failures += e.error ? 1 : 0; });
    });
    const auto message = message_of<io_error>([&] { loop.run(); });
    REQUIRE(contains(message, "snapshot_iter_2"));
    REQUIRE(contains(message, "No space left on device"));
    REQUIRE(failures == 1);
  }
}

TEST_CASE("with on_failure = warn training goes on, and the next snapshot is tried", "[snapshot][writer][error]") {
  for (const bool background : {false, true}) {
    const temporary_directory dir;
    const auto files = std::make_shared<writing::memory_file_system>();
    files->fail(writing::operation::sync, 2, EIO);
    const auto writer = background ? writers::thread({.files = files}) : writers::simple({.files = files});
    const counting training;
    auto loop = training.loop(dir.path(), 4);
    const rondo::testing::captured_stderr said;
    loop | snapshot({.writer = writer, .on_failure = snapshot_failure::warn}).triggered(every(1_iterations));
    REQUIRE(loop.run().iteration == 4);
    REQUIRE(files_in(*files, fs::absolute(dir.path())) ==
            names{"snapshot_iter_1", "snapshot_iter_3", "snapshot_iter_4"});
    REQUIRE(contains(said.text(), "training goes on"));
    REQUIRE(contains(said.text(), "snapshot_iter_2"));
  }
}

TEST_CASE("ppe defects 21 and 22: a writer that never wrote closes quietly, and one serves several runs",
          "[snapshot][writer][ppe]") {
  for (const auto& writer :
       {writers::thread(), writers::thread_queue(), writers::process(), writers::process_queue()}) {
    const temporary_directory dir;
    for (const std::int64_t every_n : {100, 2, 3}) {
      const counting training;
      auto loop = training.loop(dir.path(), 6);
      loop | snapshot({.filename = "every_" + std::to_string(every_n) + "_{iteration}", .writer = writer})
                 .triggered(every(iterations{every_n}));
      loop.run();
    }
    REQUIRE(files_in(dir.path()) == names{"every_2_2", "every_2_4", "every_2_6", "every_3_3", "every_3_6"});
  }
}

TEST_CASE("ppe defect 44: extensions that share a writer do not wait for each other's files",
          "[snapshot][writer][ppe]") {
  const temporary_directory dir;
  held_up_disk disk;
  const auto writer = writers::thread({.capacity = 2, .files = disk.files});
  const counting training;
  // Both snapshots of iteration 1 are taken although the disk stands still; training ends the standstill itself.
  auto loop = training.loop(dir.path(), 3, [&](context& ctx) {
    if (ctx.iteration() == 2) disk.let_go();
  });
  loop | snapshot({.filename = "a_{iteration}", .writer = writer}).triggered(rondo::at({1_iterations})) |
      snapshot({.filename = "b_{iteration}", .writer = writer}).named("other").triggered(rondo::at({1_iterations}));
  loop.run();
  REQUIRE(files_in(*disk.files, fs::absolute(dir.path())) == names{"a_1", "b_1"});
}

TEST_CASE("a full writer skips a snapshot, says so, and writes later ones", "[snapshot][writer]") {
  const temporary_directory dir;
  held_up_disk disk;
  const counting training;
  auto loop = training.loop(dir.path(), 6, [&](context& ctx) {
    if (ctx.iteration() == 3) disk.let_go();
  });
  names skipped;
  loop |
      snapshot({.writer = writers::thread({.capacity = 1, .full = writing::when_full::skip, .files = disk.files})})
          .triggered(every(1_iterations)) |
      make_extension("watch", [&](context& ctx) {
        ctx.on<event::snapshot_skipped>([&](const event::snapshot_skipped& e) {
          skipped.push_back(e.path.filename().string());
          REQUIRE(contains(e.reason, "no room"));
        });
      });
  loop.run();
  REQUIRE(skipped.size() >= 2);
  REQUIRE(skipped[0] == "snapshot_iter_2");
  REQUIRE(skipped[1] == "snapshot_iter_3");
  // The last one of a training is always taken.
  const auto written = files_in(*disk.files, fs::absolute(dir.path()));
  REQUIRE(written.front() == "snapshot_iter_1");
  REQUIRE(written.back() == "snapshot_iter_6");
}

TEST_CASE("a full writer replaces what it has not begun", "[snapshot][writer]") {
  const temporary_directory dir;
  held_up_disk disk;
  const counting training;
  auto loop = training.loop(dir.path(), 6, [&](context& ctx) {
    if (ctx.iteration() == 4) disk.let_go();
  });
  names skipped;
  loop |
      snapshot(
          {.writer = writers::thread_queue({.capacity = 2, .full = writing::when_full::replace, .files = disk.files})})
          .triggered(rondo::at({1_iterations, 2_iterations, 3_iterations, 4_iterations})) |
      make_extension("watch", [&](context& ctx) {
        ctx.on<event::snapshot_skipped>(
            [&](const event::snapshot_skipped& e) { skipped.push_back(e.path.filename().string()); });
      });
  loop.run();
  std::sort(skipped.begin(), skipped.end());
  REQUIRE(skipped == names{"snapshot_iter_2", "snapshot_iter_3"});
  REQUIRE(files_in(*disk.files, fs::absolute(dir.path())) == names{"snapshot_iter_1", "snapshot_iter_4"});
}

TEST_CASE("ppe defect 20: a disk that stands still ends training with a time-out, not with a hang",
          "[snapshot][writer][error][ppe]") {
  const temporary_directory dir;
  const auto disk = std::make_shared<held_up_disk>();
  {
    const counting training;
    auto loop = training.loop(dir.path(), 1'000'000'000);
    loop | snapshot({.writer = writers::thread_queue({.timeout = std::chrono::milliseconds(20), .files = disk->files})})
               .triggered(rondo::at({1_iterations}));
    const auto message = message_of<io_error>([&] { loop.run(); });
    REQUIRE(contains(message, "snapshot_iter_1"));
    REQUIRE(contains(message, "timed out"));
  }
  disk->let_go();
}

TEST_CASE("a writer of one's own gets live bytes, and training waits for it", "[snapshot][writer]") {
  const temporary_directory dir;
  const auto writer = std::make_shared<counting_writer>();
  const counting training;
  auto loop = training.loop(dir.path(), 4);
  loop | snapshot({.writer = writer}).triggered(every(2_iterations));
  loop.run();
  REQUIRE(writer->written == 2);
  REQUIRE(writer->closed >= 1);
  REQUIRE(the_number_in(dir / "snapshot_iter_4") == 4.0);
}

TEST_CASE("an extension asks for a snapshot and waits until it is durable", "[snapshot][request]") {
  for (const auto& writer : {writers::simple(), writers::thread(), writers::process()}) {
    const temporary_directory dir;
    const counting training;
    auto loop = training.loop(dir.path(), 5);
    bool durable = false;
    loop | snapshot({.writer = writer}).triggered(never()) | make_extension("asks", [&](context& ctx) {
      ctx.on<event::iteration_completed>(rondo::at({3_iterations}), [&]() -> task<> {
        co_await ctx.snapshot();
        durable = the_number_in(dir / "snapshot_iter_3") == 3.0;
      });
    });
    loop.run();
    REQUIRE(durable);
    REQUIRE(files_in(dir.path()) == names{"snapshot_iter_3"});
  }
}

TEST_CASE("a snapshot in the middle of an iteration is marked, named so, and not resumed from", "[snapshot][request]") {
  const temporary_directory dir;
  {
    const counting training;
    auto loop = training.loop(dir.path(), 5);
    loop | snapshot().triggered(every(2_iterations)) | make_extension("asks", [](context& ctx) {
      ctx.on<event::update_completed>([&ctx]() -> task<> {
        if (ctx.iteration() == 4) co_await ctx.snapshot();
      });
    });
    loop.run();
  }
  REQUIRE(files_in(dir.path()) == names{"snapshot_iter_2", "snapshot_iter_4", "snapshot_iter_4.mid_iteration"});
  REQUIRE(the_number_in(dir / "snapshot_iter_4") == 4.0);
  REQUIRE(the_number_in(dir / "snapshot_iter_4.mid_iteration") == 5.0);
  REQUIRE(checkpoint::reader::open(dir / "snapshot_iter_4.mid_iteration").info()->info.mid_iteration);
  const counting training;
  auto loop = training.loop(dir.path(), 6);
  loop | snapshot({.autoload = true});
  REQUIRE(loop.run().resumed_from == fs::absolute(dir / "snapshot_iter_4"));
}

TEST_CASE("request_snapshot takes one at the end of the iteration, once", "[snapshot][request]") {
  const temporary_directory dir;
  const counting training;
  auto loop = training.loop(dir.path(), 6);
  loop | snapshot().triggered(rondo::at({4_iterations})) | make_extension("asks", [](context& ctx) {
    ctx.on<event::iteration_started>([&ctx](const event::iteration_started& e) {
      if (e.iteration == 2 || e.iteration == 4) ctx.request_snapshot();
    });
  });
  loop.run();
  REQUIRE(files_in(dir.path()) == names{"snapshot_iter_2", "snapshot_iter_4"});
}

TEST_CASE("asking for a snapshot without an extension that takes it is an error", "[snapshot][request]") {
  const temporary_directory dir;
  const counting training;
  auto loop = training.loop(dir.path(), 2);
  loop | make_extension("asks", [](context& ctx) {
    ctx.on<event::iteration_completed>([&ctx]() -> task<> { co_await ctx.snapshot(); });
  });
  REQUIRE(contains(message_of<option_error>([&] { loop.run(); }), "snapshot()"));
}

TEST_CASE("ppe defect 17: final leaves a snapshot of the last iteration, once", "[snapshot][final][ppe]") {
  for (const auto& writer : {writers::simple(), writers::thread()}) {
    const temporary_directory dir;
    for (const std::int64_t iterations : {5, 5, 8}) {
      const counting training;
      auto loop = training.loop(dir.path(), iterations);
      loop | snapshot({.autoload = true, .writer = writer, .final = true}).triggered(every(4_iterations));
      loop.run();
    }
    REQUIRE(files_in(dir.path()) == names{"snapshot_iter_4", "snapshot_iter_5", "snapshot_iter_8"});
    REQUIRE(the_number_in(dir / "snapshot_iter_8") == 8.0);
  }
}

TEST_CASE("what snapshots cost can be logged", "[snapshot][report]") {
  const temporary_directory dir;
  const counting training;
  auto loop = training.loop(dir.path(), 6);
  std::vector<double> bytes;
  loop | snapshot({.report = true}).triggered(every(2_iterations)) | make_extension("watch", [&](context& ctx) {
    ctx.on<event::iteration_completed>([&] {
      if (ctx.reported().find("snapshot/bytes") == nullptr) return;
      bytes.push_back(ctx.observed("snapshot/bytes"));
      REQUIRE(ctx.observed("snapshot/total_seconds") >= ctx.observed("snapshot/stall_seconds"));
      REQUIRE(ctx.observed("snapshot/memory") == 0.0);
    });
  });
  loop.run();
  REQUIRE(bytes == std::vector<double>{static_cast<double>(fs::file_size(dir / "snapshot_iter_2")),
                                       static_cast<double>(fs::file_size(dir / "snapshot_iter_4"))});
}

TEST_CASE("retention keeps what one of its policies keeps", "[snapshot][retention]") {
  const temporary_directory dir;
  const counting training;
  auto loop = training.loop(dir.path(), 12);
  loop |
      snapshot({.retain = retain::last(2) | retain::every(5_iterations) | retain::best(1, "accuracy", retain::max)})
          .triggered(every(1_iterations)) |
      make_extension("accuracy", [](context& ctx) {
        ctx.on<event::iteration_completed>([&ctx] {
          // Best at 3, reported in odd iterations only: those of even ones have the value of the iteration before.
          if (ctx.iteration() % 2 == 1) ctx.report("accuracy", ctx.iteration() == 3 ? 0.9 : 0.1);
        });
      }).at_priority(priority::writer);
  loop.run();
  // Iteration 4 has the same accuracy as 3 and is newer.
  REQUIRE(files_in(dir.path()) ==
          names{"snapshot_iter_10", "snapshot_iter_11", "snapshot_iter_12", "snapshot_iter_4", "snapshot_iter_5"});
  const auto info = checkpoint::reader::open(dir / "snapshot_iter_4").info()->info;
  REQUIRE(info.metrics.at("accuracy") == 0.9);
  REQUIRE(info.created > 1'700'000'000);
}

TEST_CASE("retention policies decide by what is recorded", "[snapshot][retention]") {
  std::vector<snapshot_record> all;
  for (std::int64_t i = 6; i >= 1; --i)
    all.push_back({.path = "s" + std::to_string(i),
                   .iteration = i * 10,
                   .epoch = i / 2,
                   .created = i * 100,
                   .metrics = {{"loss", i == 2 ? 0.5 : 1.0}}});
  const auto kept = [&](const retention& policy, std::int64_t now = 700) {
    const auto keep = policy.keep(all, now);
    std::string result;
    for (std::size_t i = 0; i < all.size(); ++i)
      if (keep[i]) result += all[i].path.string();
    return result;
  };
  REQUIRE(kept(retain::last(2)) == "s6s5");
  REQUIRE(kept(retain::last(9)) == "s6s5s4s3s2s1");
  REQUIRE(kept(retain::best(1, "loss")) == "s6s2");
  REQUIRE(kept(retain::best(1, "loss", better::higher)) == "s6");
  REQUIRE(kept(retain::best(2, "accuracy")) == "s6s5s4s3s2s1");  // nobody knows which is the best
  REQUIRE(kept(retain::every(30_iterations)) == "s6s3");
  REQUIRE(kept(retain::every(1_epochs)) == "s6s4s2");
  REQUIRE(kept(retain::every(2_epochs)) == "s6s4");
  REQUIRE(kept(retain::newer_than(std::chrono::seconds(250))) == "s6s5");
  REQUIRE(kept(retain::newer_than(std::chrono::seconds(1)), 10'000) == "s6");
  REQUIRE(kept(retain::last(1) | retain::best(1, "loss") | retain::every(50_iterations)) == "s6s5s2");
  REQUIRE_THROWS_AS(retain::last(0), option_error);
  REQUIRE_THROWS_AS(retain::best(0, "loss"), option_error);
  REQUIRE_THROWS_AS(retain::every(epochs(0.5)), option_error);
  REQUIRE_THROWS_AS(retain::newer_than(std::chrono::seconds(0)), option_error);
}

TEST_CASE("ppe defect 10: retention removes no file of another program, whatever its name",
          "[snapshot][retention][ppe]") {
  const temporary_directory dir;
  std::ofstream(dir / "snapshot_iter_1.sha256") << "x";
  std::ofstream(dir / "tmp_snapshot_iter_1") << "x";
  fs::create_directory(dir / "snapshot_iter_export");
  rondo::testing::run_python("import torch; torch.save({'a': 1}, '" + (dir / "snapshot_iter_2").string() + "')");
  const counting training;
  auto loop = training.loop(dir.path(), 9);
  loop | snapshot({.n_retains = 1}).triggered(every(3_iterations));
  loop.run();
  REQUIRE(files_in(dir.path()) == names{"snapshot_iter_1.sha256", "snapshot_iter_2", "snapshot_iter_9",
                                        "snapshot_iter_export", "tmp_snapshot_iter_1"});
}

TEST_CASE("ppe defect 45: retention works only when a snapshot of its own extension is durable",
          "[snapshot][retention][ppe]") {
  const temporary_directory dir;
  const counting training;
  const auto writer = writers::thread_queue();
  auto loop = training.loop(dir.path(), 5);
  bool was_left_alone = false;
  loop | snapshot({.n_retains = 1, .writer = writer}).triggered(rondo::at({2_iterations, 5_iterations})) |
      snapshot({.filename = "other_{iteration}", .writer = writer})
          .named("other")
          .triggered(rondo::at({4_iterations})) |
      make_extension("watch", [&](context& ctx) {
        ctx.on<event::snapshot_completed>([&](const event::snapshot_completed& e) {
          const auto name = e.path.filename().string();
          if (name == "snapshot_iter_2") fs::copy_file(e.path, dir / "snapshot_iter_1");  // one too many
          if (name == "other_4") was_left_alone = fs::exists(dir / "snapshot_iter_1");
        });
      });
  loop.run();
  REQUIRE(was_left_alone);
  REQUIRE(files_in(dir.path()) == names{"other_4", "snapshot_iter_5"});
}

TEST_CASE("resume_from goes on from the very file, also one taken on an error", "[snapshot][resume]") {
  const temporary_directory dir;
  {
    const counting training;
    auto loop = training.loop(dir.path(), 9, [](context& ctx) {
      if (ctx.iteration() == 5) throw std::runtime_error("on purpose");
    });
    loop | snapshot({.snapshot_on_error = true, .writer = writers::thread()}).triggered(every(2_iterations));
    REQUIRE_THROWS_AS(loop.run(), std::runtime_error);
  }
  for (const std::string name : {"snapshot_iter_2", "snapshot_iter_5.error"}) {
    const temporary_directory out;
    const counting training;
    auto loop = training.loop(out.path(), 8);
    loop | snapshot({.resume_from = dir / name});
    const auto result = loop.run();
    REQUIRE(result.resumed_from == dir / name);
    REQUIRE(training.model->parameters()[0].max().item<double>() == 8.0);
  }
  const counting training;
  auto loop = training.loop(dir.path(), 8);
  loop | snapshot({.autoload = true, .resume_from = dir / "nothing"});
  REQUIRE(contains(message_of<io_error>([&] { loop.run(); }), "nothing"));
}

TEST_CASE("a validator passes over states that the user does not want", "[snapshot][resume]") {
  const temporary_directory dir;
  {
    const counting training;
    auto loop = training.loop(dir.path(), 6);
    loop | snapshot().triggered(every(2_iterations));
    loop.run();
  }
  const counting training;
  auto loop = training.loop(dir.path(), 7);
  names rejected;
  loop |
      snapshot({.autoload = true,
                .validator =
                    [](const fs::path&, const state::value& state) {
                      if (state.at("models").at("main").get<at::Tensor>("p0").max().item<double>() > 5.0)
                        throw std::runtime_error("too large");
                    }}) |
      make_extension("watch", [&](context& ctx) {
        ctx.on<event::snapshot_rejected>([&](const event::snapshot_rejected& e) {
          rejected.push_back(e.path.filename().string() + ": " + e.reason);
        });
      });
  REQUIRE(loop.run().resumed_from == fs::absolute(dir / "snapshot_iter_4"));
  REQUIRE(rejected == names{"snapshot_iter_6: too large"});
}

TEST_CASE("ppe defect 3: a flipped bit in a tensor is found, and the record is named", "[snapshot][resume][ppe]") {
  const temporary_directory dir;
  {
    const counting training(1, 4096);
    auto loop = training.loop(dir.path(), 2);
    loop | snapshot({.writer = writers::thread()}).triggered(every(2_iterations));
    loop.run();
  }
  const auto file = dir / "snapshot_iter_2";
  const auto offset = [&] {
    const auto reader = checkpoint::reader::open(file);
    const auto& tensor = reader.state().at("models").at("main").get<checkpoint::tensor_descriptor>("p0");
    return reader.storage(tensor).data() - reader.records().file().data();
  }();
  std::fstream bytes(file, std::ios::in | std::ios::out | std::ios::binary);
  bytes.seekg(offset + 100);
  const char flipped = static_cast<char>(bytes.get() ^ 4);
  bytes.seekp(offset + 100);
  bytes.put(flipped).flush();
  const counting training(1, 4096);
  auto loop = training.loop(dir.path(), 4);
  loop | snapshot({.autoload = true});
  const auto message = message_of<snapshot_error>([&] { loop.run(); });
  REQUIRE(contains(message, "snapshot_iter_2"));
  REQUIRE(contains(message, "data/0"));
  REQUIRE(contains(message, "checksum"));
}

TEST_CASE("ppe defect 25: a training resumed inside an epoch ends inside an epoch without ado",
          "[snapshot][resume][ppe]") {
  const temporary_directory dir;
  for (const std::int64_t iterations : {13, 27, 27, 34}) {
    const counting training;
    auto loop = training.loop(dir.path(), iterations);
    loop |
        snapshot({.autoload = true, .writer = writers::thread_queue(), .final = true}).triggered(every(4_iterations));
    REQUIRE(loop.run().iteration == iterations);
    REQUIRE(training.model->parameters()[0].min().item<double>() == static_cast<double>(iterations));
  }
}

TEST_CASE("ppe defect 26: a state is loaded in a loop with an evaluator", "[snapshot][resume][ppe]") {
  const temporary_directory dir;
  for (const std::int64_t iterations : {10, 20}) {
    const counting training;
    auto loop = training.loop(dir.path(), iterations);
    double seen = -1.0;
    loop |
        evaluator(ranges::views::ints(0, 2),
                  [&](context& ctx, int&) {
                    seen = training.model->parameters()[0].max().item<double>();
                    ctx.report("value", seen);
                  }) |
        snapshot({.autoload = true}) | make_extension("watch", [&](context& ctx) {
          ctx.on<event::training_started>([&, iterations] {
            if (iterations == 20) REQUIRE(training.model->parameters()[0].max().item<double>() == 10.0);
          });
        });
    loop.run();
    REQUIRE(seen == static_cast<double>(iterations));
  }
}

TEST_CASE("verify finds a disk that does not store what it is given", "[snapshot][verify]") {
  const temporary_directory dir;
  for (const auto& writer : {writers::simple(), writers::thread()}) {
    const counting training;
    auto loop = training.loop(dir.path(), 4);
    loop | snapshot({.n_retains = 1, .writer = writer, .verify = true}).triggered(every(2_iterations));
    loop.run();
    REQUIRE(files_in(dir.path()) == names{"snapshot_iter_4"});
  }
  // A writer that writes something else.
  struct lying_writer final : writing::writer {
    task<writing::write_receipt> write(writing::write_request request) override {
      const auto file = request.target;
      auto receipt = co_await inner->write(std::move(request));
      std::fstream(file, std::ios::in | std::ios::out | std::ios::binary).seekp(4096 * 3).put('x');
      co_return receipt;
    }
    task<> close() override { co_return; }
    [[nodiscard]] std::string_view name() const override { return "lying"; }
    std::shared_ptr<writing::writer> inner = writers::simple();
  };
  const counting training(2, 4096);
  auto loop = training.loop(dir.path(), 8);
  loop | snapshot({.n_retains = 1, .writer = std::make_shared<lying_writer>(), .verify = true})
             .triggered(rondo::at({6_iterations}));
  REQUIRE_THROWS_AS(loop.run(), format_error);
  REQUIRE(fs::exists(dir / "snapshot_iter_4"));  // the older good one was not removed
}

TEST_CASE("ppe defect 18: another extension's error handler masks neither the error nor the snapshot",
          "[snapshot][error][ppe]") {
  const temporary_directory dir;
  const counting training;
  auto loop = training.loop(dir.path(), 9, [](context& ctx) {
    if (ctx.iteration() == 3) throw std::runtime_error("the real error");
  });
  loop | make_extension("bad", [](context& ctx) {
    ctx.on<event::failed>([] { throw std::runtime_error("another error"); });
  }) | snapshot({.snapshot_on_error = true, .writer = writers::process_queue()});
  REQUIRE(message_of<std::runtime_error>([&] { loop.run(); }) == "the real error");
  REQUIRE(files_in(dir.path()) == names{"snapshot_iter_3.error"});
}

TEST_CASE("ppe defects 14 and 15: files go to the output directory, whatever the working directory becomes",
          "[snapshot][writer][ppe]") {
  for (const auto& writer : {writers::thread(), writers::process_queue()}) {
    const temporary_directory dir;
    const temporary_directory elsewhere;
    const auto before = fs::current_path();
    fs::current_path(dir.path());
    const counting training;
    auto loop = training.loop("result", 4, [&](context& ctx) {
      if (ctx.iteration() == 1) fs::current_path(elsewhere.path());
    });
    loop | snapshot({.n_retains = 1, .writer = writer}).triggered(every(2_iterations));
    loop.run();
    fs::current_path(before);
    REQUIRE(files_in(dir / "result") == names{"snapshot_iter_4"});
    REQUIRE(files_in(elsewhere.path()).empty());
  }
}

}  // namespace snapshot_life_test

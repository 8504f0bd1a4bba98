#include "rondo/extensions/snapshot/snapshot.hpp"

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adam.h>
#include <torch/types.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <range/v3/view/iota.hpp>
#include <string>
#include <vector>

#include "rondo/checkpoint/reader.hpp"
#include "rondo/checkpoint/tensors.hpp"
#include "rondo/checkpoint/verify.hpp"
#include "rondo/data/data.hpp"
#include "rondo/event/interval.hpp"
#include "rondo/event/once.hpp"
#include "rondo/event/when.hpp"
#include "rondo/loop/loop.hpp"
#include "rondo/state/digest.hpp"
#include "rondo/writing/memory_file_system.hpp"
#include "rondo/writing/temporary_name.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"
#include "support/python.hpp"
#include "support/temporary_directory.hpp"

namespace snapshot_test {

using namespace rondo;
using namespace rondo::literals;
using rondo::testing::temporary_directory;
namespace fs = std::filesystem;
using rondo::testing::contains;
using rondo::testing::message_of;

namespace {

using names = std::vector<std::string>;

/// 8 batches of 4 per epoch.
struct problem {
  problem() {
    torch::manual_seed(3);
    x = torch::rand({32, 1});
    y = 2 * x + 1;
    model = torch::nn::Linear(1, 1);
    optimizer = std::make_shared<torch::optim::Adam>(model->parameters(), torch::optim::AdamOptions(0.05));
  }
  rondo::loop loop(const fs::path& out, std::int64_t iterations) const {
    return rondo::loop(model, optimizer, data::tensor_dataset(x, y) | data::shuffle(7) | data::batch(4),
                       torch::nn::functional::mse_loss, {.max_iterations = iterations, .out = out});
  }
  [[nodiscard]] std::string digest() const {
    return state::digest_of(state::dict{{"m", state::module_state(*model)}, {"o", state::optimizer_state(*optimizer)}});
  }

  torch::Tensor x;
  torch::Tensor y;
  torch::nn::Linear model{nullptr};
  std::shared_ptr<torch::optim::Adam> optimizer;
};

/// Trains to `iterations` with a snapshot every `n` iterations.
run_result train(const fs::path& out, std::int64_t iterations, snapshot_options options, std::int64_t n = 2,
                 std::string* digest = nullptr) {
  problem p;
  auto l = p.loop(out, iterations);
  l | snapshot(std::move(options)).triggered(every(rondo::iterations{n}));
  auto result = l.run();
  if (digest != nullptr) *digest = p.digest();
  return result;
}

names files_in(const fs::path& directory) {
  names all;
  for (const auto& entry : fs::directory_iterator(directory))
    if (entry.path().filename() != ".rondo.lock") all.push_back(entry.path().filename().string());
  std::sort(all.begin(), all.end());
  return all;
}

void truncate_file(const fs::path& file, std::uintmax_t by) { fs::resize_file(file, fs::file_size(file) - by); }

void flip_bit(const fs::path& file, std::uintmax_t offset) {
  std::fstream f(file, std::ios::in | std::ios::out | std::ios::binary);
  f.seekg(static_cast<std::streamoff>(offset));
  const char byte = static_cast<char>(f.get() ^ 1);
  f.seekp(static_cast<std::streamoff>(offset));
  f.put(byte);
}

}  // namespace

TEST_CASE("a snapshot is a verified file under its name, with ppe's keys", "[snapshot]") {
  const temporary_directory dir;
  train(dir.path(), 4, {});
  REQUIRE(files_in(dir.path()) == names{"snapshot_iter_2", "snapshot_iter_4"});

  const auto file = checkpoint::reader::open(dir / "snapshot_iter_4");
  checkpoint::verify(file);
  REQUIRE(file.info()->info.iteration == 4);
  REQUIRE_FALSE(file.info()->info.mid_iteration);
  const auto state = checkpoint::materialize(file);
  for (const char* key :
       {"_start_iteration", "_start_execution", "models", "optimizers", "state_objects", "extensions", "ppe_version"})
    REQUIRE(state.as<state::dict>().contains(key));
  REQUIRE(state.get<std::int64_t>("_start_iteration") == 4);
  REQUIRE(state.at("extensions").at("snapshot").as<state::dict>().contains("trigger"));
}

TEST_CASE("autoload goes on with the same bits from wherever training ended", "[snapshot][resume]") {
  std::string unbroken;
  {
    const temporary_directory dir;
    train(dir.path(), 20, {}, 100, &unbroken);
  }
  for (std::int64_t k = 1; k < 20; ++k) {
    const temporary_directory dir;
    train(dir.path(), k, {.autoload = true}, 1);
    std::string digest;
    const auto result = train(dir.path(), 20, {.autoload = true}, 1, &digest);
    REQUIRE(result.resumed_from == dir / ("snapshot_iter_" + std::to_string(k)));
    REQUIRE(digest == unbroken);
  }
}

TEST_CASE("an empty directory is a fresh start", "[snapshot][resume]") {
  const temporary_directory dir;
  const auto result = train(dir / "new" / "place", 2, {.autoload = true});
  REQUIRE_FALSE(result.resumed_from);
  REQUIRE(fs::exists(dir / "new" / "place" / "snapshot_iter_2"));
}

TEST_CASE("ppe defect 8: a damaged newest snapshot is passed over, and said so", "[snapshot][resume][ppe]") {
  const temporary_directory dir;
  train(dir.path(), 6, {});
  const auto newest = dir / "snapshot_iter_6";
  SECTION("truncated") { truncate_file(newest, 100); }
  SECTION("one bit of a tensor (ppe defect 3)") { flip_bit(newest, fs::file_size(newest) / 2); }
  SECTION("empty") { fs::resize_file(newest, 0); }
  SECTION("garbage") { std::ofstream(newest, std::ios::trunc) << "not a checkpoint at all"; }

  problem p;
  auto l = p.loop(dir.path(), 8);
  names rejected;
  std::string reason;
  l | make_extension("watch", [&](context& ctx) {
    ctx.on<event::snapshot_rejected>([&](const auto& e) {
      rejected.push_back(e.path.filename().string());
      reason = e.reason;
    });
  }) | snapshot({.autoload = true});
  const auto result = l.run();
  REQUIRE(result.resumed_from == dir / "snapshot_iter_4");
  REQUIRE(rejected == names{"snapshot_iter_6"});
  REQUIRE_FALSE(reason.empty());
}

TEST_CASE("when all snapshots are damaged, training does not silently start from scratch", "[snapshot][resume]") {
  const temporary_directory dir;
  train(dir.path(), 4, {});
  truncate_file(dir / "snapshot_iter_2", 1);
  truncate_file(dir / "snapshot_iter_4", 1);
  const auto what = message_of<snapshot_error>([&] { train(dir.path(), 8, {.autoload = true}); });
  REQUIRE(contains(what, "snapshot_iter_2"));
  REQUIRE(contains(what, "snapshot_iter_4"));
}

TEST_CASE("ppe defects 9 and 10: order is by recorded iteration, and only our own files count",
          "[snapshot][resume][ppe]") {
  const temporary_directory dir;
  train(dir.path(), 10, {}, 1);
  // Newer by modification time, and names that only look alike.
  fs::last_write_time(dir / "snapshot_iter_9", fs::file_time_type::clock::now() + std::chrono::hours(1));
  for (const char* foreign : {"snapshot_iter_10.bak", "snapshot_iter_10.sha256", "snapshot_iter_99_notes.txt",
                              "tmp_snapshot_iter_11", "snapshot_iter_011", "snapshot_iter_"})
    std::ofstream(dir / foreign) << "x";
  fs::create_directory(dir / "snapshot_iter_50");

  const auto result = train(dir.path(), 11, {.n_retains = 2, .autoload = true}, 1);
  REQUIRE(result.resumed_from == dir / "snapshot_iter_10");
  REQUIRE(files_in(dir.path()) == names{"snapshot_iter_", "snapshot_iter_011", "snapshot_iter_10",
                                        "snapshot_iter_10.bak", "snapshot_iter_10.sha256", "snapshot_iter_11",
                                        "snapshot_iter_50", "snapshot_iter_99_notes.txt", "tmp_snapshot_iter_11"});
}

TEST_CASE("ppe defect 16: what a killed run left unfinished is removed at the next start", "[snapshot][ppe]") {
  const temporary_directory dir;
  const auto left = dir / writing::temporary_name("snapshot_iter_2", 4194304);  // beyond the largest process id
  std::ofstream(left) << "half";
  train(dir.path(), 2, {.autoload = true});
  REQUIRE(files_in(dir.path()) == names{"snapshot_iter_2"});
}

TEST_CASE("a fixed name is replaced atomically and resumed from (ppe defect 7)", "[snapshot][resume][ppe]") {
  const temporary_directory dir;
  train(dir.path(), 6, {.filename = "last"});
  REQUIRE(files_in(dir.path()) == names{"last"});
  const auto result = train(dir.path(), 8, {.filename = "last", .autoload = true});
  REQUIRE(result.resumed_from == dir / "last");
  REQUIRE(result.iteration == 8);
}

TEST_CASE("file names: templates, ppe's spelling, callables", "[snapshot]") {
  const temporary_directory dir;
  train(dir.path(), 2, {.filename = "a_{iteration:05}_{epoch}"});
  train(dir.path(), 2, {.filename = "b_{.iteration}"});
  train(dir.path(), 2, {.filename = [](const context& ctx) {
          return "c_" + std::string(static_cast<std::size_t>(ctx.iteration()), 'x');
        }});
  REQUIRE(files_in(dir.path()) == names{"a_00002_0", "b_2", "c_xx"});

  const auto callable = [](const context& ctx) {
    return "c_" + std::string(static_cast<std::size_t>(ctx.iteration()), 'x');
  };
  const auto result = train(dir.path(), 4, {.filename = callable, .autoload = true});
  REQUIRE(result.resumed_from);
  REQUIRE(result.iteration == 4);
  REQUIRE(contains(message_of<option_error>([&] {
                     train(dir.path(), 6, {.filename = [](const context&) { return std::string("../outside"); }});
                   }),
                   "filename"));
}

TEST_CASE("snapshot options that make no sense fail before training", "[snapshot][options]") {
  const auto refused = [](snapshot_options options) {
    return message_of<option_error>([&] { static_cast<void>(snapshot(std::move(options))); });
  };
  REQUIRE(contains(refused({.n_retains = 0}), "n_retains' = 0"));
  REQUIRE(contains(refused({.n_retains = -5}), "n_retains' = -5"));
  const auto unknown = refused({.filename = "snapshot_{iter}"});
  REQUIRE(contains(unknown, "iter"));
  REQUIRE(contains(unknown, "iteration"));
  REQUIRE(contains(unknown, "filename"));
  const auto save = [](const fs::path&, const state::value&) {};
  REQUIRE(contains(refused({.savefun = save, .writer = writers::simple()}), "savefun"));
  REQUIRE(contains(refused({.savefun = save, .autoload = true}), "loadfun"));
  REQUIRE(contains(refused({.savefun = save, .filename = "fixed", .n_retains = 2}), "{iteration}"));
}

TEST_CASE("ppe defect 24: snapshot works with every kind of trigger", "[snapshot][trigger][ppe]") {
  const auto count = [](trigger t) {
    const temporary_directory dir;
    problem p;
    auto l = p.loop(dir.path(), 16);
    l | snapshot().triggered(std::move(t));
    l.run();
    return files_in(dir.path()).size();
  };
  REQUIRE(count(once()) == 1);
  REQUIRE(count(when([i = 0]() mutable { return ++i % 4 == 0; })) == 4);
  REQUIRE(count(rondo::at({3_iterations, 1_epochs})) == 2);
  REQUIRE(count(every(0.5_epochs)) == 4);
}

TEST_CASE("condition is asked after the trigger has fired", "[snapshot]") {
  const temporary_directory dir;
  int asked = 0;
  train(dir.path(), 8, {.condition = [&] { return ++asked % 2 == 0; }});
  REQUIRE(asked == 4);
  REQUIRE(files_in(dir.path()) == names{"snapshot_iter_4", "snapshot_iter_8"});
}

TEST_CASE("ppe defect 4: an error snapshot has its own name, is marked, and is not resumed from",
          "[snapshot][error][ppe]") {
  const temporary_directory dir;
  problem p;
  auto l = p.loop(dir.path(), 100);
  l | snapshot({.snapshot_on_error = true}).triggered(every(2_iterations)) | make_extension("breaks", [](context& ctx) {
    ctx.on<event::update_completed>([&ctx] {
      if (ctx.iteration() == 4) throw std::runtime_error("in the middle of iteration 5");
    });
  });
  REQUIRE(message_of<std::runtime_error>([&] { l.run(); }) == "in the middle of iteration 5");
  REQUIRE(files_in(dir.path()) == names{"snapshot_iter_2", "snapshot_iter_4", "snapshot_iter_4.error"});
  const auto file = checkpoint::reader::open(dir / "snapshot_iter_4.error");
  checkpoint::verify(file);
  REQUIRE(file.info()->info.mid_iteration);
  const auto result = train(dir.path(), 6, {.autoload = true});
  REQUIRE(result.resumed_from == dir / "snapshot_iter_4");
}

TEST_CASE("a snapshot that cannot be written ends training with the reason, and older ones stay", "[snapshot][error]") {
  const temporary_directory dir;
  train(dir.path(), 4, {.n_retains = 1});
  fs::create_directory(dir / "snapshot_iter_6");  // in the way
  bool told = false;
  problem p;
  auto l = p.loop(dir.path(), 8);
  l | snapshot({.n_retains = 1, .autoload = true}).triggered(every(2_iterations)) |
      make_extension("watch", [&](context& ctx) {
        ctx.on_end<event::snapshot_completed>([&](const auto& e) { told = static_cast<bool>(e.error); });
      });
  const auto what = message_of<io_error>([&] { l.run(); });
  REQUIRE(contains(what, "snapshot_iter_6"));
  REQUIRE(told);
  REQUIRE(files_in(dir.path()) == names{"snapshot_iter_4", "snapshot_iter_6"});
}

TEST_CASE("snapshot events carry sizes and times", "[snapshot][event]") {
  const temporary_directory dir;
  problem p;
  auto l = p.loop(dir.path(), 4);
  names seen;
  l | snapshot().triggered(every(2_iterations)) | make_extension("watch", [&](context& ctx) {
    ctx.on<event::snapshot_started>([&](const auto& e) { seen.push_back("> " + e.path.filename().string()); });
    ctx.on<event::snapshot_completed>([&](const auto& e) {
      seen.push_back("< " + e.path.filename().string());
      REQUIRE(e.bytes == fs::file_size(e.path));
      REQUIRE(e.stall_seconds >= e.write_seconds);
      REQUIRE(e.iteration == ctx.iteration());
    });
  });
  l.run();
  REQUIRE(seen == names{"> snapshot_iter_2", "< snapshot_iter_2", "> snapshot_iter_4", "< snapshot_iter_4"});
}

TEST_CASE("targets: one object, several, and snapshot_object", "[snapshot]") {
  const temporary_directory dir;
  problem p;
  struct counter {
    [[nodiscard]] state::dict state_dict() const { return {{"n", n}}; }
    void load_state_dict(const state::value& s) { n = s.get<std::int64_t>("n"); }
    std::int64_t n = 5;
  } c;
  {
    auto l = p.loop(dir.path(), 2);
    l | snapshot_object(p.model, "model_{iteration}").triggered(every(2_iterations));
    l | snapshot({.filename = "both",
                  .target = std::vector<std::pair<std::string, state::stateful_ref>>{{"model", p.model}, {"c", c}}})
            .named("both")
            .triggered(every(2_iterations));
    l.run();
  }
  REQUIRE(files_in(dir.path()) == names{"both", "model_2"});
  const auto weight = p.model->weight.detach().clone();
  {
    torch::NoGradGuard no_grad;
    p.model->weight.fill_(0);
  }
  c.n = 0;
  auto l = p.loop(dir.path(), 1);
  bool loaded = false;
  l |
      snapshot({.filename = "both",
                .target = std::vector<std::pair<std::string, state::stateful_ref>>{{"model", p.model}, {"c", c}},
                .autoload = true}) |
      make_extension("check", [&](context& ctx) {
        ctx.on<event::training_started>([&] { loaded = torch::equal(weight, p.model->weight) && c.n == 5; });
      });
  l.run();
  REQUIRE(loaded);
}

TEST_CASE("a user's own serialization is committed atomically and read back by loadfun", "[snapshot]") {
  const temporary_directory dir;
  const auto save = [](const fs::path& temporary, const state::value& state) {
    std::ofstream(temporary) << state.get<std::int64_t>("_start_iteration");
  };
  train(dir.path(), 6, {.savefun = save, .n_retains = 2});
  REQUIRE(files_in(dir.path()) == names{"snapshot_iter_4", "snapshot_iter_6"});
  fs::path loaded;
  const auto load = [&](const fs::path& file) -> state::value {
    loaded = file;
    throw std::runtime_error("unreadable");
  };
  REQUIRE_THROWS_AS(train(dir.path(), 8, {.savefun = save, .loadfun = load, .autoload = true}), snapshot_error);
  REQUIRE(loaded == dir / "snapshot_iter_4");  // tried after the newest
}

TEST_CASE("snapshots of other models are refused with the reason", "[snapshot][resume]") {
  const temporary_directory dir;
  train(dir.path(), 2, {});
  torch::nn::Linear other(3, 1);
  torch::optim::Adam optimizer(other->parameters(), 0.1);
  rondo::loop l(other, optimizer, data::tensor_dataset(torch::rand({4, 3}), torch::rand({4, 1})) | data::batch(2),
                torch::nn::functional::mse_loss, {.max_epochs = 1, .out = dir.path()});
  l | snapshot({.autoload = true});
  const auto what = message_of<snapshot_error>([&] { l.run(); });
  REQUIRE(contains(what, "snapshot_iter_2"));
  REQUIRE(contains(what, "weight"));
}

TEST_CASE("Python reads a snapshot as a plain dict and goes on with the same bits", "[snapshot][python]") {
  const temporary_directory dir;
  torch::set_num_threads(1);
  const std::string script = R"(
import sys, torch
torch.set_num_threads(1)
d = torch.load(sys.argv[1])
assert list(d)[:7] == ['_start_iteration', '_start_execution', 'models', 'optimizers', 'state_objects', 'extensions', 'ppe_version'], list(d)
assert d['_start_iteration'] == 3 and type(d) is dict
model = torch.nn.Linear(1, 1)
model.load_state_dict(d['models']['main'])
optimizer = torch.optim.Adam(model.parameters(), 0.05)
optimizer.load_state_dict(d['optimizers']['main'])
torch.set_rng_state(d['rondo']['random']['cpu'])
batches = torch.load(sys.argv[2])
for i in range(3, 6):
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(batches['x%d' % i]), batches['y%d' % i]).backward()
    optimizer.step()
torch.save({'weight': model.weight.data, 'bias': model.bias.data, 'next': torch.rand(1000)}, sys.argv[3])
)";
  // The batches go to Python in a file of ours, too.
  problem p;
  auto batches = data::tensor_dataset(p.x, p.y) | data::shuffle(7) | data::batch(4);
  state::dict stored;
  for (std::int64_t i = 0; i < 6; ++i) {
    const auto batch = batches.begin()[i];
    stored["x" + std::to_string(i)] = batch.data;
    stored["y" + std::to_string(i)] = batch.target;
  }
  auto l = p.loop(dir.path(), 6);
  l | snapshot().triggered(every(3_iterations));
  l | snapshot_object(state::stateful_ref([&] { return state::value(stored); }, [](const state::value&) {}), "batches")
          .triggered(every(3_iterations));
  torch::Tensor next;
  l | make_extension("random",
                     [&](context& ctx) { ctx.on<event::training_completed>([&] { next = torch::rand({1000}); }); });
  l.run();
  const auto run = rondo::testing::run_python(
      script, {(dir / "snapshot_iter_3").string(), (dir / "batches").string(), (dir / "out.pt").string()});
  INFO(run.output);
  REQUIRE(run.status == 0);
  const auto python = checkpoint::materialize(checkpoint::reader::open(dir / "out.pt"));
  REQUIRE(torch::equal(python.get<at::Tensor>("weight"), p.model->weight.detach()));
  REQUIRE(torch::equal(python.get<at::Tensor>("bias"), p.model->bias.detach()));
  REQUIRE(torch::equal(python.get<at::Tensor>("next"), next));
}

TEST_CASE("a fresh run beside an earlier one that went further keeps its own snapshots, and the other's",
          "[snapshot]") {
  const temporary_directory dir;
  train(dir.path(), 20, {.n_retains = 2}, 5);
  REQUIRE(files_in(dir.path()) == names{"snapshot_iter_15", "snapshot_iter_20"});
  train(dir.path(), 8, {.n_retains = 2});
  REQUIRE(files_in(dir.path()) == names{"snapshot_iter_15", "snapshot_iter_20", "snapshot_iter_6", "snapshot_iter_8"});
}

TEST_CASE("damaged snapshots with names from a callable are not taken for foreign files", "[snapshot][resume]") {
  const temporary_directory dir;
  const auto name = [](const context& ctx) { return "s" + std::to_string(ctx.iteration()) + ".pt"; };
  train(dir.path(), 4, {.filename = name});
  std::ofstream(dir / "notes.txt") << "not ours";
  truncate_file(dir / "s4.pt", 200);
  REQUIRE(train(dir.path(), 5, {.filename = name, .autoload = true}, 100).resumed_from == dir / "s2.pt");
  truncate_file(dir / "s2.pt", 200);
  const auto what =
      message_of<snapshot_error>([&] { train(dir.path(), 5, {.filename = name, .autoload = true}, 100); });
  REQUIRE(contains(what, "s2.pt"));
  REQUIRE_FALSE(contains(what, "notes.txt"));
}

TEST_CASE("a failed load leaves the model untouched although its own part would fit", "[snapshot][resume]") {
  const temporary_directory dir;
  train(dir.path(), 2, {});
  problem p;
  const auto before = p.digest();
  torch::optim::Adam two_groups(
      {torch::optim::OptimizerParamGroup({p.model->weight}), torch::optim::OptimizerParamGroup({p.model->bias})},
      torch::optim::AdamOptions(0.05));
  rondo::loop l(p.model, two_groups, data::tensor_dataset(p.x, p.y) | data::batch(4), torch::nn::functional::mse_loss,
                {.max_iterations = 4, .out = dir.path()});
  l | snapshot({.autoload = true});
  REQUIRE_THROWS_AS(l.run(), snapshot_error);
  REQUIRE(p.digest() == before);
}

TEST_CASE("snapshots of several extensions in one directory are told apart", "[snapshot][resume]") {
  const temporary_directory dir;
  const auto name = [](const context& ctx) { return "run_" + std::to_string(ctx.iteration()); };
  const auto run = [&](std::int64_t iterations) {
    problem p;
    auto l = p.loop(dir.path(), iterations);
    l | snapshot_object(p.model, "weights_{iteration}").triggered(every(2_iterations));
    l | snapshot({.filename = name, .n_retains = 1, .autoload = true}).triggered(every(2_iterations));
    return l.run();
  };
  run(4);
  REQUIRE(files_in(dir.path()) == names{"run_4", "weights_2", "weights_4"});
  REQUIRE(run(6).resumed_from == dir / "run_4");
}

TEST_CASE("an extension does not replace the snapshot of another one", "[snapshot][error]") {
  const temporary_directory dir;
  problem p;
  auto l = p.loop(dir.path(), 4);
  l | snapshot().triggered(every(2_iterations));
  // A function's names are not known before they are used.
  const auto same_name = [](const context& ctx) { return "snapshot_iter_" + std::to_string(ctx.iteration()); };
  l | snapshot_object(p.model, same_name).triggered(every(2_iterations));
  const auto what = message_of<snapshot_error>([&] { l.run(); });
  REQUIRE(contains(what, "snapshot_iter_2"));
  REQUIRE(contains(what, "'snapshot'"));
  REQUIRE(checkpoint::reader::open(dir / "snapshot_iter_2").info()->info.made_by == "snapshot");
}

TEST_CASE("what a subscriber throws after a failed snapshot does not mask the reason", "[snapshot][error]") {
  const temporary_directory dir;
  problem p;
  auto l = p.loop(dir.path(), 4);
  int completed = 0;
  l | snapshot({.savefun = [](const fs::path&, const state::value&) {
        throw std::runtime_error("first");
      }}).triggered(every(2_iterations));
  l | make_extension("breaks", [&](context& ctx) {
    ctx.on_end<event::snapshot_completed>([&](const auto& e) {
      ++completed;
      REQUIRE(e.error);
      throw std::runtime_error("second");
    });
  });
  REQUIRE(contains(message_of<writing::savefun_error>([&] { l.run(); }), "first"));
  REQUIRE(completed == 1);
}

TEST_CASE("snapshot_completed follows although a subscriber of snapshot_started throws", "[snapshot][event]") {
  const temporary_directory dir;
  problem p;
  auto l = p.loop(dir.path(), 4);
  names seen;
  l | snapshot().triggered(every(2_iterations)) | make_extension("breaks", [&](context& ctx) {
    ctx.on<event::snapshot_started>([] { throw std::runtime_error("at the start"); });
    ctx.on_end<event::snapshot_completed>([&](const auto& e) { seen.push_back(e.error ? "failed" : "completed"); });
  });
  REQUIRE(message_of<std::runtime_error>([&] { l.run(); }) == "at the start");
  REQUIRE(seen == names{"failed"});
}

TEST_CASE("a symbolic link in place of a snapshot is not followed, and said so", "[snapshot][resume]") {
  const temporary_directory dir;
  const temporary_directory elsewhere;
  train(dir.path(), 4, {});
  fs::rename(dir / "snapshot_iter_4", elsewhere / "moved");
  fs::create_symlink(elsewhere / "moved", dir / "snapshot_iter_4");
  REQUIRE(train(dir.path(), 5, {.autoload = true}, 100).resumed_from == dir / "snapshot_iter_2");
  fs::remove(dir / "snapshot_iter_2");
  const auto what = message_of<snapshot_error>([&] { train(dir.path(), 5, {.autoload = true}, 100); });
  REQUIRE(contains(what, "symbolic link"));
}

TEST_CASE("the snapshot of another optimizer is refused although the states look alike", "[snapshot][resume]") {
  const temporary_directory dir;
  train(dir.path(), 2, {});
  problem p;
  torch::optim::AdamW other(p.model->parameters(), torch::optim::AdamWOptions(0.05));
  rondo::loop l(p.model, other, data::tensor_dataset(p.x, p.y) | data::batch(4), torch::nn::functional::mse_loss,
                {.max_iterations = 4, .out = dir.path()});
  l | snapshot({.autoload = true});
  const auto what = message_of<snapshot_error>([&] { l.run(); });
  REQUIRE(contains(what, "AdamW"));
}

}  // namespace snapshot_test

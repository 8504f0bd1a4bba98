// Everything that can be in a loop at once, killed after every iteration and resumed from disk: nothing of it shows.
#include <torch/nn/functional/activation.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adam.h>
#include <torch/types.h>

#include <asio/co_spawn.hpp>
#include <algorithm>
#include <asio/io_context.hpp>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "rondo/async/mailbox.hpp"
#include "rondo/checkpoint/reader.hpp"
#include "rondo/data/data.hpp"
#include "rondo/event/early_stopping.hpp"
#include "rondo/event/once.hpp"
#include "rondo/event/time_interval.hpp"
#include "rondo/event/value_trigger.hpp"
#include "rondo/event/when.hpp"
#include "rondo/extensions.hpp"
#include "rondo/loop/loop.hpp"
#include "rondo/state/digest.hpp"
#include "support/catch.hpp"
#include "support/scalars.hpp"
#include "support/temporary_directory.hpp"

namespace resume_sweep_test {

using namespace rondo;
using namespace rondo::literals;
using namespace std::chrono_literals;
using namespace rondo::testing;
namespace fs = std::filesystem;
using json = nlohmann::ordered_json;

namespace {

// Seven batches per epoch, the last one short; the stop trigger fires in the third epoch.
constexpr std::int64_t samples = 27;
constexpr std::int64_t last_iteration = 20;

struct network : torch::nn::Module {
  at::Tensor forward(const at::Tensor& x) {
    return second->forward(dropout->forward(torch::relu(norm->forward(first->forward(x)))));
  }

  torch::nn::Linear first{register_module("first", torch::nn::Linear(5, 8))};
  torch::nn::BatchNorm1d norm{register_module("norm", torch::nn::BatchNorm1d(8))};
  torch::nn::Dropout dropout{register_module("dropout", torch::nn::Dropout(0.3))};
  torch::nn::Linear second{register_module("second", torch::nn::Linear(8, 3))};
};

at::Tensor inputs(std::int64_t count, double phase) {
  return torch::sin(torch::arange(count * 5).to(torch::kFloat) * 0.37 + phase).view({count, 5});
}

auto examples(std::int64_t count, double phase) {
  const auto x = inputs(count, phase);
  return data::tensor_dataset(x, (x.sum(1) * 2).to(torch::kLong).abs().fmod(3));
}

/// A number that every iteration changes, and that nobody but the loop saves.
struct running_product {
  double value = 1.0;
  [[nodiscard]] state::dict state_dict() const { return {{"value", value}}; }
  void load_state_dict(const state::value& state) { value = state.at("value").number(); }
};

/// All that can be seen of a training. What was seen of iterations that a resumed run does again is forgotten, as a
/// reader of the log does who sees the lines come again.
class history {
 public:
  void go_back_to(std::int64_t iteration) {
    for (auto* one : {&seen_, &table_}) one->erase(one->upper_bound(iteration), one->end());
  }
  void note(std::int64_t iteration, const std::string& what) { seen_[iteration] += what + "\n"; }
  /// Lines whose first column is the iteration; those of headers are passed over.
  void note_table(const std::string& text) {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);)
      if (line.find_first_not_of("0123456789") == line.find(' ')) table_[std::stoll(line)] += line + "\n";
  }

  [[nodiscard]] const std::map<std::int64_t, std::string>& seen() const { return seen_; }
  [[nodiscard]] const std::map<std::int64_t, std::string>& table() const { return table_; }

 private:
  std::map<std::int64_t, std::string> seen_;
  std::map<std::int64_t, std::string> table_;
};

bool is_measured(const std::string& key) { return key == "elapsed_time" || key.starts_with("snapshot/"); }

/// The lines of a log, without what was measured.
std::vector<std::string> log_lines(const fs::path& path) {
  std::vector<std::string> all;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    const auto entry = json::parse(line);
    json kept;
    for (const auto& [key, value] : entry.items())
      if (!is_measured(key)) kept[key] = value;
    all.push_back(kept.dump());
  }
  return all;
}

scalar_points scalars(const fs::path& directory) {
  auto all = scalars_in(directory);
  std::erase_if(all, [](const auto& tag) { return is_measured(tag.first); });
  return all;
}

/// The end of the run as its state tells it, without times.
std::string digest_of(const state::dict& run) {
  state::dict counts;
  for (const char* part : {"_start_iteration", "_start_execution", "models", "optimizers", "state_objects"})
    counts.insert_or_assign(part, run.at(part));
  for (const char* part :
       {"epoch_index", "iteration_in_epoch", "epoch_end", "stop_trigger", "stop_trigger_fired", "gradients", "random"})
    counts.insert_or_assign(part, run.at("rondo").at(part));
  static const std::set<std::string> by_the_clock = {"log_report", "print_report", "steps",          "once per run",
                                                     "often",      "snapshot",     "profile_report", "timeline_trace"};
  for (const auto& [name, memory] : run.at("extensions").as<state::dict>())
    if (!by_the_clock.contains(name.str())) counts.insert_or_assign("extension " + name.str(), memory);
  return state::digest_of(counts);
}

/// The way in which a run does not come to its end.
enum class ending {
  none,
  vanish,  ///< training stops where it is, nobody is told anything, and all is gone
  fail,    ///< an exception
};

struct plan {
  ending how = ending::none;
  std::int64_t at = 0;                 ///< after this iteration …
  int place = priority::snapshot - 1;  ///< … among the subscribers of this priority
  std::int64_t snapshot_every = 1;
  bool in_background = false;  ///< whether a thread writes the snapshots
};

struct killed : std::runtime_error {
  killed() : std::runtime_error("killed") {}
};

class training {
 public:
  /// One run: goes on from the newest snapshot, until it ends or is killed.
  void run(const plan& p) {
    // A program begins as it always does; whatever that is, a snapshot replaces it.
    const bool fresh = snapshots().empty();
    torch::manual_seed(fresh ? 3 : 99);
    auto model = std::make_shared<network>();
    auto optimizer =
        std::make_shared<torch::optim::Adam>(model->parameters(), torch::optim::AdamOptions(fresh ? 0.05 : 7.0));
    auto product = std::make_shared<running_product>();
    std::ostringstream table;
    std::ostringstream bar;

    loop_options options{.max_epochs = 3, .out = out_.path(), .accumulate = 3, .clip_grad_norm = 1.0};
    options.stop_trigger =
        early_stopping({.monitor = "score", .patience = 3, .direction = better::lower, .check = every(2_iterations)});
    rondo::loop l(model, optimizer, examples(samples, 0) | data::shuffle(5) | data::batch(4),
                  torch::nn::functional::cross_entropy, std::move(options));
    l.remember("product", product);
    add_reporters(l, *product);
    add_logs(l, table, bar);
    add_techniques(l);
    add_watchers(l, bar);
    add_triggers(l);
    l |
        snapshot({.retain = retain::last(2) | retain::best(1, "noisy/loss"),
                  .autoload = true,
                  .writer = p.in_background ? writers::thread_queue() : writers::simple(),
                  .report = true})
            .triggered(every(iterations{p.snapshot_every})) |
        snapshot({.filename = "best"}).named("best").triggered(min_value("noisy/loss", every(2_iterations))) |
        make_extension("history", [this](context& ctx) { watch(ctx); });
    finish(l, p);
    seen.note_table(table.str());
  }

  /// The names of the regular snapshots.
  [[nodiscard]] std::set<std::string> snapshots() const {
    std::set<std::string> all;
    for (const auto& entry : fs::directory_iterator(out_.path()))
      if (entry.path().filename().string().starts_with("snapshot_iter_")) all.insert(entry.path().filename().string());
    return all;
  }
  [[nodiscard]] fs::path operator/(const char* name) const { return out_ / name; }

  history seen;
  std::string digest;       // of the end
  std::string stop_reason;  // of the end
  int once_per_run = 0;
  int runs = 0;

 private:
  void add_reporters(rondo::loop& l, running_product& product) {
    l | evaluator(examples(13, 1) | data::batch(5), metrics::accuracy()) |
        evaluator(examples(8, 2) | data::batch(3), {.name = "noisy"},
                  [](context& ctx, const auto& batch) {
                    const auto output = ctx.forward(batch.data + 0.1 * torch::randn_like(batch.data));
                    ctx.report("loss", ctx.loss(output, batch.target));
                  })
            .triggered(every(2_iterations)) |
        call("score", every(1_iterations),
             [](context& ctx) {
               ctx.report("score", 1.0 / static_cast<double>(std::min<std::int64_t>(ctx.iteration(), 13)));
             })
            .at_priority(priority::writer) |
        call("product", every(1_iterations),
             [&product](context& ctx) {
               product.value *= 1.0 + ctx.observed("train/loss");
               ctx.report("product", product.value);
             })
            .at_priority(priority::editor) |
        lr_scheduler(schedules::chained(
            {schedules::warm_up(4_iterations, schedules::cosine(3_epochs)),
             schedules::reduce_on_plateau(
                 {.monitor = "train/loss", .factor = 0.5, .patience = 1, .check = every(2_iterations)})}));
  }

  void add_logs(rondo::loop& l, std::ostringstream& table, std::ostringstream& bar) {
    l | log_report({.writer = writers::tensorboard()}) |
        log_report({.filename = "steps",
                    .trigger = every(4_iterations) || min_value("train/loss", every(3_iterations)),
                    .writer = writers::tensorboard("steps_board")})
            .named("steps") |
        print_report({"iteration", "epoch", "train/loss", "noisy/loss", "validation/accuracy", "lr"},
                     {.out = &table, .log_report = "steps", .terminal = false}) |
        progress_bar({.out = &bar, .terminal = false});
  }

  static void add_techniques(rondo::loop& l) {
    l | ema({.decay = 0.9, .every = 2, .swap_for_evaluation = false}) |
        swa({.start = 3_iterations, .every = 4_iterations}) | freeze_until("norm.*", rondo::at({9_iterations}));
  }

  /// What they write depends on the clock; here they only must not be in the way.
  static void add_watchers(rondo::loop& l, std::ostringstream& screen) {
    l | dashboard({.update_interval = 1us, .out = &screen, .plain_interval = 1us}) |
        profile_report({.trigger = every(3_iterations) || every(1_epochs)}) |
        timeline_trace({.trigger = every(2_iterations),
                        .enable = rondo::at({2_iterations, 9_iterations}),
                        .disable = rondo::at({6_iterations})});
  }

  void add_triggers(rondo::loop& l) {
    const auto note = [&](const char* name, trigger when) {
      l | call(name, std::move(when), [this, name](context& ctx) { seen.note(ctx.iteration(), name); });
    };
    note("best train", min_value("train/loss", every(3_iterations)));
    note("worst noisy", max_value("noisy/loss", every(4_iterations)));
    note("best accuracy", best_value("validation/accuracy", [](double now, double best) { return now >= best; }));
    note("fraction", every(0.3_epochs));
    note("points", rondo::at({5_iterations, 1.5_epochs, 2_epochs}));
    note("once", once());
    note("often", time_interval(std::chrono::nanoseconds(1)));
    note("never", time_interval(std::chrono::hours(100)));
    note("odd", when([](const moment& now) { return now.iteration % 2 == 1; }));
    note("combined", (!every(2_iterations) && min_value("score", every(1_iterations))) || every(5_iterations));
    note("stopped early",
         early_stopping({.monitor = "score", .patience = 1, .direction = better::lower, .check = every(3_iterations)}));
    l | call("once per run", once(true), [this] { ++once_per_run; });
  }

  void watch(context& ctx) {
    ctx.on<event::training_started>([this](const auto& e) {
      ++runs;
      seen.go_back_to(e.iteration);
    });
    ctx.on<event::epoch_started>([this, &ctx](const auto& e) {
      if (e.skipped == 0) seen.note(ctx.iteration() + 1, fmt::format("epoch {} begins", e.epoch));
    });
    ctx.on<event::update_completed>([this, &ctx] { seen.note(ctx.iteration() + 1, "update"); });
    ctx.on<event::epoch_completed>(
        [this, &ctx](const auto& e) { seen.note(ctx.iteration(), fmt::format("epoch {} ends", e.epoch)); });
    ctx.on<event::iteration_completed>([this, &ctx] {
      std::map<std::string, double> reported;  // their order is that in which the process has first seen them
      ctx.reported().for_each([&](const std::string& key, const observation& value) { reported[key] = value.value(); });
      for (const auto& [key, value] : reported)
        if (!is_measured(key)) seen.note(ctx.iteration(), fmt::format("{} {:a}", key, value));
      seen.note(ctx.iteration(), fmt::format("next lr {:a}", ctx.optimizer().param_groups()[0].options().get_lr()));
    });
    ctx.on<event::training_completed>([this, &ctx](const auto& e) {
      stop_reason = e.stop_reason;
      digest = digest_of(ctx.state_dict());
    });
  }

  static void finish(rondo::loop& l, const plan& p) {
    if (p.how == ending::none) {
      l.run();
      return;
    }
    bool reached = false;
    mailbox<int> nothing;  // nobody ever delivers
    l | make_extension("killer", [&](context& ctx) {
          ctx.on<event::iteration_completed>(when([p](const moment& now) { return now.iteration == p.at; }),
                                             [&]() -> task<> {
                                               reached = true;
                                               if (p.how == ending::fail) throw killed();
                                               static_cast<void>(co_await nothing.next());
                                             });
        }).at_priority(p.place);
    if (p.how == ending::fail) {
      CHECK_THROWS_AS(l.run(), killed);
    } else {
      asio::io_context events(1);
      asio::co_spawn(events, l.run_async(), [](std::exception_ptr, run_result) {});
      while (!reached && events.run_one() > 0) {
      }
    }
    REQUIRE(reached);
  }

  temporary_directory out_;
};

void check_same(const std::map<std::int64_t, std::string>& one, const std::map<std::int64_t, std::string>& other) {
  const auto first = std::mismatch(one.begin(), one.end(), other.begin(), other.end()).first;
  INFO("first different: iteration " << (first == one.end() ? "none" : std::to_string(first->first)));
  CHECK(one.size() == other.size());
  if (first != one.end()) CHECK(first->second == (other.contains(first->first) ? other.at(first->first) : "nothing"));
}

/// Equal to the last bit, but for what was measured.
void require_same(const training& one, const training& unbroken) {
  check_same(one.seen.seen(), unbroken.seen.seen());
  check_same(one.seen.table(), unbroken.seen.table());
  for (const char* name : {"log", "steps"}) CHECK(log_lines(one / name) == log_lines(unbroken / name));
  for (const char* name : {"tensorboard", "steps_board"}) CHECK(scalars(one / name) == scalars(unbroken / name));
  CHECK(one.stop_reason == unbroken.stop_reason);
  CHECK(one.once_per_run == one.runs);
  CHECK(one.snapshots() == unbroken.snapshots());
  const auto best = [](const training& t) { return checkpoint::reader::open(t / "best").info()->info.iteration; };
  CHECK(best(one) == best(unbroken));
  REQUIRE(one.digest == unbroken.digest);
}

const training& unbroken_with_snapshots_every(std::int64_t iterations) {
  static std::map<std::int64_t, std::unique_ptr<training>> all;
  auto& one = all[iterations];
  if (!one) {
    one = std::make_unique<training>();
    one->run({.snapshot_every = iterations});
  }
  return *one;
}

}  // namespace

TEST_CASE("the sweep sees what it is meant to see", "[resume][sweep]") {
  const auto& t = unbroken_with_snapshots_every(1);
  CHECK(t.stop_reason.starts_with("stop trigger"));
  REQUIRE(t.seen.seen().rbegin()->first == last_iteration);
  std::string all;
  for (const auto& [iteration, text] : t.seen.seen()) all += text;
  for (const char* what :
       {"best train", "worst noisy", "best accuracy", "fraction", "points", "once", "often", "odd", "combined",
        "stopped early", "train/grad_norm", "validation/accuracy", "noisy/loss", "lr ", "epoch 2 ends", "update"}) {
    INFO(what);
    CHECK(all.find(what) != std::string::npos);
  }
  CHECK(all.find("never") == std::string::npos);
  CHECK(log_lines(t / "log").size() == 2);
  CHECK(log_lines(t / "steps").size() > 5);
  CHECK(t.seen.table().size() == log_lines(t / "steps").size());
  CHECK(scalars(t / "steps_board").at("lr").size() == t.seen.table().size());
  CHECK(t.snapshots().size() == 3);
  std::set<std::string> rates;
  for (const auto& [iteration, text] : t.seen.seen()) rates.insert(text.substr(text.find("next lr")));
  CHECK(rates.size() == last_iteration);
}

TEST_CASE("a training that is killed after any iteration goes on as if nothing had happened", "[resume][sweep]") {
  for (const std::int64_t snapshot_every : {1, 3})
    for (std::int64_t at = 1; at < last_iteration; ++at) {
      const auto how = (at + snapshot_every) % 2 == 0 ? ending::fail : ending::vanish;
      INFO("snapshots every " << snapshot_every << ", " << (how == ending::fail ? "fails" : "vanishes") << " at "
                              << at);
      training t;
      t.run({.how = how, .at = at, .snapshot_every = snapshot_every});
      t.run({.snapshot_every = snapshot_every});
      require_same(t, unbroken_with_snapshots_every(snapshot_every));
    }
}

TEST_CASE("the same when it is killed after the log of an iteration was written, and before the snapshot",
          "[resume][sweep]") {
  for (std::int64_t at = 1; at <= last_iteration; ++at) {
    INFO("at " << at);
    training t;
    t.run({.how = at % 2 == 0 ? ending::vanish : ending::fail, .at = at, .place = 0});
    t.run({});
    require_same(t, unbroken_with_snapshots_every(1));
  }
}

TEST_CASE("the same when snapshots are written in the background", "[resume][sweep]") {
  for (std::int64_t at = 2; at < last_iteration; at += 3) {
    INFO("at " << at);
    training t;
    t.run({.how = ending::vanish, .at = at, .in_background = true});
    t.run({.in_background = true});
    require_same(t, unbroken_with_snapshots_every(1));
  }
}

TEST_CASE("the same when every single iteration is another run", "[resume][sweep]") {
  training t;
  for (std::int64_t at = 1; at < last_iteration; ++at)
    t.run({.how = at % 2 == 0 ? ending::fail : ending::vanish, .at = at});
  t.run({});
  CHECK(t.runs == last_iteration);
  require_same(t, unbroken_with_snapshots_every(1));
}

TEST_CASE("a training that is killed after its last iteration has no more to do, and its state is that of the end",
          "[resume][sweep]") {
  training t;
  t.run({.how = ending::vanish, .at = last_iteration});
  t.run({});
  CHECK(t.stop_reason == "the stop trigger had fired before");
  check_same(t.seen.seen(), unbroken_with_snapshots_every(1).seen.seen());
  CHECK(log_lines(t / "steps") == log_lines(unbroken_with_snapshots_every(1) / "steps"));
  CHECK(t.digest == unbroken_with_snapshots_every(1).digest);
}

}  // namespace resume_sweep_test

// Signals: training ends where it is, and a resumed run goes on as if nothing had happened.

#include "rondo/loop/interruption.hpp"

#include <torch/types.h>

#include <array>
#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <range/v3/range/conversion.hpp>
#include <range/v3/view/facade.hpp>
#include <string>
#include <vector>

#include "rondo/async/park.hpp"
#include "rondo/async/scope.hpp"
#include "rondo/async/signals.hpp"
#include "rondo/async/timer.hpp"
#include "rondo/data/data.hpp"
#include "rondo/extensions/evaluator.hpp"
#include "rondo/extensions/log_report.hpp"
#include "rondo/extensions/snapshot/snapshot.hpp"
#include "rondo/loop/loop.hpp"
#include "rondo/loop/requeue.hpp"
#include "support/catch.hpp"
#include "support/default_dispositions.hpp"
#include "support/messages.hpp"
#include "support/small_loops.hpp"
#include "support/temporary_directory.hpp"

namespace loop_interruption_test {

using namespace rondo;
using namespace rondo::literals;
using rondo::testing::contains;
using rondo::testing::counting_loop;
using rondo::testing::default_dispositions;
using rondo::testing::journal;
using rondo::testing::message_of;
using rondo::testing::problem;
using rondo::testing::temporary_directory;

namespace {

/// A training with two evaluators and a log, in which a signal may arrive at the `at`-th of the places where it can.
struct signalled {
  explicit signalled(std::filesystem::path out, std::int64_t at = -1, int number = SIGTERM)
      : out(std::move(out)), at(at), number(number) {}

  /// One place where a signal may arrive.
  void place() {
    if (places++ == at) std::raise(number);
  }

  [[nodiscard]] bool has_been_raised() const { return at >= 0 && places > at && number == SIGTERM; }

  run_result run() {
    const default_dispositions dispositions;
    problem p;
    auto step = [&, model = p.model](context&, const data::example& batch) mutable {
      place();
      return torch::nn::functional::mse_loss(torch::dropout(model->forward(batch.data), 0.1, true), batch.target);
    };
    rondo::loop l(p.model, p.optimizer, p.batches(), step, {.max_epochs = 3, .out = out});
    const auto count = [this](const char* who) {
      return [this, who](context& ctx) {
        ctx.on<event::iteration_completed>(
            [this, who, &ctx] { seen.push_back(who + std::to_string(ctx.iteration())); });
        ctx.on<event::epoch_completed>(
            [this, who, &ctx] { seen.push_back(who + ("e" + std::to_string(ctx.epoch()))); });
      };
    };
    // Asks for a point after every batch.
    const auto evaluate = [this](context& ctx, const char* key, std::int64_t pieces) {
      return [this, &ctx, key, pieces]() -> task<> {
        auto work = ctx.interruptible_work();
        double sum = 0;
        for (std::int64_t i = 0; i < pieces; ++i) {
          place();
          sum += torch::rand({1}).item().toDouble();
          co_await work.point();
          while (has_been_raised()) co_await work.point();
        }
        ctx.report(key, sum + ctx.observed("train/loss"));
        seen.push_back(key + std::to_string(ctx.iteration()));
      };
    };
    l | make_extension("patience", [&](context& ctx) {
          ctx.on<event::iteration_completed>([&]() -> task<> {
            while (has_been_raised() && !ctx.stop_signal()) co_await sleep_for(std::chrono::microseconds(10));
          });
        }).at_priority(priority::writer);
    l | make_extension("before", count("b")).at_priority(priority::writer);
    l | make_extension("first", [&](context& ctx) {
          ctx.on<event::iteration_completed>(every(3_iterations), evaluate(ctx, "first", 3));
        }).at_priority(priority::writer);
    l | make_extension("after", count("a")).at_priority(priority::writer);
    l | make_extension("second", [&](context& ctx) {
          ctx.on<event::epoch_completed>(evaluate(ctx, "second", 2));
        }).at_priority(priority::editor);
    l | make_extension("reader", count("r"));
    l | log_report({.trigger = every(1_iterations)});
    l | snapshot({.n_retains = 2, .autoload = true}).triggered(every(5_iterations));
    auto result = l.run();
    digest = p.digest();
    return result;
  }

  [[nodiscard]] std::vector<std::string> log() const {
    std::ifstream file(out / "log");
    std::vector<std::string> lines;
    for (std::string line; std::getline(file, line);) {
      auto entry = nlohmann::json::parse(line);
      entry.erase("elapsed_time");
      lines.push_back(entry.dump());
    }
    return lines;
  }

  std::filesystem::path out;
  std::int64_t at;
  int number;
  std::int64_t places = 0;
  journal seen;
  std::string digest;
};

/// A stream whose elements come when they are told to, of a length that nobody knows beforehand.
class told_stream : public ranges::view_base {
 public:
  struct source {
    std::int64_t count = 0;
    std::int64_t allowed = 0;
    continuation<> waiting;
    std::function<void()> when_waiting;
  };

  told_stream() = default;
  explicit told_stream(std::shared_ptr<source> s) : source_(std::move(s)) {}

  class iterator {
   public:
    using value_type = std::int64_t;
    using difference_type = std::ptrdiff_t;
    using iterator_category = std::input_iterator_tag;
    iterator() = default;
    explicit iterator(told_stream* s) : stream_(s) {}
    std::int64_t operator*() const { return stream_->at_; }
    iterator& operator++() {
      ++stream_->at_;
      return *this;
    }
    void operator++(int) { ++*this; }
    friend bool operator==(const iterator& i, ranges::default_sentinel_t) { return i.stream_->at_end(); }
    friend bool operator==(ranges::default_sentinel_t s, const iterator& i) { return i == s; }
    friend bool operator!=(const iterator& i, ranges::default_sentinel_t s) { return !(i == s); }
    friend bool operator!=(ranges::default_sentinel_t s, const iterator& i) { return !(i == s); }

   private:
    told_stream* stream_ = nullptr;
  };

  iterator begin() {
    at_ = 0;
    return iterator(this);
  }
  [[nodiscard]] ranges::default_sentinel_t end() const { return {}; }
  [[nodiscard]] bool at_end() const { return at_ >= source_->count; }

  std::optional<task<>> ready() {
    if (at_ < source_->allowed) return std::nullopt;
    return wait();
  }

 private:
  task<> wait() {
    source_->when_waiting();
    co_await park(source_->waiting);
  }

  std::shared_ptr<source> source_;
  std::int64_t at_ = 0;
};

}  // namespace

TEST_CASE("a signal at any place: the resumed run ends with the same bits, log and events", "[loop][signals][resume]") {
  const temporary_directory unbroken_dir;
  signalled unbroken(unbroken_dir.path());
  const auto whole = unbroken.run();
  REQUIRE_FALSE(whole.signal);
  REQUIRE(unbroken.places > 40);

  for (std::int64_t at = 0; at < unbroken.places; ++at) {
    INFO("a signal at place " << at);
    const temporary_directory dir;
    signalled broken(dir.path(), at);
    const auto first = broken.run();
    REQUIRE(first.stop_reason == "SIGTERM");
    if (first.signal) {
      REQUIRE(exit_code(first) == 143);
    } else {
      REQUIRE(first.iteration == whole.iteration);  // it came in the last iteration
      REQUIRE(broken.digest == unbroken.digest);
    }

    signalled resumed(dir.path());
    const auto second = resumed.run();
    REQUIRE(second.resumed_from);
    REQUIRE_FALSE(second.signal);
    REQUIRE(exit_code(second) == 0);
    REQUIRE(resumed.digest == unbroken.digest);
    REQUIRE(resumed.log() == unbroken.log());
    journal all = broken.seen;
    all.insert(all.end(), resumed.seen.begin(), resumed.seen.end());
    REQUIRE(all == unbroken.seen);  // nobody saw anything twice, or not at all
  }
}

TEST_CASE("SIGUSR1 at any place: a snapshot, and training goes on; who resumes from it ends with the same bits",
          "[loop][signals][resume]") {
  const temporary_directory unbroken_dir;
  signalled unbroken(unbroken_dir.path());
  unbroken.run();
  for (std::int64_t at = 0; at < unbroken.places; at += 3) {
    INFO("a signal at place " << at);
    const temporary_directory dir;
    signalled disturbed(dir.path(), at, SIGUSR1);
    const auto result = disturbed.run();
    REQUIRE_FALSE(result.signal);
    REQUIRE(disturbed.digest == unbroken.digest);
    REQUIRE(disturbed.log() == unbroken.log());
  }
}

TEST_CASE("SIGUSR1 in the middle of interruptible work saves what a resumed run needs to do it again",
          "[loop][signals][resume]") {
  const default_dispositions dispositions;
  const temporary_directory dir;
  const auto run = [&](bool first) {
    problem p;
    auto l = p.loop({.max_iterations = 8, .out = dir.path()});
    double result = 0;
    l | make_extension("work", [&](context& ctx) {
          ctx.on<event::epoch_completed>([&]() -> task<> {
            auto work = ctx.interruptible_work();
            const double drawn = torch::rand({1}).item().toDouble();
            if (first) {
              std::raise(SIGUSR1);
              while (!std::filesystem::exists(dir.path() / "snapshot_iter_8")) co_await work.point();
              torch::manual_seed(5);
            }
            result = drawn + ctx.observed("train/loss");
          });
        }).at_priority(priority::writer);
    l | snapshot({.filename = first ? "snapshot_iter_{iteration}" : "other_{iteration}",
                  .resume_from = first ? std::nullopt : std::optional(dir.path() / "snapshot_iter_8"),
                  .on_signal = false})
            .triggered(every(1000_iterations));
    l.run();
    return result;
  };
  const double there = run(true);
  REQUIRE(there > 0);
  REQUIRE(run(false) == there);
}

TEST_CASE("a signal ends the wait for data at once; the run goes on with the batch that was waited for",
          "[loop][signals][data]") {
  const default_dispositions dispositions;
  const bool in_the_end = GENERATE(false, true);  // the wait is for the next batch, or for whether there is one
  const temporary_directory dir;
  const auto run = [&](std::int64_t allowed, journal& seen) {
    auto s = std::make_shared<told_stream::source>();
    s->count = in_the_end ? 4 : 6;
    s->allowed = allowed;
    s->when_waiting = [] { std::raise(SIGTERM); };
    auto step = [&](context&, const std::int64_t& number) { seen.push_back(std::to_string(number)); };
    rondo::loop l(models{}, optimizers{}, told_stream(s), step, {.max_epochs = 1, .out = dir.path()});
    l | make_extension("watch", [&](context& ctx) {
      ctx.on<event::iteration_completed>([&] { seen.push_back("i" + std::to_string(ctx.iteration())); });
      ctx.on<event::epoch_completed>([&] { seen.push_back("e" + std::to_string(ctx.epoch())); });
    });
    l | snapshot({.autoload = true}).triggered(every(1000_iterations));
    return l.run();
  };
  journal seen;
  REQUIRE(run(4, seen).signal == SIGTERM);
  REQUIRE(seen.back() == "3");  // its end is not known: it depends on whether there is a fifth one
  REQUIRE_FALSE(run(1000, seen).signal);
  journal expected{"0", "i1", "1", "i2", "2", "i3", "3", "i4"};
  if (!in_the_end) expected.insert(expected.end(), {"4", "i5", "5", "i6"});
  expected.push_back("e1");
  REQUIRE(seen == expected);
}

TEST_CASE("SIGUSR1 while the loop waits for the first batch takes a snapshot right away", "[loop][signals][data]") {
  const default_dispositions dispositions;
  const temporary_directory dir;
  auto s = std::make_shared<told_stream::source>();
  s->count = 3;
  s->when_waiting = [] { std::raise(SIGUSR1); };
  bool saved_before = false;
  auto step = [](context&, const std::int64_t&) {};
  rondo::loop l(models{}, optimizers{}, told_stream(s), step, {.max_epochs = 1, .out = dir.path()});
  l | make_extension("feeder", [&](context& ctx) {
    ctx.on<event::snapshot_completed>([&] {
      saved_before = ctx.iteration() == 0;
      s->allowed = 1000;
      s->waiting.post();
    });
  });
  l | snapshot().triggered(every(1000_iterations));
  const auto result = l.run();
  REQUIRE(saved_before);
  REQUIRE(result.iteration == 3);
}

TEST_CASE("a signal ends the iteration that it came in, however long that takes", "[loop][signals]") {
  const default_dispositions dispositions;
  std::int64_t raised_in = 0;
  auto step = [&](context& ctx, const std::int64_t&) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(1);
    while (std::chrono::steady_clock::now() < until) continue;  // longer than the loop goes on without a look
    if (raised_in == 0 && ctx.iteration() == 4) {
      raised_in = ctx.iteration() + 1;
      std::raise(SIGTERM);
    }
  };
  rondo::loop l(models{}, optimizers{}, ranges::views::iota(std::int64_t{0}, std::int64_t{1000}), step,
                {.max_epochs = 1});
  REQUIRE(l.run().iteration == 5);
  REQUIRE(raised_in == 5);
}

TEST_CASE("without a snapshot an evaluation is not broken off, because nobody could do it again", "[loop][signals]") {
  const default_dispositions dispositions;
  auto l = counting_loop(4, {.max_epochs = 100});
  bool finished = false;
  l | make_extension("work", [&](context& ctx) {
    ctx.on<event::epoch_completed>([&]() -> task<> {
      auto work = ctx.interruptible_work();
      std::raise(SIGTERM);
      while (!ctx.stop_signal()) co_await work.point();
      finished = true;
    });
  });
  REQUIRE(l.run().signal == SIGTERM);
  REQUIRE(finished);
}

TEST_CASE("an evaluator is broken off between two batches and evaluates anew after the resume",
          "[loop][signals][evaluator]") {
  const default_dispositions dispositions;
  const temporary_directory dir;
  problem test;
  const auto run = [&](std::int64_t signal_at, std::vector<double>& results) {
    problem p;
    auto l = p.loop({.max_epochs = 2, .out = dir.path()});
    std::int64_t batches = 0;
    auto slow = p.batches() | data::transform([&](data::example e) {
                  if (++batches == signal_at) std::raise(SIGTERM);
                  if (batches >= signal_at && signal_at > 0) {
                    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(11);
                    while (std::chrono::steady_clock::now() < until) continue;  // so that a point is due
                  }
                  return e;
                });
    l | evaluator(slow);
    l | make_extension("results", [&](context& ctx) {
      ctx.on<event::epoch_completed>([&] { results.push_back(ctx.observed("validation/loss")); });
    });
    l | snapshot({.autoload = true});
    const auto result = l.run();
    REQUIRE(p.model->is_training());
    REQUIRE(torch::GradMode::is_enabled());
    if (signal_at > 0) REQUIRE(batches < 16);
    return result;
  };
  std::vector<double> expected;
  run(-1, expected);
  REQUIRE(expected.size() == 2);
  for (const auto& file : std::filesystem::directory_iterator(dir.path())) std::filesystem::remove_all(file);
  std::vector<double> seen;
  REQUIRE(run(3, seen).signal == SIGTERM);
  REQUIRE(seen.empty());
  REQUIRE_FALSE(run(-1, seen).signal);
  REQUIRE(seen == expected);
}

TEST_CASE("what a signal leaves undone of the last iteration is done before the goal counts", "[loop][signals]") {
  const default_dispositions dispositions;
  const temporary_directory dir;
  const auto run = [&](bool raise, bool& done) {
    auto l = counting_loop(4, {.max_iterations = 4, .out = dir.path()});
    l | make_extension("work", [&, raise](context& ctx) {
          ctx.on<event::iteration_completed>([&, raise]() -> task<> {
            if (ctx.iteration() != 4) co_return;
            auto work = ctx.interruptible_work();
            if (raise) std::raise(SIGTERM);
            while (raise) co_await work.point();
            done = true;
          });
        }).at_priority(priority::writer);
    l | snapshot({.autoload = true});
    return l.run();
  };
  bool done = false;
  const auto first = run(true, done);
  REQUIRE(first.signal == SIGTERM);
  REQUIRE(first.iteration == 4);
  REQUIRE_FALSE(done);
  const auto second = run(false, done);
  REQUIRE(done);
  REQUIRE(second.iteration == 4);
  REQUIRE_FALSE(second.signal);
}

TEST_CASE("a run that is broken off in its first iteration saves that iteration", "[loop][signals]") {
  const default_dispositions dispositions;
  const temporary_directory dir;
  for (std::int64_t n = 1; n <= 3; ++n) {
    auto l = counting_loop(10, {.max_iterations = 10, .out = dir.path()});
    l | make_extension("work", [&](context& ctx) {
          ctx.on<event::iteration_completed>([&]() -> task<> {
            auto work = ctx.interruptible_work();
            if (ctx.iteration() == n) std::raise(SIGTERM);
            while (ctx.iteration() == n) co_await work.point();
          });
        }).at_priority(priority::writer);
    l | snapshot({.autoload = true}).triggered(every(1000_iterations));
    const auto result = l.run();
    REQUIRE(result.iteration == n);
    REQUIRE(std::filesystem::exists(dir.path() / ("snapshot_iter_" + std::to_string(n))));
    if (n > 1) REQUIRE(result.resumed_from->filename() == "snapshot_iter_" + std::to_string(n - 1));
  }
}

TEST_CASE("a signal ends training with the iteration in which it comes, however short iterations are",
          "[loop][signals]") {
  const default_dispositions dispositions;
  const temporary_directory dir;
  const bool in_step = GENERATE(false, true);
  for (const std::int64_t at : {1, 70, 71, 99}) {
    auto step = [&](context& ctx, std::int64_t&) {
      if (in_step && ctx.iteration() + 1 == at) std::raise(SIGTERM);
    };
    rondo::loop l(models{}, optimizers{}, ranges::views::iota(std::int64_t{0}, std::int64_t{1000}), step,
                  {.max_epochs = 1, .out = dir.path()});
    l | make_extension("killer", [&](context& ctx) {
      ctx.on<event::iteration_completed>([&] {
        if (!in_step && ctx.iteration() == at) std::raise(SIGTERM);
      });
    });
    const auto result = l.run();
    REQUIRE(result.signal == SIGTERM);
    REQUIRE(result.iteration == at);
  }
}

TEST_CASE("on_signal = false leaves it to the trigger", "[loop][signals][snapshot]") {
  const default_dispositions dispositions;
  const bool on_signal = GENERATE(false, true);
  const temporary_directory dir;
  auto l = counting_loop(1000, {.max_epochs = 1000, .out = dir.path()});
  l | make_extension("killer", [&](context& ctx) {
    ctx.on<event::iteration_completed>([&]() -> task<> {
      if (ctx.iteration() == 5) std::raise(SIGTERM);
      co_await sleep_for(std::chrono::milliseconds(1));
    });
  });
  l | snapshot({.on_signal = on_signal});
  const auto result = l.run();
  REQUIRE(std::filesystem::exists(dir.path() / ("snapshot_iter_" + std::to_string(result.iteration))) == on_signal);
}

TEST_CASE("on_preempted is called last, and only when a signal has come before the goal", "[loop][signals]") {
  const default_dispositions dispositions;
  const bool raise = GENERATE(false, true);
  const temporary_directory dir;
  journal seen;
  loop_options options{.max_epochs = 3, .out = dir.path()};
  options.on_preempted = [&](const run_result& r) {
    REQUIRE(std::filesystem::exists(dir.path() / ("snapshot_iter_" + std::to_string(r.iteration))));
    seen.push_back("preempted by " + std::to_string(*r.signal));
  };
  auto l = counting_loop(100, std::move(options));
  l | make_extension("killer", [&](context& ctx) {
    ctx.on<event::iteration_completed>([&]() -> task<> {
      if (raise && ctx.iteration() == 5) std::raise(SIGINT);
      if (raise) co_await sleep_for(std::chrono::milliseconds(1));
    });
    ctx.on<event::training_completed>([&] { seen.push_back("completed"); });
  });
  l | snapshot();
  const auto result = l.run();
  REQUIRE(exit_code(result) == (raise ? 130 : 0));
  journal expected{"completed"};
  if (raise) expected.push_back("preempted by 2");
  REQUIRE(seen == expected);
}

TEST_CASE("signals of one's own choice", "[loop][signals][options]") {
  SECTION("are listened to") {
    struct sigaction by_default {};
    by_default.sa_handler = SIG_IGN;
    struct sigaction before {};
    sigaction(SIGUSR2, &by_default, &before);
    auto l = counting_loop(1000, {.max_epochs = 1000, .stop_signals = {SIGUSR2}});
    l | make_extension("killer", [&](context& ctx) {
      ctx.on<event::iteration_completed>([&]() -> task<> {
        if (ctx.iteration() == 5) std::raise(SIGUSR2);
        co_await sleep_for(std::chrono::milliseconds(1));
      });
    });
    const auto result = l.run();
    sigaction(SIGUSR2, &before, nullptr);
    REQUIRE(result.stop_reason == "SIGUSR2");
    REQUIRE(exit_code(result) == 128 + SIGUSR2);
  }
  const auto refusal = [](loop_options options) {
    options.max_epochs = 1;
    auto l = counting_loop(2, std::move(options));
    return message_of<option_error>([&] { l.run(); });
  };
  SECTION("that nobody can catch are refused") {
    REQUIRE(contains(refusal({.stop_signals = {SIGKILL}}), "stop_signals"));
    REQUIRE(contains(refusal({.snapshot_signals = {0}}), "snapshot_signals"));
    REQUIRE(contains(refusal({.snapshot_signals = {1000}}), "1000"));
  }
  SECTION("that mean two things are refused") {
    REQUIRE(contains(refusal({.snapshot_signals = {SIGTERM}}), "stop_signals"));
  }
  SECTION("a grace period is positive") {
    REQUIRE(contains(refusal({.grace_period = std::chrono::seconds(0)}), "grace_period"));
  }
}

TEST_CASE("SIGUSR1 is not caught in a loop that nobody saves", "[loop][signals]") {
  static volatile std::sig_atomic_t called = 0;
  struct sigaction mine {};
  mine.sa_handler = [](int) { called = called + 1; };
  struct sigaction before {};
  sigaction(SIGUSR1, &mine, &before);
  auto l = counting_loop(2, {.max_epochs = 1});
  l | make_extension("raises", [&](context& ctx) { ctx.on<event::epoch_completed>([] { std::raise(SIGUSR1); }); });
  l.run();
  sigaction(SIGUSR1, &before, nullptr);
  REQUIRE(called == 1);
}

TEST_CASE("slurm_requeue asks for the job of this process", "[loop][signals]") {
  const temporary_directory dir;
  const auto asked = dir.path() / "asked";
  const auto script = [&](const std::string& text) {
    std::ofstream(dir.path() / "scontrol") << "#!/bin/sh\n" << text;
    std::filesystem::permissions(dir.path() / "scontrol", std::filesystem::perms::owner_all);
  };
  const std::string path = std::getenv("PATH");
  setenv("PATH", (dir.path().string() + ":" + path).c_str(), 1);
  script("echo \"$@\" > '" + asked.string() + "'\n");
  const auto requeue = slurm_requeue();
  const run_result preempted{"SIGTERM", 5, 0, 1.0, std::nullopt, SIGTERM};

  SECTION("outside of a job nothing happens") {
    unsetenv("SLURM_JOB_ID");
    requeue(preempted);
    CHECK_FALSE(std::filesystem::exists(asked));
  }
  SECTION("inside of one") {
    setenv("SLURM_JOB_ID", "4711", 1);
    SECTION("it is requeued") {
      requeue(preempted);
      std::ifstream file(asked);
      std::string line;
      std::getline(file, line);
      CHECK(line == "requeue 4711");
    }
    SECTION("by its first task only") {
      setenv("SLURM_PROCID", "1", 1);
      requeue(preempted);
      unsetenv("SLURM_PROCID");
      CHECK_FALSE(std::filesystem::exists(asked));
    }
    SECTION("but not after Ctrl-C") {
      requeue({"SIGINT", 5, 0, 1.0, std::nullopt, SIGINT});
      CHECK_FALSE(std::filesystem::exists(asked));
    }
    SECTION("a failure is an error") {
      script("exit 3\n");
      CHECK(contains(message_of<error>([&] { requeue(preempted); }), "exit status 3"));
    }
    unsetenv("SLURM_JOB_ID");
  }
  setenv("PATH", path.c_str(), 1);
}

TEST_CASE("what asks for the end between an iteration and the wait for the next batch ends that wait", "[loop][data]") {
  const std::string way = GENERATE("stop", "error", "signal");
  const default_dispositions dispositions;
  auto s = std::make_shared<told_stream::source>();
  s->count = 1000;
  s->allowed = 1;
  s->when_waiting = [] {};
  auto step = [](context&, const std::int64_t&) {};
  const temporary_directory dir;
  rondo::loop l(models{}, optimizers{}, told_stream(s), step, {.max_epochs = 1, .out = dir.path()});
  l | make_extension("asker", [&](context& ctx) {
    ctx.on<event::iteration_started>([&] {
      ctx.spawn([&]() -> task<> {
        if (way == "stop") ctx.stop("enough");
        if (way == "error") throw error("a background failure");
        if (way == "signal") std::raise(SIGTERM);
        co_return;
      });
    });
  });
  if (way == "error") {
    REQUIRE(contains(message_of<error>([&] { l.run(); }), "a background failure"));
  } else {
    const auto result = l.run();
    REQUIRE(result.iteration == 1);
    REQUIRE(result.signal.has_value() == (way == "signal"));
  }
}

TEST_CASE("a silent stream ends on a stop, a signal and an error, saved or not, and the run goes on exactly",
          "[loop][data][signals]") {
  const std::string way = GENERATE("stop", "error", "signal");
  const bool saved = GENERATE(false, true);
  CAPTURE(way, saved);
  const default_dispositions dispositions;
  const temporary_directory dir;
  journal seen;
  const auto run = [&](std::int64_t allowed) {
    auto s = std::make_shared<told_stream::source>();
    s->count = 4;
    s->allowed = allowed;
    bool waits = false;
    s->when_waiting = [&] { waits = true; };
    auto step = [&](context&, const std::int64_t& number) { seen.push_back(std::to_string(number)); };
    rondo::loop l(models{}, optimizers{}, told_stream(s), step, {.max_epochs = 1, .out = dir.path()});
    l | make_extension("watch", [&](context& ctx) {
      ctx.on<event::iteration_completed>([&] { seen.push_back("i" + std::to_string(ctx.iteration())); });
      ctx.on<event::epoch_completed>([&] { seen.push_back("e" + std::to_string(ctx.epoch())); });
      ctx.spawn([&]() -> task<> {
        while (!waits) co_await sleep_for(std::chrono::microseconds(100));
        if (way == "stop") ctx.stop("enough");
        if (way == "error") throw error("a background failure");
        if (way == "signal") std::raise(SIGTERM);
        co_await sleep_for(std::chrono::hours(1));
      });
    });
    if (saved) l | snapshot({.autoload = true, .final = true}).triggered(every(1_iterations));
    return l.run();
  };
  if (way == "error") {
    REQUIRE(contains(message_of<error>([&] { run(4); }), "a background failure"));
    return;
  }
  const auto result = run(4);  // the fourth comes, the end does not
  REQUIRE(result.signal.has_value() == (way == "signal"));
  REQUIRE(exit_code(result) == (way == "signal" ? 143 : 0));
  if (!saved) {
    REQUIRE(seen == journal{"0", "i1", "1", "i2", "2", "i3", "3", "i4"});
    return;
  }
  REQUIRE(seen.back() == "3");
  static_cast<void>(run(1000));
  REQUIRE(seen == journal{"0", "i1", "1", "i2", "2", "i3", "3", "i4", "e1"});
}

TEST_CASE("a stop that nobody saves ends the iteration, saved before or not", "[loop][data]") {
  const default_dispositions dispositions;
  const temporary_directory dir;
  auto s = std::make_shared<told_stream::source>();
  s->count = 4;
  s->allowed = 2;
  s->when_waiting = [] {};
  journal seen;
  auto step = [&](context& ctx, const std::int64_t& number) {
    seen.push_back(std::to_string(number));
    if (number == 1) ctx.stop("enough");
  };
  rondo::loop l(models{}, optimizers{}, told_stream(s), step, {.max_epochs = 1, .out = dir.path()});
  l | make_extension("watch", [&](context& ctx) {
    ctx.on<event::iteration_completed>([&] { seen.push_back("i" + std::to_string(ctx.iteration())); });
  });
  l | snapshot().triggered(every(1000_iterations));
  REQUIRE(l.run().iteration == 2);
  REQUIRE(seen == journal{"0", "i1", "1", "i2"});
}

TEST_CASE("SIGUSR1 while a stream of unknown length is silent at the end of an iteration takes its snapshot at once",
          "[loop][signals][data]") {
  const default_dispositions dispositions;
  const temporary_directory dir;
  const auto resumed = GENERATE(false, true);
  journal seen;
  const auto run = [&](bool stop) {
    auto s = std::make_shared<told_stream::source>();
    s->count = 3;
    s->allowed = 3;
    s->when_waiting = [&] { std::raise(SIGUSR1); };
    auto step = [&](context&, const std::int64_t& number) { seen.push_back(std::to_string(number)); };
    rondo::loop l(models{}, optimizers{}, told_stream(s), step, {.max_epochs = 1, .out = dir.path()});
    l | make_extension("feeder", [&](context& ctx) {
      ctx.on<event::iteration_completed>([&] { seen.push_back("i" + std::to_string(ctx.iteration())); });
      ctx.on<event::epoch_completed>([&] { seen.push_back("e" + std::to_string(ctx.epoch())); });
      ctx.on<event::snapshot_completed>([&] {
        seen.push_back("saved");
        if (stop) throw error("killed");
        s->allowed = 1000;
        s->waiting.post();
      });
    });
    l | snapshot({.autoload = true}).triggered(every(1000_iterations));
    return l.run();
  };
  if (!resumed) {
    REQUIRE(run(false).iteration == 3);
    REQUIRE(seen == journal{"0", "i1", "1", "i2", "2", "saved", "i3", "e1"});
    return;
  }
  REQUIRE(contains(message_of<error>([&] { run(true); }), "killed"));
  REQUIRE(run(false).iteration == 3);
  REQUIRE(seen == journal{"0", "i1", "1", "i2", "2", "saved", "saved", "i3", "e1"});
}

TEST_CASE("a signal after an extension has stopped the run is no preemption", "[loop][signals]") {
  const default_dispositions dispositions;
  const temporary_directory dir;
  bool preempted = false;
  loop_options options{.max_epochs = 3, .out = dir.path()};
  options.on_preempted = [&](const run_result&) { preempted = true; };
  auto l = counting_loop(100, std::move(options));
  l | make_extension("stopper", [&](context& ctx) {
    ctx.on<event::iteration_completed>([&] {
      if (ctx.iteration() == 5) ctx.stop("found it");
    });
    ctx.on<event::snapshot_started>([&]() -> task<> {
      std::raise(SIGTERM);
      while (!ctx.stop_signal()) co_await sleep_for(std::chrono::microseconds(100));
    });
  });
  l | snapshot({.final = true}).triggered(every(1000_iterations));
  const auto result = l.run();
  REQUIRE(result.stop_reason == "found it");
  REQUIRE(exit_code(result) == 0);
  REQUIRE_FALSE(preempted);
}

TEST_CASE("a run that fails gives the signals back", "[loop][signals]") {
  const default_dispositions dispositions;
  const temporary_directory dir;
  loop_options options{.max_epochs = 3, .out = dir.path()};
  options.grace_period = std::chrono::hours(1);
  auto l = counting_loop(100, std::move(options));
  l | make_extension("fails", [](context& ctx) { ctx.on<event::iteration_completed>([] { throw error("no"); }); });
  asio::io_context events(1);
  std::exception_ptr failed;
  asio::co_spawn(events, l.run_async(), [&](std::exception_ptr e, const run_result&) { failed = e; });
  events.run();
  REQUIRE(failed);
  struct sigaction now {};
  REQUIRE(::sigaction(SIGTERM, nullptr, &now) == 0);
  REQUIRE(now.sa_handler == SIG_DFL);  // while the loop still exists
}

TEST_CASE("what a program throws as `interrupted` is an error where no signal has come", "[loop][signals]") {
  auto l = counting_loop(10, {.max_epochs = 1});
  l | make_extension("odd", [](context& ctx) { ctx.on<event::iteration_completed>([] { throw interrupted(); }); });
  REQUIRE_THROWS_AS(l.run(), interrupted);
}

TEST_CASE("work of a coroutine beside training does not take the place of another extension's handler",
          "[loop][signals]") {
  const default_dispositions dispositions;
  const temporary_directory dir;
  const auto run = [&](bool raise) {
    journal seen;
    auto l = counting_loop(3, {.max_epochs = 1, .out = dir.path()});
    l | make_extension("handler", [&](context& ctx) {
          ctx.on<event::iteration_completed>([&]() -> task<> {
            for (int i = 0; i < 20; ++i) co_await sleep_for(std::chrono::milliseconds(1));
            seen.push_back("handled " + std::to_string(ctx.iteration()));
          });
        }).at_priority(priority::writer);
    l | make_extension("beside", [&, raise](context& ctx) {
      ctx.on<event::iteration_started>([&, raise] {
        ctx.spawn([&, raise]() -> task<> {
          co_await sleep_for(std::chrono::milliseconds(2));  // the handler is at work now
          auto work = ctx.interruptible_work();
          if (raise && ctx.iteration() == 2) std::raise(SIGTERM);
          for (int i = 0; i < 5; ++i) co_await work.point();
        });
      });
    });
    l | snapshot({.autoload = true}).triggered(every(1000_iterations));
    const auto result = l.run();
    return std::pair(seen, result);
  };
  const auto [first, broken_off] = run(true);
  REQUIRE(broken_off.iteration == 2);
  REQUIRE(first == journal{"handled 1", "handled 2"});
  const auto [second, whole] = run(false);
  REQUIRE(second == journal{"handled 3"});
}

TEST_CASE("slurm_requeue asks also where SIGCHLD is ignored, and its child ignores nothing", "[loop][signals]") {
  const temporary_directory dir;
  const auto asked = dir.path() / "asked";
  std::ofstream(dir.path() / "scontrol") << "#!/bin/sh\ngrep SigIgn /proc/self/status > '" << asked.string() << "'\n";
  std::filesystem::permissions(dir.path() / "scontrol", std::filesystem::perms::owner_all);
  const std::string path = std::getenv("PATH");
  setenv("PATH", (dir.path().string() + ":" + path).c_str(), 1);
  setenv("SLURM_JOB_ID", "4711", 1);
  {
    const ignored_signals quiet{SIGPIPE, SIGXFSZ, SIGCHLD};
    slurm_requeue()({"SIGTERM", 5, 0, 1.0, std::nullopt, SIGTERM});
  }
  unsetenv("SLURM_JOB_ID");
  setenv("PATH", path.c_str(), 1);
  std::ifstream file(asked);
  std::string name;
  std::string mask;
  file >> name >> mask;
  const auto ignored = std::stoull(mask, nullptr, 16);
  REQUIRE((ignored & (1ULL << (SIGPIPE - 1))) == 0);
  REQUIRE((ignored & (1ULL << (SIGXFSZ - 1))) == 0);
}

}  // namespace loop_interruption_test

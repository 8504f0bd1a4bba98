// A training that is taken up again computes what one that was never interrupted computes.

#include "rondo/loop/loop.hpp"

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim.h>
#include <torch/types.h>

#include <algorithm>
#include <chrono>
#include <list>
#include <range/v3/view/generate_n.hpp>
#include <range/v3/view/iota.hpp>
#include <string>
#include <vector>

#include "rondo/data/data.hpp"
#include "rondo/event/early_stopping.hpp"
#include "rondo/event/once.hpp"
#include "rondo/event/time_interval.hpp"
#include "rondo/event/value_trigger.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"
#include "support/small_loops.hpp"

namespace resume_test {

using namespace rondo;
using namespace rondo::literals;
using rondo::testing::captured_stderr;
using rondo::testing::contains;
using rondo::testing::counting_loop;
using rondo::testing::journal;
using rondo::testing::message_of;
using rondo::testing::problem;

TEST_CASE("ppe defect 31: a state beyond the goal trains no further", "[loop][resume][ppe]") {
  auto first = counting_loop(4, {.max_epochs = 7});
  state::value saved;
  first | make_extension("save", [&](context& ctx) {
    ctx.on<event::training_completed>([&] { saved = state::clone(ctx.state_dict()); });
  });
  first.run();
  auto second = counting_loop(4, {.max_epochs = 5});
  second | make_extension("save", [&](context& ctx) { ctx.on<event::restoring>([&] { ctx.load_state_dict(saved); }); });
  const auto result = second.run();
  REQUIRE(result.iteration == 28);
  REQUIRE(result.epoch == 7);
}

TEST_CASE("ppe defect 32: a class with a state is saved and restored without further ado", "[loop][resume][ppe]") {
  struct counter {
    void attach(context& ctx) {
      ctx.on<event::iteration_completed>([this] { ++count; });
    }
    [[nodiscard]] state::dict state_dict() const { return {{"count", count}}; }
    void load_state_dict(const state::value& s) { count = s.get<std::int64_t>("count"); }
    std::int64_t count = 0;
  };
  state::value saved;
  const auto run = [&](std::int64_t iterations, bool restore) {
    auto c = std::make_shared<counter>();
    auto l = counting_loop(4, {.max_iterations = iterations});
    l | make_extension("counter", c) | make_extension("save", [&](context& ctx) {
      if (restore) ctx.on<event::restoring>([&] { ctx.load_state_dict(saved); });
      ctx.on<event::training_completed>([&] { saved = state::clone(ctx.state_dict()); });
    });
    l.run();
    return c->count;
  };
  REQUIRE(run(5, false) == 5);
  REQUIRE(run(11, true) == 11);
}

TEST_CASE("training that is taken up at any iteration ends with the same bits", "[loop][resume]") {
  const auto make = [](const problem& p, std::int64_t iterations) {
    return rondo::loop(
        p.model, p.optimizer, p.batches(), torch::nn::functional::mse_loss,
        {.max_iterations = iterations, .stop_trigger = early_stopping({.monitor = "train/loss", .patience = 1000})});
  };
  const std::int64_t total = 20;  // two epochs and a half
  problem unbroken;
  make(unbroken, total).run();

  for (std::int64_t k = 0; k <= total; ++k) {
    INFO("taken up after iteration " << k);
    state::value saved;
    {
      problem p;
      if (k > 0) {
        auto l = make(p, k);
        l | make_extension("save", [&](context& ctx) {
              ctx.when_due([&] { saved = state::clone(ctx.state_dict()); });
            }).at_priority(priority::snapshot);
        l.run();
      }
    }
    problem p;
    if (k > 0) {
      p.model->weight.detach().fill_(9);  // whatever it is, it is overwritten
      torch::manual_seed(99);
    }
    auto l = make(p, total);
    journal epochs;
    l | make_extension("save", [&](context& ctx) {
      ctx.on<event::restoring>([&] {
        if (k > 0) ctx.load_state_dict(saved);
      });
      ctx.on<event::epoch_completed>(
          [&](const auto& e) { epochs.push_back(std::to_string(e.epoch) + " at " + std::to_string(ctx.iteration())); });
    });
    const auto result = l.run();
    REQUIRE(result.iteration == total);
    REQUIRE(p.digest() == unbroken.digest());
    journal expected;
    if (k < 8) expected.push_back("1 at 8");
    if (k < 16) expected.push_back("2 at 16");
    REQUIRE(epochs == expected);
  }
}

TEST_CASE("ppe defect 29 and 30: an early stopped training, resumed from any snapshot, stops at the same iteration",
          "[loop][resume][ppe]") {
  const std::vector<double> losses = {5, 4, 3, 3.5, 3.4, 3.2, 3.1, 2, 1, 1, 1, 1};
  const auto run = [&](std::int64_t save_at, const state::value* from, state::value* saved) {
    auto step = [&](context& ctx, const std::int64_t&) {
      ctx.report("loss", losses[static_cast<std::size_t>(ctx.iteration())]);
    };
    rondo::loop l(models{}, optimizers{}, ranges::views::iota(std::int64_t{0}, std::int64_t{5}), step,
                  {.max_iterations = 12,
                   .stop_trigger = early_stopping({.monitor = "loss", .patience = 3, .check = every(1_iterations)})});
    l | make_extension("save", [&](context& ctx) {
          if (from != nullptr) ctx.on<event::restoring>([&] { ctx.load_state_dict(*from); });
          ctx.when_due([&, save_at] {
            if (ctx.iteration() == save_at) *saved = state::clone(ctx.state_dict());
          });
        }).at_priority(priority::snapshot);
    return l.run().iteration;
  };
  REQUIRE(run(-1, nullptr, nullptr) == 6);
  for (std::int64_t k = 1; k <= 6; ++k) {
    state::value saved;
    static_cast<void>(run(k, nullptr, &saved));
    REQUIRE(run(-1, &saved, nullptr) == 6);
  }
}

TEST_CASE("a state of another model or with missing parts is refused with the path", "[loop][resume]") {
  problem p;
  auto l = p.loop({.max_epochs = 1});
  state::value saved;
  l | make_extension("save", [&](context& ctx) {
    ctx.on<event::training_completed>([&] { saved = state::clone(ctx.state_dict()); });
  });
  l.run();

  const auto load = [](const state::value& state) {
    torch::nn::Linear other(2, 1);
    torch::optim::Adam optimizer(other->parameters(), 0.1);
    rondo::loop second(other, optimizer,
                       data::tensor_dataset(torch::rand({4, 2}), torch::rand({4, 1})) | data::batch(2),
                       torch::nn::functional::mse_loss, {.max_epochs = 1});
    second |
        make_extension("load", [&](context& ctx) { ctx.on<event::restoring>([&] { ctx.load_state_dict(state); }); });
    return message_of<state_error>([&] { second.run(); });
  };
  REQUIRE(contains(load(saved), "models.main"));
  auto broken = state::clone(saved);
  broken.as<state::dict>()["models"] = state::dict{};
  REQUIRE(contains(load(broken), "models.main"));
}

TEST_CASE("the triggers of single handlers remember, too", "[loop][resume][trigger]") {
  const std::vector<double> losses = {5, 4, 6, 3, 7, 2, 8, 2};
  const auto run = [&](std::int64_t iterations, const state::value* from, state::value* saved) {
    journal best;
    auto step = [&](context& ctx, const std::int64_t&) {
      ctx.report("loss", losses[static_cast<std::size_t>(ctx.iteration())]);
    };
    rondo::loop l(models{}, optimizers{}, ranges::views::iota(std::int64_t{0}, std::int64_t{8}), step,
                  {.max_iterations = iterations});
    l | make_extension("best", [&](context& ctx) {
      ctx.on<event::iteration_completed>(min_value("loss", every(1_iterations)),
                                         [&] { best.push_back(std::to_string(ctx.iteration())); });
    });
    l | make_extension("save", [&](context& ctx) {
          if (from != nullptr) ctx.on<event::restoring>([&] { ctx.load_state_dict(*from); });
          ctx.when_due([&] {
            if (saved != nullptr) *saved = state::clone(ctx.state_dict());
          });
        }).at_priority(priority::snapshot);
    l.run();
    return best;
  };
  const auto unbroken = run(8, nullptr, nullptr);
  REQUIRE(unbroken == journal{"1", "2", "4", "6"});
  for (std::int64_t k = 1; k < 8; ++k) {
    state::value saved;
    auto all = run(k, nullptr, &saved);
    const auto rest = run(8, &saved, nullptr);
    all.insert(all.end(), rest.begin(), rest.end());
    REQUIRE(all == unbroken);
  }
}

TEST_CASE("a resume inside an accumulation window ends with the same bits", "[loop][resume]") {
  const auto train = [](const problem& p, std::int64_t iterations, const state::value* from, state::value* saved) {
    rondo::loop l(p.model, p.optimizer, p.batches(), torch::nn::functional::mse_loss,
                  {.stop_trigger = rondo::at({rondo::iterations{iterations}}), .accumulate = 3});
    l | make_extension("save", [&](context& ctx) {
          if (from != nullptr) ctx.on<event::restoring>([&] { ctx.load_state_dict(*from); });
          ctx.when_due([&] {
            if (saved != nullptr) *saved = state::clone(ctx.state_dict());
          });
        }).at_priority(priority::snapshot);
    l.run();
  };
  problem unbroken;
  train(unbroken, 20, nullptr, nullptr);
  for (std::int64_t k = 1; k < 20; ++k) {
    INFO("taken up after iteration " << k);
    state::value saved;
    problem first;
    train(first, k, nullptr, &saved);
    problem second;
    train(second, 20, &saved, nullptr);
    REQUIRE(second.digest() == unbroken.digest());
  }
}

TEST_CASE("a stream that draws from LibTorch's generator goes on with the same numbers", "[loop][resume]") {
  const auto train = [](std::int64_t iterations, const state::value* from, state::value* saved) {
    torch::manual_seed(5);
    std::vector<double> seen;
    auto numbers = ranges::views::generate_n([] { return torch::rand({}).item<double>(); }, 10);
    auto step = [&](context&, const double& x) { seen.push_back(x + torch::rand({}).item<double>()); };
    rondo::loop l(models{}, optimizers{}, numbers, step, {.max_iterations = iterations});
    l | make_extension("save", [&](context& ctx) {
          if (from != nullptr) ctx.on<event::restoring>([&] { ctx.load_state_dict(*from); });
          ctx.when_due([&] {
            if (saved != nullptr) *saved = state::clone(ctx.state_dict());
          });
        }).at_priority(priority::snapshot);
    l.run();
    return seen;
  };
  const auto unbroken = train(10, nullptr, nullptr);
  state::value saved;
  static_cast<void>(train(4, nullptr, &saved));
  const auto rest = train(10, &saved, nullptr);
  REQUIRE(rest == std::vector<double>(unbroken.begin() + 4, unbroken.end()));
}

TEST_CASE("epochs of different lengths are resumed where they were", "[loop][resume]") {
  // Four batches in the first epoch, seven in the others.
  struct growing : ranges::view_interface<growing> {
    void set_epoch(std::int64_t e) { epoch = e; }
    [[nodiscard]] auto begin() const { return ranges::begin(numbers()); }
    [[nodiscard]] auto end() const { return ranges::end(numbers()); }
    [[nodiscard]] const std::list<std::int64_t>& numbers() const {
      static const std::list<std::int64_t> few{0, 1, 2, 3};
      static const std::list<std::int64_t> many{0, 1, 2, 3, 4, 5, 6};
      return epoch == 0 ? few : many;
    }
    std::size_t size() const = delete;
    std::int64_t epoch = 0;
  };
  const auto train = [](std::int64_t iterations, const state::value* from, state::value* saved) {
    journal seen;
    auto step = [&](context&, const std::int64_t& i) { seen.push_back(std::to_string(i)); };
    rondo::loop l(models{}, optimizers{}, growing(), step, {.max_iterations = iterations});
    l | make_extension("save", [&](context& ctx) {
      if (from != nullptr) ctx.on<event::restoring>([&] { ctx.load_state_dict(*from); });
      ctx.on<event::epoch_completed>([&](const auto& e) { seen.push_back("epoch " + std::to_string(e.epoch)); });
      ctx.on<event::training_completed>([&] {
        if (saved != nullptr) *saved = state::clone(ctx.state_dict());
      });
    });
    l.run();
    return seen;
  };
  const auto unbroken = train(18, nullptr, nullptr);
  for (std::int64_t k = 1; k < 18; ++k) {
    INFO("taken up after iteration " << k);
    state::value saved;
    auto both = train(k, nullptr, &saved);
    const auto rest = train(18, &saved, nullptr);
    both.insert(both.end(), rest.begin(), rest.end());
    REQUIRE(both == unbroken);
  }
}

TEST_CASE("gradients of another accumulation window are refused", "[loop][resume]") {
  const auto run = [](std::int64_t accumulate, std::int64_t iterations, const state::value* from, state::value* saved) {
    problem p;
    rondo::loop l(p.model, p.optimizer, p.batches(), torch::nn::functional::mse_loss,
                  {.stop_trigger = rondo::at({rondo::iterations{iterations}}), .accumulate = accumulate});
    l | make_extension("save", [&](context& ctx) {
      if (from != nullptr) ctx.on<event::restoring>([&] { ctx.load_state_dict(*from); });
      ctx.when_due([&] {
        if (saved != nullptr) *saved = state::clone(ctx.state_dict());
      });
    });
    l.run();
  };
  state::value saved;
  run(4, 3, nullptr, &saved);
  REQUIRE(contains(message_of<state_error>([&] { run(2, 6, &saved, nullptr); }), "accumulate = 4"));
}

TEST_CASE("a range that draws its order at the beginning of an epoch is resumed exactly", "[loop][resume]") {
  struct reordered : ranges::view_interface<reordered> {
    void set_epoch(std::int64_t) {
      const auto order = torch::randperm(5, torch::kLong);
      numbers.assign(order.data_ptr<std::int64_t>(), order.data_ptr<std::int64_t>() + 5);
    }
    [[nodiscard]] auto begin() const { return numbers.begin(); }
    [[nodiscard]] auto end() const { return numbers.end(); }
    std::vector<std::int64_t> numbers{0, 1, 2, 3, 4};
  };
  const auto train = [](std::int64_t iterations, const state::value* from, state::value* saved) {
    torch::manual_seed(5);
    std::vector<double> seen;
    auto step = [&](context&, const std::int64_t& i) {
      seen.push_back(static_cast<double>(i) + torch::rand({}).item<double>());
    };
    rondo::loop l(models{}, optimizers{}, reordered(), step, {.max_iterations = iterations});
    l | make_extension("save", [&](context& ctx) {
      if (from != nullptr) ctx.on<event::restoring>([&] { ctx.load_state_dict(*from); });
      ctx.on<event::training_completed>([&] {
        if (saved != nullptr) *saved = state::clone(ctx.state_dict());
      });
    });
    l.run();
    return seen;
  };
  // From the end of an epoch; inside one, such a range would have to save its order itself.
  const auto unbroken = train(15, nullptr, nullptr);
  for (const std::int64_t k : {5, 10}) {
    state::value saved;
    auto both = train(k, nullptr, &saved);
    const auto rest = train(15, &saved, nullptr);
    both.insert(both.end(), rest.begin(), rest.end());
    REQUIRE(both == unbroken);
  }
}

namespace {

/// Runs a counting loop, from a state if there is one, and gives the state at its end.
state::value continued(loop_options options, const state::value* from, state::load_options load = {},
                       run_result* result = nullptr) {
  auto l = counting_loop(4, std::move(options));
  state::value saved;
  l | make_extension("losses", [](context& ctx) {
        ctx.on<event::iteration_completed>([&ctx] { ctx.report("loss", 1.0); });
      }).at_priority(priority::writer);
  l | make_extension("save", [&](context& ctx) {
    if (from != nullptr) ctx.on<event::restoring>([&, from, load] { ctx.load_state_dict(*from, load); });
    ctx.on<event::training_completed>([&] { saved = state::clone(ctx.state_dict()); });
  });
  const auto ended = l.run();
  if (result != nullptr) *result = ended;
  return saved;
}

trigger patient(std::int64_t patience, trigger limit = never()) {
  return early_stopping({.monitor = "loss", .patience = patience, .check = every(1_iterations), .limit = limit});
}

}  // namespace

TEST_CASE("a stop trigger that is new, or another one, begins anew with a warning", "[loop][resume][memory]") {
  const auto without = continued({.max_iterations = 3}, nullptr);
  run_result result;
  static_cast<void>(continued({.max_iterations = 20, .stop_trigger = patient(2)}, &without, {}, &result));
  CHECK(result.iteration == 6);  // the first check sets the best, the second and third are no better

  const auto timed = continued({.max_iterations = 3, .stop_trigger = time_interval(std::chrono::hours(1))}, nullptr);
  captured_stderr told;
  static_cast<void>(continued({.max_iterations = 20, .stop_trigger = patient(2)}, &timed, {}, &result));
  CHECK(result.iteration == 6);
  CHECK(contains(told.text(), "the stop trigger ''loss' without improvement"));
  CHECK(contains(told.text(), "begins anew"));
  CHECK(contains(message_of<state_error>([&] {
                   static_cast<void>(
                       continued({.max_iterations = 20, .stop_trigger = patient(2)}, &timed, {.strict_memory = true}));
                 }),
                 "rondo.stop_trigger"));
}

TEST_CASE("what an extension's trigger remembers of another kind is let go", "[loop][resume][memory]") {
  const auto run = [](trigger when, std::int64_t iterations, const state::value* from, state::value* saved) {
    auto l = counting_loop(4, {.max_iterations = iterations});
    std::vector<std::int64_t> fired;
    l | make_extension("acts", [&](context& ctx) {
          ctx.when_due([&] { fired.push_back(ctx.iteration()); });
        }).triggered(std::move(when));
    l | make_extension("save", [&](context& ctx) {
      if (from != nullptr) ctx.on<event::restoring>([&, from] { ctx.load_state_dict(*from); });
      ctx.on<event::training_completed>([&] {
        if (saved != nullptr) *saved = state::clone(ctx.state_dict());
      });
    });
    l.run();
    return fired;
  };
  using both = std::vector<std::int64_t>;
  state::value saved;
  static_cast<void>(run(every(1_epochs), 5, nullptr, &saved));
  captured_stderr told;
  CHECK(run(every(1_epochs) || once(true), 9, &saved, nullptr) == both{6, 8});
  CHECK(contains(told.text(), "'acts' begins anew"));
  static_cast<void>(run(time_interval(std::chrono::hours(1)), 5, nullptr, &saved));
  CHECK(run(once(), 9, &saved, nullptr) == both{6});
  CHECK(contains(told.text(), "which was 'every 3600 s'"));
}

TEST_CASE("the memory of a value trigger is that of its key", "[loop][resume][memory]") {
  const auto run = [](const std::string& key, std::int64_t iterations, const state::value* from, state::value* saved) {
    auto l = counting_loop(4, {.max_iterations = iterations});
    std::vector<std::int64_t> fired;
    l | make_extension("losses", [](context& ctx) {
          ctx.on<event::iteration_completed>([&ctx] {
            ctx.report("small", 1.0);
            ctx.report("large", 9.0);
          });
        }).at_priority(priority::writer);
    l | make_extension("acts", [&](context& ctx) {
          ctx.when_due([&] { fired.push_back(ctx.iteration()); });
        }).triggered(min_value(key, every(1_iterations)));
    l | make_extension("save", [&](context& ctx) {
      if (from != nullptr) ctx.on<event::restoring>([&, from] { ctx.load_state_dict(*from); });
      ctx.on<event::training_completed>([&] {
        if (saved != nullptr) *saved = state::clone(ctx.state_dict());
      });
    });
    l.run();
    return fired;
  };
  state::value saved;
  CHECK(run("small", 3, nullptr, &saved) == std::vector<std::int64_t>{1});
  CHECK(run("small", 6, &saved, nullptr).empty());
  CHECK(run("large", 6, &saved, nullptr) == std::vector<std::int64_t>{4});
}

TEST_CASE("goals are those of the program that runs now", "[loop][resume][goals]") {
  run_result result;
  SECTION("more patience") {
    const auto stopped = continued({.max_iterations = 50, .stop_trigger = patient(2)}, nullptr, {}, &result);
    CHECK(result.iteration == 3);
    static_cast<void>(continued({.max_iterations = 50, .stop_trigger = patient(2)}, &stopped, {}, &result));
    CHECK(result.iteration == 3);
    static_cast<void>(continued({.max_iterations = 50, .stop_trigger = patient(5)}, &stopped, {}, &result));
    CHECK(result.iteration == 6);
  }
  SECTION("a later limit") {
    const auto limited = [](epochs n) { return patient(1000, every(n)); };
    const auto stopped = continued({.max_iterations = 50, .stop_trigger = limited(2_epochs)}, nullptr, {}, &result);
    CHECK(result.iteration == 8);
    static_cast<void>(continued({.max_iterations = 50, .stop_trigger = limited(3_epochs)}, &stopped, {}, &result));
    CHECK(result.iteration == 12);
  }
  SECTION("more patience beside a trigger of time") {
    const auto timed = [](std::int64_t patience) { return patient(patience) || time_interval(std::chrono::hours(8)); };
    const auto stopped = continued({.max_iterations = 50, .stop_trigger = timed(2)}, nullptr, {}, &result);
    CHECK(result.iteration == 3);
    static_cast<void>(continued({.max_iterations = 50, .stop_trigger = timed(5)}, &stopped, {}, &result));
    CHECK(result.iteration == 6);
  }
  SECTION("more epochs of a stop trigger") {
    const auto stopped = continued({.stop_trigger = every(2_epochs)}, nullptr, {}, &result);
    CHECK(result.iteration == 8);
    static_cast<void>(continued({.stop_trigger = every(2_epochs)}, &stopped, {}, &result));
    CHECK(result.iteration == 8);
    static_cast<void>(continued({.stop_trigger = every(5_epochs)}, &stopped, {}, &result));
    CHECK(result.iteration == 20);
  }
}

TEST_CASE("a range whose size depends on the epoch is resumed where it was", "[loop][resume]") {
  // Epoch e has 2 + e % 3 batches, and says so.
  struct changing : ranges::view_interface<changing> {
    void set_epoch(std::int64_t e) { size_now = 2 + e % 3; }
    [[nodiscard]] auto begin() const { return ranges::views::iota(std::int64_t{0}, size_now).begin(); }
    [[nodiscard]] auto end() const { return ranges::views::iota(std::int64_t{0}, size_now).end(); }
    [[nodiscard]] std::size_t size() const { return static_cast<std::size_t>(size_now); }
    std::int64_t size_now = 2;
  };
  const auto train = [](std::int64_t iterations, const state::value* from, state::value* saved) {
    journal seen;
    auto step = [&](context&, const std::int64_t& i) { seen.push_back(std::to_string(i)); };
    rondo::loop l(models{}, optimizers{}, changing(), step, {.max_iterations = iterations});
    l | make_extension("save", [&](context& ctx) {
      if (from != nullptr) ctx.on<event::restoring>([&, from] { ctx.load_state_dict(*from); });
      ctx.on<event::epoch_completed>([&](const auto& e) {
        seen.push_back("epoch " + std::to_string(e.epoch) + " at " + std::to_string(ctx.iteration()));
      });
      ctx.on<event::training_completed>([&, saved] {
        if (saved != nullptr) *saved = state::clone(ctx.state_dict());
      });
    });
    l.run();
    return seen;
  };
  const auto unbroken = train(18, nullptr, nullptr);
  CHECK(std::count(unbroken.begin(), unbroken.end(), "epoch 6 at 18") == 1);
  for (std::int64_t k = 1; k < 18; ++k) {
    INFO("taken up after iteration " << k);
    state::value saved;
    auto both = train(k, nullptr, &saved);
    const auto rest = train(18, &saved, nullptr);
    both.insert(both.end(), rest.begin(), rest.end());
    CHECK(both == unbroken);
  }
}

TEST_CASE("a state of pytorch-pfn-extras over an empty range is an error that says so", "[loop][resume]") {
  auto saved = continued({.max_iterations = 3}, nullptr);
  state::dict ppe;
  for (const auto& [key, value] : saved.as<state::dict>())
    if (key.str() != "rondo") ppe.insert_or_assign(key, value);
  auto step = [](context&, const std::int64_t&) {};
  rondo::loop l(models{}, optimizers{}, ranges::views::iota(std::int64_t{0}, std::int64_t{0}), step,
                {.max_iterations = 9});
  l | make_extension("load", [&](context& ctx) { ctx.on<event::restoring>([&] { ctx.load_state_dict(ppe); }); });
  CHECK(contains(message_of<option_error>([&] { l.run(); }), "batches"));
}

}  // namespace resume_test

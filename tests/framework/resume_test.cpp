// A training that is taken up again computes what one that was never interrupted computes.

#include "rondo/loop/loop.hpp"

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim.h>
#include <torch/types.h>

#include <list>
#include <range/v3/view/generate_n.hpp>
#include <range/v3/view/iota.hpp>
#include <string>
#include <vector>

#include "rondo/data/data.hpp"
#include "rondo/event/early_stopping.hpp"
#include "rondo/event/value_trigger.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"
#include "support/small_loops.hpp"

namespace resume_test {

using namespace rondo;
using namespace rondo::literals;
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
                  {.max_iterations = iterations, .accumulate = 3});
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
                  {.max_iterations = iterations, .accumulate = accumulate});
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

}  // namespace resume_test

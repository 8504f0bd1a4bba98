#include "rondo/extensions/lr_scheduler.hpp"

#include <torch/nn/modules/linear.h>
#include <torch/optim.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <range/v3/view/filter.hpp>
#include <range/v3/view/iota.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "rondo/error.hpp"
#include "rondo/extensions/call.hpp"
#include "rondo/extensions/evaluator.hpp"
#include "rondo/extensions/log_report.hpp"
#include "support/bare_loop.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"
#include "support/temporary_directory.hpp"

namespace ext_lr_scheduler_test {

using namespace rondo;
using namespace rondo::literals;
using namespace rondo::testing;

namespace {

using rates = std::vector<double>;

double lr_of(const torch::optim::Optimizer& optimizer, std::size_t group = 0) {
  return optimizer.param_groups().at(group).options().get_lr();
}

/// Appends the learning rate of every iteration to `seen`.
auto noting(rates& seen) {
  return [&seen](context& ctx, int) { seen.push_back(lr_of(ctx.optimizer())); };
}

std::shared_ptr<torch::optim::Optimizer> sgd(double lr) {
  return std::make_shared<torch::optim::SGD>(torch::nn::Linear(1, 1)->parameters(), torch::optim::SGDOptions(lr));
}

/// A loop of `optimizers` in which nothing is learned, `length` iterations per epoch.
template <class Step>
loop loop_of(optimizers all, int length, Step step, loop_options options) {
  return loop(models{}, std::move(all), ranges::views::ints(0, length), std::move(step), std::move(options));
}

const auto nothing = [](context&, int) {};

/// An optimizer of somebody's own, whose options know no learning rate.
class without_lr : public torch::optim::Optimizer {
 public:
  struct own_options : torch::optim::OptimizerCloneableOptions<own_options> {};
  without_lr()
      : Optimizer({torch::optim::OptimizerParamGroup({torch::zeros(1)}, std::make_unique<own_options>())},
                  std::make_unique<own_options>()) {}
  torch::Tensor step(LossClosure) override { return {}; }
};

/// A schedule that every iteration and every epoch has its part in.
schedule eventful() {
  return schedules::chained(
      {schedules::warm_up(5_iterations, schedules::cosine(2.5_epochs, 0.001), 0.1), schedules::step(0.3_epochs, 0.8),
       schedules::reduce_on_plateau(
           {.monitor = "loss", .factor = 0.5, .patience = 0, .cooldown = 1, .check = every(3_iterations)})});
}

}  // namespace

TEST_CASE("a schedule takes effect from the first iteration on, and from each iteration to the next",
          "[extension][lr_scheduler]") {
  rates seen;
  auto l = bare_loop(4, noting(seen), {.max_iterations = 7});
  l | lr_scheduler(schedules::step(2_iterations, 0.5));
  l.run();
  CHECK(seen == rates{0.1, 0.1, 0.05, 0.05, 0.025, 0.025, 0.0125});
}

TEST_CASE("the learning rate of the iteration is reported, before logs and after evaluators",
          "[extension][lr_scheduler]") {
  const temporary_directory out;
  rates reported;
  rates logged;
  auto l = bare_loop(2, [](context&, int) {}, {.max_epochs = 2, .out = out.path()});
  l | call(every(1_iterations), [&](context& ctx) { reported.push_back(ctx.observed("lr")); }) | log_report() |
      lr_scheduler(schedules::step(1_iterations, 0.5)) | make_extension("note", [&](context& ctx) {
        ctx.on<extensions::log_entry>([&](const auto& e) { logged.push_back(e.values.at("lr").number()); });
      });
  l.run();
  CHECK(reported == rates{0.1, 0.05, 0.025, 0.0125});
  CHECK(logged == rates{(0.1 + 0.05) / 2, (0.025 + 0.0125) / 2});
}

TEST_CASE("a function of the progress is a schedule", "[extension][lr_scheduler]") {
  rates seen;
  rates details;
  auto l = bare_loop(4, noting(seen), {.max_epochs = 2});
  l | lr_scheduler([&](const schedules::progress& p) {
    details.push_back(p.epoch_detail());
    return p.iteration < 3 ? 1.0 : 2.0 + static_cast<double>(p.epoch);
  });
  l.run();
  CHECK(seen == rates{0.1, 0.1, 0.1, 0.2, 0.1 * 3, 0.1 * 3, 0.1 * 3, 0.1 * 3});
  CHECK(details == rates{0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2});
}

TEST_CASE("every group of every optimizer has its own base learning rate", "[extension][lr_scheduler]") {
  auto first = sgd(0.1);
  auto second = sgd(0.01);
  const auto parameters = torch::nn::Linear(1, 1)->parameters();
  first->add_param_group(
      torch::optim::OptimizerParamGroup(parameters, std::make_unique<torch::optim::SGDOptions>(0.4)));
  std::map<std::string, double> reported;
  const auto note = call(every(1_iterations), [&](context& ctx) {
    reported.clear();
    ctx.reported().for_each([&](const std::string& key, const observation& o) { reported[key] = o.value(); });
  });

  SECTION("all of them") {
    auto l = loop_of({{"a", first}, {"b", second}}, 4, nothing, {.max_iterations = 3});
    l | lr_scheduler(schedules::step(2_iterations, 0.5)) | note;
    l.run();
    CHECK(reported == std::map<std::string, double>{{"lr/a", 0.05}, {"lr/a/1", 0.2}, {"lr/b", 0.005}});
    CHECK(lr_of(*first) == 0.05);
    CHECK(lr_of(*first, 1) == 0.2);
    CHECK(lr_of(*second) == 0.005);
  }
  SECTION("a schedule for each") {
    auto l = loop_of({{"a", first}, {"b", second}}, 4, nothing, {.max_iterations = 3});
    l | lr_scheduler(schedules::step(2_iterations, 0.5), {.optimizers = {"b"}}).named("slow") |
        lr_scheduler(schedules::constant(2), {.optimizers = {"a"}, .key = ""}) | note;
    l.run();
    CHECK(reported == std::map<std::string, double>{{"lr/b", 0.005}});
    CHECK(lr_of(*first) == 0.2);
    CHECK(lr_of(*second) == 0.005);
  }
  SECTION("of a single optimizer") {
    auto l = loop_of(first, 4, nothing, {.max_iterations = 3});
    l | lr_scheduler(schedules::step(2_iterations, 0.5), {.key = "rate"}) | note;
    l.run();
    CHECK(reported == std::map<std::string, double>{{"rate", 0.05}, {"rate/1", 0.2}});
  }
}

TEST_CASE("a group that is added during training is scheduled from then on", "[extension][lr_scheduler]") {
  auto optimizer = sgd(0.1);
  auto l = loop_of(optimizer, 4,
                   [&](context& ctx, int) {
                     if (ctx.iteration() != 1) return;
                     const auto parameters = torch::nn::Linear(1, 1)->parameters();
                     optimizer->add_param_group(
                         torch::optim::OptimizerParamGroup(parameters, std::make_unique<torch::optim::SGDOptions>(1)));
                   },
                   {.max_iterations = 3});
  l | lr_scheduler(schedules::step(1_iterations, 0.5));
  l.run();
  CHECK(lr_of(*optimizer) == 0.0125);
  CHECK(lr_of(*optimizer, 1) == 0.125);
}

TEST_CASE("every optimizer that has a learning rate can be scheduled", "[extension][lr_scheduler]") {
  const auto parameters = [] { return torch::nn::Linear(1, 1)->parameters(); };
  using namespace torch::optim;
  const std::vector<std::shared_ptr<Optimizer>> all = {std::make_shared<SGD>(parameters(), SGDOptions(1)),
                                                       std::make_shared<Adam>(parameters(), AdamOptions(1)),
                                                       std::make_shared<AdamW>(parameters(), AdamWOptions(1)),
                                                       std::make_shared<RMSprop>(parameters(), RMSpropOptions(1)),
                                                       std::make_shared<Adagrad>(parameters(), AdagradOptions(1)),
                                                       std::make_shared<LBFGS>(parameters(), LBFGSOptions(1))};
  for (const auto& optimizer : all) {
    auto l = loop_of(optimizer, 4, nothing, {.max_iterations = 1});
    l | lr_scheduler(schedules::step(1_iterations, 0.5));
    l.run();
    CHECK(lr_of(*optimizer) == 0.5);
  }
}

TEST_CASE("with a trigger the learning rate changes only when that fires", "[extension][lr_scheduler]") {
  rates seen;
  rates reported;
  auto l = bare_loop(3, noting(seen), {.max_iterations = 8});
  l | lr_scheduler(schedules::linear(1, 0, 4_epochs)).triggered(every(1_epochs)) |
      call(every(1_iterations), [&](context& ctx) { reported.push_back(ctx.observed("lr")); });
  l.run();
  CHECK(seen == rates{0.1, 0.1, 0.1, 0.1 * 0.75, 0.1 * 0.75, 0.1 * 0.75, 0.05, 0.05});
  CHECK(reported == seen);
}

TEST_CASE("a plateau is judged by what evaluators have reported in the same iteration", "[extension][lr_scheduler]") {
  rates seen;
  const std::vector<double> losses = {5, 4, 4, 4, 3};
  std::size_t evaluations = 0;
  auto l = bare_loop(2, noting(seen), {.max_epochs = 5});
  const std::vector<int> one_batch = {0};
  l | lr_scheduler(schedules::reduce_on_plateau({.factor = 0.5, .patience = 0})) |
      evaluator(one_batch, [&](context& ctx, int) { ctx.report("loss", losses[evaluations++]); });
  l.run();
  CHECK(seen == rates{0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.025, 0.025});
}

TEST_CASE("a resumed training has the learning rates of the unbroken one, wherever it was interrupted",
          "[extension][lr_scheduler][resume]") {
  struct recorded {
    rates trained;
    rates reported;
  };
  const auto train = [](std::int64_t iterations, double program_lr, std::optional<trigger> when,
                        const state::value* from, std::optional<state::value>* saved) {
    recorded r;
    auto optimizer = sgd(program_lr);
    auto l = loop_of(optimizer, 4,
                     [&](context& ctx, int) {
                       r.trained.push_back(lr_of(ctx.optimizer()));
                       ctx.report("loss", std::abs(std::sin(static_cast<double>(ctx.iteration()))));
                     },
                     {.max_iterations = iterations});
    auto scheduler = lr_scheduler(eventful());
    if (when) scheduler.triggered(*when);
    l | scheduler | call(every(1_iterations), [&](context& ctx) { r.reported.push_back(ctx.observed("lr")); });
    if (from != nullptr) l | restore_state(*from);
    if (saved != nullptr) l | keep_state(iterations, *saved);
    l.run();
    return r;
  };
  for (const auto& when : {std::optional<trigger>(), std::optional<trigger>(every(1_epochs)),
                           std::optional<trigger>(every(3_iterations) || every(1_epochs))}) {
    INFO((when ? when->str() : "every iteration"));
    const auto unbroken = train(18, 0.1, when, nullptr, nullptr);
    REQUIRE(std::set<double>(unbroken.trained.begin(), unbroken.trained.end()).size() > 4);
    for (std::int64_t k = 1; k < 18; ++k) {
      INFO("after iteration " << k);
      std::optional<state::value> saved;
      const auto first = train(k, 0.1, when, nullptr, &saved);
      const auto second = train(18, 77.0, when, &saved.value(), nullptr);
      auto trained = first.trained;
      trained.insert(trained.end(), second.trained.begin(), second.trained.end());
      auto reported = first.reported;
      reported.insert(reported.end(), second.reported.begin(), second.reported.end());
      REQUIRE(trained == unbroken.trained);
      REQUIRE(reported == unbroken.reported);
    }
  }
}

TEST_CASE("a scheduler that is new in a resumed training begins with the learning rates of the snapshot",
          "[extension][lr_scheduler][resume]") {
  std::optional<state::value> saved;
  auto before = bare_loop(4, [](context&, int) {}, {.max_iterations = 2});
  before | keep_state(2, saved);
  before.run();
  rates seen;
  auto after = bare_loop(4, noting(seen), {.max_iterations = 4});
  after | restore_state(*saved) | lr_scheduler(schedules::step(3_iterations, 0.5));
  after.run();
  CHECK(seen == rates{0.1, 0.05});
}

TEST_CASE("a state of other optimizers or groups is refused by who asks for it", "[extension][lr_scheduler][resume]") {
  const auto kept_of = [](std::shared_ptr<torch::optim::Optimizer> optimizer) {
    std::optional<state::value> kept;
    auto l = loop_of(optimizer, 4, nothing, {.max_iterations = 1});
    l | lr_scheduler(schedules::constant()) | keep_state(1, kept);
    l.run();
    return kept.value();
  };
  auto kept = kept_of(sgd(0.1));
  const auto refused = [&] {
    return message_of<state_error>([&] {
      auto l = loop_of(sgd(0.1), 4, nothing, {.max_iterations = 2});
      l | lr_scheduler(schedules::constant()) | restore_state(kept, {.strict_memory = true});
      l.run();
    });
  };
  auto& memory = kept.as<state::dict>()["extensions"].as<state::dict>()["lr_scheduler"].as<state::dict>()["extension"];
  SECTION("another number of groups") {
    memory.as<state::dict>()["base"] = state::dict{{"main", state::list{0.1, 0.2}}};
    const auto message = refused();
    CHECK(contains(message, "extensions.lr_scheduler"));
    CHECK(contains(message, "expected 1 learning rates"));
  }
  SECTION("another name") {
    memory.as<state::dict>()["lr"] = state::dict{{"other", state::list{0.1}}};
    CHECK(contains(refused(), "there are: other"));
  }
}

TEST_CASE("mistakes are told before training", "[extension][lr_scheduler]") {
  bool trained = false;
  const auto refused = [&](optimizers all, lr_scheduler_options options) {
    const auto message = message_of<option_error>([&] {
      auto l = loop_of(std::move(all), 4, [&](context&, int) { trained = true; }, {.max_iterations = 1});
      l | lr_scheduler(schedules::constant(), std::move(options));
      l.run();
    });
    CHECK_FALSE(trained);
    return message;
  };
  CHECK(contains(refused(sgd(1), {.optimizers = {"generator"}}), "one of: main"));
  CHECK(contains(refused(optimizers{}, {}), "without an optimizer"));
  CHECK(contains(refused(std::make_shared<without_lr>(), {}), "get_lr"));
}

TEST_CASE("a learning rate that makes no sense ends training", "[extension][lr_scheduler]") {
  for (const double bad : {-1.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    std::int64_t iterations = 0;
    auto l = bare_loop(4, [&](context&, int) { ++iterations; }, {.max_iterations = 9});
    l | lr_scheduler([&](const schedules::progress& p) { return p.iteration == 3 ? bad : 1.0; });
    const auto message = message_of<option_error>([&] { l.run(); });
    CHECK(contains(message, "after 3 iterations"));
    CHECK(iterations == 3);
  }
}

TEST_CASE("in a stream, epochs are counted as soon as their length is known, and their ends always",
          "[extension][lr_scheduler]") {
  rates seen;
  const auto stream = [](rates& to, schedule s) {
    auto numbers = ranges::views::ints(0, 3) | ranges::views::filter([](int) { return true; });
    auto l = loop(models{}, sgd(0.1), numbers, noting(to), {.max_epochs = 2});
    l | lr_scheduler(std::move(s));
    l.run();
  };
  stream(seen, schedules::step(1_epochs, 0.5));
  CHECK(seen == rates{0.1, 0.1, 0.1, 0.05, 0.05, 0.05});
  seen.clear();
  CHECK(contains(message_of<option_error>([&] { stream(seen, schedules::cosine(2_epochs)); }), "unknown"));
  CHECK(seen.size() == 1);
}

TEST_CASE("somebody else who changes the learning rate is told about, once", "[extension][lr_scheduler]") {
  rates seen;
  std::string text;
  {
    const captured_stderr captured;
    auto l = bare_loop(4, noting(seen), {.max_iterations = 4});
    l | lr_scheduler(schedules::constant()) |
        call(every(1_iterations), [](context& ctx) { ctx.optimizer().param_groups()[0].options().set_lr(0.7); });
    l.run();
    text = captured.text();
  }
  CHECK(seen == rates{0.1, 0.7, 0.7, 0.7});
  CHECK(contains(text, "somebody else"));
  CHECK(text.find("somebody else") == text.rfind("somebody else"));
}

}  // namespace ext_lr_scheduler_test

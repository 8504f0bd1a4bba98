#include "rondo/extensions/schedules.hpp"

#include <cmath>
#include <fstream>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "rondo/error.hpp"
#include "rondo/report/observations.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"
#include "support/python.hpp"
#include "support/temporary_directory.hpp"

namespace ext_schedules_test {

using namespace rondo;
using namespace rondo::literals;
using namespace rondo::testing;
using nlohmann::json;
using schedules::progress;

namespace {

constexpr double first_base = 0.1;
constexpr double second_base = 0.03;
constexpr std::int64_t steps = 60;
constexpr std::int64_t many_steps = 1000;

/// A schedule, and the expression that makes Python's for the optimizer `o`.
struct schedule_case {
  std::string python;
  schedule ours;
};

/// With every `n` in the unit that `n` makes.
template <class Unit>
std::vector<schedule_case> cases(Unit n) {
  using namespace schedules;
  return {
      {"ConstantLR(o, factor=0.25, total_iters=7)", constant(0.25, n(7))},
      {"StepLR(o, 6)", step(n(6))},
      {"StepLR(o, 1, gamma=0.9)", step(n(1), 0.9)},
      {"MultiStepLR(o, [5, 6, 20], gamma=0.5)", multi_step({n(5), n(6), n(20)}, 0.5)},
      {"ExponentialLR(o, 0.97)", exponential(0.97, n(1))},
      {"LinearLR(o, 0.2, 0.75, 13)", linear(0.2, 0.75, n(13))},
      {"LinearLR(o, 1.0, 0.0, 59)", linear(1.0, 0.0, n(59))},
      {"PolynomialLR(o, 20)", polynomial(n(20))},
      {"PolynomialLR(o, 50, power=2.5)", polynomial(n(50), 2.5)},
      {"CosineAnnealingLR(o, 59)", cosine(n(59))},
      {"CosineAnnealingLR(o, 59, eta_min=0.002)", cosine(n(59), 0.002)},
      {"CosineAnnealingWarmRestarts(o, 9, eta_min=0.001)", cosine_restarts(n(9), 1, 0.001)},
      {"CosineAnnealingWarmRestarts(o, 5, T_mult=3)", cosine_restarts(n(5), 3)},
      {"OneCycleLR(o, max_lr=[0.1, 0.03], total_steps=60, cycle_momentum=False)", one_cycle(n(60))},
      {"OneCycleLR(o, max_lr=[0.1, 0.03], total_steps=47, pct_start=0.2, anneal_strategy='linear', "
       "div_factor=10, final_div_factor=50, cycle_momentum=False)",
       one_cycle(n(47), {.pct_start = 0.2, .div_factor = 10, .final_div_factor = 50, .anneal = curve::linear})},
      {"OneCycleLR(o, max_lr=[0.1, 0.03], total_steps=50, three_phase=True, cycle_momentum=False)",
       one_cycle(n(50), {.three_phase = true})},
      {"SequentialLR(o, [LinearLR(o, 0.001, 1.0, 10), CosineAnnealingLR(o, 50)], [10])", warm_up(n(10), cosine(n(50)))},
      {"SequentialLR(o, [ConstantLR(o, 0.5, 1000), StepLR(o, 4), ExponentialLR(o, 0.9)], [3, 17])",
       sequential({constant(0.5), step(n(4)), exponential(0.9, n(1))}, {n(3), n(17)})},
      {"ChainedScheduler([LinearLR(o, 0.1, 1.0, 8), StepLR(o, 5, 0.7)])",
       chained({linear(0.1, 1.0, n(8)), step(n(5), 0.7)})},
      {"LambdaLR(o, lambda t: 1 / (1 + t))", [n](const progress& p) { return 1.0 / (1.0 + p.of(n(1))); }},
  };
}

/// The same kinds over many steps.
template <class Unit>
std::vector<schedule_case> long_cases(Unit n) {
  using namespace schedules;
  return {
      {"ConstantLR(o, factor=0.25, total_iters=400)", constant(0.25, n(400))},
      {"StepLR(o, 30, gamma=0.8)", step(n(30), 0.8)},
      {"MultiStepLR(o, [100, 250, 900], gamma=0.5)", multi_step({n(100), n(250), n(900)}, 0.5)},
      {"ExponentialLR(o, 0.999)", exponential(0.999, n(1))},
      {"LinearLR(o, 0.2, 0.75, 800)", linear(0.2, 0.75, n(800))},
      {"PolynomialLR(o, 999, power=1.5)", polynomial(n(999), 1.5)},
      {"CosineAnnealingLR(o, 999, eta_min=0.002)", cosine(n(999), 0.002)},
      {"CosineAnnealingWarmRestarts(o, 100, eta_min=0.001)", cosine_restarts(n(100), 1, 0.001)},
      {"CosineAnnealingWarmRestarts(o, 30, T_mult=2)", cosine_restarts(n(30), 2)},
      {"OneCycleLR(o, max_lr=[0.1, 0.03], total_steps=1000, cycle_momentum=False)", one_cycle(n(1000))},
      {"SequentialLR(o, [LinearLR(o, 0.001, 1.0, 100), CosineAnnealingLR(o, 900)], [100])",
       warm_up(n(100), cosine(n(900)))},
      {"SequentialLR(o, [ConstantLR(o, 0.5, 1000), StepLR(o, 40), ExponentialLR(o, 0.99)], [30, 170])",
       sequential({constant(0.5), step(n(40)), exponential(0.99, n(1))}, {n(30), n(170)})},
      {"ChainedScheduler([LinearLR(o, 0.1, 1.0, 80), StepLR(o, 50, 0.7)])",
       chained({linear(0.1, 1.0, n(80)), step(n(50), 0.7)})},
      {"LambdaLR(o, lambda t: 1 / (1 + t))", [n](const progress& p) { return 1.0 / (1.0 + p.of(n(1))); }},
  };
}

const std::string python_script = R"PY(
import json, sys, torch
from torch.optim import SGD
from torch.optim.lr_scheduler import *

def run(expression, metrics, steps):
    p, q = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    o = SGD([{'params': [p], 'lr': 0.1}, {'params': [q], 'lr': 0.03}], lr=0.1)
    s = eval(expression, globals(), {'o': o})
    lrs = []
    for t in range(getattr(s, 'total_steps', steps)):
        lrs.append([g['lr'] for g in o.param_groups])
        o.step()
        s.step(metrics[t]) if metrics else s.step()
    return lrs

for case in json.load(open(sys.argv[1])):
    case['lrs'] = run(case['python'], [float(m) for m in case.get('metrics', [])], case.get('steps', 60))
    print(json.dumps(case))
)PY";

/// What Python computes: per case, per step, the learning rates of two groups of parameters.
std::vector<std::vector<std::pair<double, double>>> python_lrs(const json& questions) {
  const temporary_directory folder;
  std::ofstream(folder / "cases.json") << questions;
  const auto result = run_python("import warnings; warnings.simplefilter('ignore')\n" + python_script,
                                 {(folder / "cases.json").string()});
  INFO(result.output);
  REQUIRE(result.status == 0);
  std::vector<std::vector<std::pair<double, double>>> all;
  std::istringstream lines(result.output);
  for (std::string line; std::getline(lines, line);)
    all.push_back(json::parse(line).at("lrs").get<std::vector<std::pair<double, double>>>());
  REQUIRE(all.size() == questions.size());
  return all;
}

bool same(double ours, double theirs) { return std::abs(ours - theirs) <= 1e-12 * std::abs(theirs) + 1e-17; }

void require_like_python(std::vector<schedule_case> all, const std::function<progress(std::int64_t)>& at,
                         std::int64_t length = steps) {
  json questions = json::array();
  for (const auto& one : all) questions.push_back({{"python", one.python}, {"steps", length}});
  const auto answers = python_lrs(questions);
  for (std::size_t i = 0; i < all.size(); ++i) {
    INFO(all[i].python);
    REQUIRE(answers[i].size() >= 47);
    for (std::size_t t = 0; t < answers[i].size(); ++t) {
      INFO("step " << t << ", Python has " << answers[i][t].first << " and " << answers[i][t].second);
      const auto p = at(static_cast<std::int64_t>(t));
      const double first = all[i].ours.lr(p, first_base);
      const double second = all[i].ours.lr(p, second_base);
      INFO("we have " << first << " and " << second);
      REQUIRE(same(first, answers[i][t].first));
      REQUIRE(same(second, answers[i][t].second));
    }
  }
}

std::vector<double> rates(schedule s, const std::vector<progress>& where) {
  std::vector<double> all;
  for (const auto& p : where) all.push_back(s.lr(p, 1.0));
  return all;
}

moment moment_after(std::int64_t iteration, const observations& reported) {
  moment now;
  now.iteration = iteration;
  now.observed = &reported;
  return now;
}

template <class F>
std::string refused(F make) {
  return message_of<option_error>([&] { static_cast<void>(make()); });
}

}  // namespace

TEST_CASE("schedules in iterations have the learning rates of Python's after every step",
          "[extension][schedules][python]") {
  const auto n = [](std::int64_t count) { return period(iterations{count}); };
  require_like_python(cases(n), [](std::int64_t t) {
    return progress{.iteration = t, .epoch = t / 8, .iteration_in_epoch = t % 8, .epoch_length = 8};
  });
}

TEST_CASE("after a thousand steps, schedules still have the learning rates of Python's",
          "[extension][schedules][python]") {
  const auto after_iterations = [](std::int64_t t) {
    return progress{.iteration = t, .epoch = t / 8, .iteration_in_epoch = t % 8, .epoch_length = 8};
  };
  const auto in_iterations = [](std::int64_t count) { return period(iterations{count}); };
  require_like_python(long_cases(in_iterations), after_iterations, many_steps);

  auto in_epochs = long_cases([](std::int64_t count) { return period(epochs(count)); });
  std::erase_if(in_epochs, [](const schedule_case& one) { return one.python.starts_with("OneCycleLR"); });
  const auto after_epochs = [](std::int64_t t) {
    return progress{.iteration = t * 8, .epoch = t, .iteration_in_epoch = 0, .epoch_length = 8};
  };
  require_like_python(std::move(in_epochs), after_epochs, many_steps);
}

TEST_CASE("schedules in epochs have the learning rates of Python's at the end of every epoch",
          "[extension][schedules][python]") {
  const auto n = [](std::int64_t count) { return period(epochs(count)); };
  auto all = cases(n);
  // A cycle ends in its last iteration, so its points are not those of a cycle of so many steps.
  std::erase_if(all, [](const schedule_case& one) { return one.python.starts_with("OneCycleLR"); });
  require_like_python(std::move(all), [](std::int64_t t) {
    return progress{.iteration = t * 8, .epoch = t, .iteration_in_epoch = 0, .epoch_length = 8};
  });
}

TEST_CASE("a cycle in epochs is the cycle of as many iterations", "[extension][schedules]") {
  auto in_epochs = schedules::one_cycle(2.5_epochs);
  auto in_iterations = schedules::one_cycle(20_iterations);
  for (std::int64_t t = 0; t < 30; ++t) {
    const progress p{.iteration = t, .epoch = t / 8, .iteration_in_epoch = t % 8, .epoch_length = 8};
    REQUIRE(in_epochs.lr(p, 0.1) == in_iterations.lr(p, 0.1));
  }
  REQUIRE(in_epochs.lr(progress{.iteration = 400, .epoch = 50, .epoch_length = 8}, 0.1) == 0.1 / 25 / 1e4);
}

TEST_CASE("curves in epochs go on inside epochs", "[extension][schedules]") {
  const auto at = [](std::int64_t t) { return progress{t, t / 4, t % 4, 4}; };
  CHECK(rates(schedules::linear(0, 1, 2_epochs), {at(0), at(1), at(2), at(6), at(7), at(8), at(9)}) ==
        std::vector<double>{0, 0.125, 0.25, 0.75, 0.875, 1, 1});
  CHECK(rates(schedules::step(0.5_epochs, 0.5), {at(0), at(1), at(2), at(3), at(4), at(6)}) ==
        std::vector<double>{1, 1, 0.5, 0.5, 0.25, 0.125});
}

TEST_CASE("a multiple that falls between two iterations is reached at the later one, exactly",
          "[extension][schedules]") {
  const auto at = [](std::int64_t t) { return progress{t, t / 100, t % 100, 100}; };
  auto tenths = schedules::step(0.1_epochs, 0.5);
  auto thirds = schedules::step(0.29_epochs, 0.5);
  for (std::int64_t t = 0; t < 1000; ++t) {
    REQUIRE(tenths.lr(at(t), 1.0) == std::pow(0.5, static_cast<double>(t / 10)));
    REQUIRE(thirds.lr(at(t), 1.0) == std::pow(0.5, static_cast<double>(t / 29)));
  }
}

TEST_CASE("what a curve has reached it keeps", "[extension][schedules]") {
  const progress late{.iteration = 1000000, .epoch = 1000, .epoch_length = 1000};
  CHECK(schedules::cosine(10_epochs, 0.002).lr(late, 0.1) == 0.002);
  CHECK(schedules::polynomial(10_epochs, 2.0).lr(late, 0.1) == 0.0);
  CHECK(schedules::polynomial(10_epochs, 0.0).lr(late, 0.1) == 0.0);
  CHECK(schedules::linear(0.1, 0.7, 10_iterations).lr(late, 1.0) == 0.7);
  CHECK(schedules::warm_up(10_iterations).lr(late, 0.1) == 0.1);
  CHECK(schedules::constant(0.25).lr(late, 1.0) == 0.25);
}

TEST_CASE("parts of a sequence count from their milestones, in either unit", "[extension][schedules]") {
  const auto at = [](std::int64_t t) { return progress{t, t / 4, t % 4, 4}; };
  SECTION("milestones in iterations, parts in epochs") {
    auto s = schedules::sequential({schedules::constant(0.5), schedules::linear(0, 1, 2_epochs)}, {6_iterations});
    CHECK(rates(s, {at(5), at(6), at(7), at(13), at(14)}) == std::vector<double>{0.5, 0, 0.125, 0.875, 1});
  }
  SECTION("milestones in epochs, parts in iterations") {
    auto s = schedules::sequential({schedules::constant(0.5), schedules::linear(0, 1, 8_iterations)}, {1.4_epochs});
    CHECK(rates(s, {at(5), at(6), at(7), at(14)}) == std::vector<double>{0.5, 0, 0.125, 1});
  }
  SECTION("one in another") {
    auto inner = schedules::sequential({schedules::constant(0.5), schedules::constant(0.25)}, {3_iterations});
    auto s = schedules::sequential({schedules::constant(2), inner}, {4_iterations});
    CHECK(rates(s, {at(3), at(4), at(6), at(7)}) == std::vector<double>{2, 0.5, 0.5, 0.25});
  }
}

TEST_CASE("while the length of an epoch is unknown, whole epochs work and fractions are refused",
          "[extension][schedules]") {
  const progress inside{.iteration = 3, .epoch = 0, .iteration_in_epoch = 3};
  CHECK(schedules::step(2_epochs).lr(inside, 1.0) == 1.0);
  CHECK(schedules::multi_step({1_epochs, 2_epochs}).lr(inside, 1.0) == 1.0);
  CHECK(schedules::constant(0.5, 1_epochs).lr(inside, 1.0) == 0.5);
  CHECK(schedules::cosine(1_epochs).lr(progress{}, 1.0) == 1.0);
  for (auto s : {schedules::cosine(1_epochs), schedules::step(0.5_epochs), schedules::one_cycle(1_epochs),
                 schedules::exponential(0.9), schedules::warm_up(2_epochs)}) {
    const auto message = message_of<option_error>([&] { static_cast<void>(s.lr(inside, 1.0)); });
    CHECK(contains(message, "unknown"));
    CHECK(contains(message, "epochs"));
  }
}

TEST_CASE("progress follows from the moment", "[extension][schedules]") {
  moment now{.iteration = 10, .epoch_index = 2, .iteration_in_epoch = 2, .epoch_end = false, .epoch_length = 4};
  CHECK(schedules::progress_at(now).epoch_detail() == 2.5);
  now.iteration_in_epoch = 4;
  now.epoch_end = true;
  CHECK(schedules::progress_at(now).epoch_detail() == 3.0);
  CHECK(schedules::progress_at(now).iteration_in_epoch == 0);
  CHECK(schedules::progress_at(moment()).epoch_detail() == 0.0);
  // An epoch that turns out longer than the first one has not ended before it ends.
  now.epoch_end = false;
  for (now.iteration_in_epoch = 3; now.iteration_in_epoch < 9; ++now.iteration_in_epoch)
    CHECK(schedules::progress_at(now).times(0.25_epochs) == 11);
}

TEST_CASE("the plateau schedule decides as Python's does", "[extension][schedules][python]") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  std::vector<double> falling, wavy, negative, with_nan;
  for (std::int64_t t = 0; t < steps; ++t) {
    const auto x = static_cast<double>(t);
    falling.push_back(1.0 / (1.0 + std::min(x, 15.0)));
    wavy.push_back(std::sin(x * 0.7) + x * 0.01);
    negative.push_back(-5.0 + std::cos(x * 1.3));
    with_nan.push_back(t % 4 == 1 ? nan : 3.0 - std::min(x, 20.0) * 0.1);
  }
  with_nan[0] = nan;
  using options = schedules::reduce_on_plateau_options;
  const std::vector<std::tuple<std::string, options, std::vector<double>>> all = {
      {"ReduceLROnPlateau(o)", {}, falling},
      {"ReduceLROnPlateau(o, patience=2, factor=0.5)", {.factor = 0.5, .patience = 2}, wavy},
      {"ReduceLROnPlateau(o, patience=0, factor=0.5, cooldown=3)",
       {.factor = 0.5, .patience = 0, .cooldown = 3},
       falling},
      {"ReduceLROnPlateau(o, mode='max', patience=2, threshold=0.1)",
       {.patience = 2, .direction = better::higher, .threshold = 0.1},
       wavy},
      {"ReduceLROnPlateau(o, mode='max', patience=3, threshold=0.05, threshold_mode='abs')",
       {.patience = 3, .direction = better::higher, .threshold = 0.05, .relative = false},
       wavy},
      {"ReduceLROnPlateau(o, patience=1, threshold=0.01, threshold_mode='abs', min_lr=0.02)",
       {.patience = 1, .threshold = 0.01, .relative = false, .min_lr = 0.02},
       negative},
      {"ReduceLROnPlateau(o, patience=1, threshold=0.01)", {.patience = 1, .threshold = 0.01}, negative},
      {"ReduceLROnPlateau(o, patience=0, factor=0.01, eps=1e-5)", {.factor = 0.01, .patience = 0, .eps = 1e-5}, wavy},
      {"ReduceLROnPlateau(o, patience=1, factor=0.3)", {.factor = 0.3, .patience = 1}, with_nan},
  };
  json questions = json::array();
  for (const auto& [python, o, metrics] : all) {
    json texts = json::array();
    for (const double m : metrics) texts.push_back(std::isnan(m) ? "nan" : fmt::format("{}", m));
    questions.push_back({{"python", python}, {"metrics", std::move(texts)}});
  }
  const auto answers = python_lrs(questions);
  for (std::size_t i = 0; i < all.size(); ++i) {
    auto [python, o, metrics] = all[i];
    INFO(python);
    o.monitor = "m";
    if (o.direction == better::automatic) o.direction = better::lower;
    o.check = every(1_iterations);
    auto s = schedules::reduce_on_plateau(o);
    for (std::size_t t = 0; t < metrics.size(); ++t) {
      INFO("step " << t);
      const progress p{.iteration = static_cast<std::int64_t>(t)};
      REQUIRE(same(s.lr(p, first_base), answers[i][t].first));
      REQUIRE(same(s.lr(p, second_base), answers[i][t].second));
      observations reported;
      reported.report("m", metrics[t]);
      s.observe(p, moment_after(static_cast<std::int64_t>(t) + 1, reported));
    }
  }
}

TEST_CASE("the plateau schedule looks at the mean between two checks, and remembers it", "[extension][schedules]") {
  const auto make = [] {
    return schedules::chained(
        {schedules::constant(), schedules::reduce_on_plateau(
                                    {.monitor = "loss", .factor = 0.5, .patience = 0, .check = every(3_iterations)})});
  };
  const std::vector<double> values = {3, 3, 3, 9, 0, 0, 3, 4, 0, 0, 0, 0, 1, 1, 1};  // means 3, 3, 2.33, 0, 1
  const auto observe = [&](schedule& s, std::size_t t) {
    observations reported;
    reported.report("loss", values[t]);
    s.observe({}, moment_after(static_cast<std::int64_t>(t) + 1, reported));
    return s.lr({}, 1.0);
  };
  std::vector<double> unbroken;
  auto s = make();
  for (std::size_t t = 0; t < values.size(); ++t) unbroken.push_back(observe(s, t));
  CHECK(unbroken == std::vector<double>{1, 1, 1, 1, 1, .5, .5, .5, .5, .5, .5, .5, .5, .5, .25});

  for (std::size_t k = 0; k < values.size(); ++k) {
    auto first = make();
    for (std::size_t t = 0; t < k; ++t) static_cast<void>(observe(first, t));
    auto second = make();
    second.load_state_dict(first.state_dict());
    auto copy = first;
    for (std::size_t t = k; t < values.size(); ++t) {
      REQUIRE(observe(second, t) == unbroken[t]);
      REQUIRE(observe(copy, t) == unbroken[t]);
    }
  }
}

TEST_CASE("a plateau after a warm-up judges what was trained after it only", "[extension][schedules]") {
  auto s = schedules::warm_up(
      4_iterations,
      schedules::reduce_on_plateau({.monitor = "loss", .factor = 0.5, .patience = 0, .check = every(1_iterations)}));
  const std::vector<double> values = {0, 0, 0, 0, 5, 4, 3, 3};
  std::vector<double> seen;
  for (std::size_t t = 0; t < values.size(); ++t) {
    const progress p{.iteration = static_cast<std::int64_t>(t) + 1};
    observations reported;
    reported.report("loss", values[t]);
    s.observe(p, moment_after(p.iteration, reported));
    seen.push_back(s.lr(p, 1.0));
  }
  CHECK(std::vector<double>(seen.begin() + 3, seen.end()) == std::vector<double>{1, 1, 1, 1, 0.5});
}

TEST_CASE("a schedule's memory that does not fit is refused, and changes nothing", "[extension][schedules]") {
  auto s = schedules::chained({schedules::reduce_on_plateau({.monitor = "loss"}), schedules::constant()});
  const auto before = s.state_dict();
  CHECK_THROWS_AS(s.load_state_dict(state::dict{}), state_error);
  CHECK_THROWS_AS(s.load_state_dict(state::dict{{"parts", state::list{state::dict{}}}}), state_error);
  CHECK_THROWS_AS(s.load_state_dict(state::dict{{"parts", state::list{state::dict{}, state::dict{}}}}), state_error);
  CHECK(state::equal(s.state_dict(), before));
}

TEST_CASE("numbers that make no sense are refused at once", "[extension][schedules]") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  using namespace schedules;
  CHECK(contains(refused([] { return step(0_iterations); }), "step.n"));
  CHECK(contains(refused([] { return step(3_epochs, -1); }), "step.gamma"));
  CHECK(contains(refused([] { return multi_step({}); }), "multi_step.milestones"));
  CHECK(contains(refused([] { return multi_step({0_epochs}); }), "multi_step.milestones"));
  CHECK(contains(refused([=] { return exponential(nan); }), "exponential.gamma"));
  CHECK(contains(refused([] { return linear(-1, 1, 1_epochs); }), "linear.start"));
  CHECK(contains(refused([] { return cosine(1_epochs, -1); }), "cosine.eta_min"));
  CHECK(contains(refused([] { return cosine_restarts(1_epochs, 0); }), "cosine_restarts.multiplier"));
  CHECK(contains(refused([] { return polynomial(1_epochs, -1); }), "polynomial.power"));
  CHECK(contains(refused([] { return constant(-1); }), "constant.factor"));
  CHECK(contains(refused([] { return one_cycle(9_epochs, {.pct_start = 2}); }), "one_cycle.pct_start"));
  CHECK(contains(refused([] { return one_cycle(9_epochs, {.div_factor = 0}); }), "one_cycle.div_factor"));
  CHECK(contains(refused([] { return sequential({constant()}, {1_epochs}); }), "sequential.milestones"));
  CHECK(contains(refused([] {
                   return sequential({constant(), constant(), constant()}, {2_epochs, 1.5_epochs});
                 }),
                 "2 epochs before 1.5 epochs"));
  CHECK(contains(refused([] { return chained({}); }), "chained.parts"));
  CHECK(contains(refused([] { return reduce_on_plateau({.factor = 1}); }), "reduce_on_plateau.factor"));
  CHECK(contains(refused([] { return reduce_on_plateau({.patience = -1}); }), "reduce_on_plateau.patience"));
  CHECK(contains(refused([] { return reduce_on_plateau({.min_lr = -1}); }), "reduce_on_plateau.min_lr"));
}

}  // namespace ext_schedules_test

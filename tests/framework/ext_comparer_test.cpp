#include "rondo/extensions/comparer.hpp"

#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>

#include <stdexcept>
#include <string>

#include "rondo/error.hpp"
#include "support/catch.hpp"
#include "support/small_loops.hpp"
#include "support/temporary_directory.hpp"

namespace ext_comparer_test {

using namespace rondo;
using namespace rondo::literals;
using namespace rondo::testing;

namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// Adds `by` to an element of the weight after iteration `iteration`.
extension perturb(std::int64_t iteration, double by) {
  return make_extension("perturb", [iteration, by](context& ctx) {
    ctx.on<event::iteration_completed>([iteration, by, &ctx] {
      const torch::NoGradGuard no_grad;
      if (ctx.iteration() == iteration) ctx.model().parameters()[0].view(-1)[0].add_(by);
    });
  });
}

/// Draws from LibTorch's generator in every step.
rondo::loop with_dropout(const problem& p, loop_options options) {
  torch::manual_seed(5);
  torch::nn::Sequential model(torch::nn::Linear(1, 6), torch::nn::Dropout(0.5), torch::nn::Linear(6, 3),
                              torch::nn::Linear(3, 1));
  auto optimizer = std::make_shared<torch::optim::Adam>(model->parameters(), torch::optim::AdamOptions(0.05));
  return rondo::loop(model, optimizer, p.batches(), torch::nn::functional::mse_loss, std::move(options));
}

}  // namespace

TEST_CASE("compare: equal trainings are equal, also where they draw random numbers", "[ext][comparer]") {
  const problem p;
  auto a = with_dropout(p, {.max_epochs = 2});
  auto b = with_dropout(p, {.max_epochs = 2});
  const auto result = compare(a, b);
  CHECK(result.equal());
  CHECK(result.points == 16);
  CHECK(result.differences.empty());
  CHECK(contains(result.str(), "16 points: the trainings are equal"));
}

TEST_CASE("compare finds the iteration, the tensor and the element", "[ext][comparer]") {
  const problem p;
  auto a = with_dropout(p, {.max_epochs = 2});
  auto b = with_dropout(p, {.max_epochs = 2});
  b | make_extension("perturb", [](context& ctx) {
    ctx.on<event::iteration_completed>([&ctx] {
      const torch::NoGradGuard no_grad;
      if (ctx.iteration() == 5) ctx.model().named_parameters()["2.weight"][1][4].add_(0.25);
    });
  });
  const auto result = compare(a, b);
  REQUIRE(result.differences.size() == 1);
  const auto& found = result.differences[0];
  CHECK(found.iteration == 5);
  CHECK(found.name == "models.main.2.weight");
  CHECK(found.index == std::vector<std::int64_t>{1, 4});
  CHECK(found.elements == 1);
  CHECK(found.max_difference == Approx(0.25));
  CHECK(found.second - found.first == Approx(0.25));
  CHECK(result.points == 5);
  CHECK_FALSE(result.equal());
  CHECK(contains(result.str(), "after iteration 5, in models.main.2.weight"));
  CHECK(contains(result.str(), "1 of 18 elements differ"));
}

TEST_CASE("compare: tolerances, choice and going on", "[ext][comparer]") {
  const problem p;
  const problem q;
  auto a = p.loop({.max_epochs = 1});
  auto b = q.loop({.max_epochs = 1});
  b | perturb(3, 1e-4);
  SECTION("within the tolerance") {
    const auto result =
        compare(a, b, {.atol = 1.0, .only = [](const std::string& name) { return name.starts_with("models"); }});
    CHECK(result.equal());
    CHECK(result.points == 8);
  }
  SECTION("not beyond the first, but all the same") {
    const auto result = compare(a, b, {.stop_at_first = false, .max_differences = 3});
    CHECK(result.points == 8);
    REQUIRE(result.differences.size() == 3);
    CHECK(result.differences_left_out > 0);
    CHECK(result.differences[0].name == "models.main.weight");
    CHECK(result.differences[1].iteration == 4);
    CHECK(result.differences[1].name == "reports.train/loss");
    CHECK(result.differences[2].name == "gradients.main.weight");
    CHECK(contains(result.str(), "more"));
  }
  SECTION("at other points") {
    const auto result = compare(a, b, {.trigger = every(4_iterations)});
    CHECK(result.points == 1);
    CHECK(result.differences.at(0).iteration == 4);
  }
}

TEST_CASE("compare: other settings, shapes, names and lengths are said clearly", "[ext][comparer]") {
  const problem p;
  const problem q;
  const auto first_of = [](rondo::loop& a, rondo::loop& b, const std::string& name) -> std::string {
    for (const auto& d : compare(a, b).differences)
      if (d.name == name) return d.problem;
    return "nothing";
  };
  auto a = p.loop({.max_epochs = 1});
  SECTION("a setting") {
    static_cast<torch::optim::AdamOptions&>(q.optimizer->param_groups()[0].options()).lr(0.25);
    auto b = q.loop({.max_epochs = 1});
    CHECK(contains(first_of(a, b, "optimizers.main.param_groups.0.lr"), "differ by 0.2"));
  }
  SECTION("a report") {
    auto b = q.loop({.max_epochs = 1});
    b | make_extension("more",
                       [](context& ctx) { ctx.on<event::iteration_completed>([&ctx] { ctx.report("more", 1.0); }); });
    CHECK(contains(first_of(a, b, "reports.more"), "is missing in the first training, 1 in the second"));
  }
  SECTION("shapes and names") {
    auto b = with_dropout(q, {.max_epochs = 1});
    CHECK(contains(first_of(a, b, "models.main.weight"), "a tensor [1, 1] of Float in the first training, missing"));
  }
  SECTION("lengths") {
    auto b = q.loop({.max_iterations = 5});
    const auto result = compare(a, b);
    REQUIRE(result.differences.size() == 1);
    CHECK(result.differences[0].name == "iterations");
    CHECK(result.differences[0].iteration == 6);
    CHECK(contains(result.str(), "the second training ended after iteration 5, the first goes on"));
    CHECK(result.points == 5);
  }
  SECTION("lengths the other way round") {
    auto b = q.loop({.max_iterations = 12});
    const auto result = compare(a, b);
    CHECK(contains(result.str(), "the first training ended after iteration 8, the second goes on"));
  }
}

TEST_CASE("compare: an exception in one is reported, and the other ends", "[ext][comparer]") {
  const problem p;
  const problem q;
  auto a = p.loop({.max_epochs = 3});
  auto b = q.loop({.max_epochs = 3});
  std::int64_t last = 0;
  const auto watch = [&last](context& ctx) {
    ctx.on<event::iteration_completed>([&ctx, &last] { last = ctx.iteration(); });
  };
  const auto fail = [](context& ctx) {
    ctx.on<event::iteration_completed>([&ctx] {
      if (ctx.iteration() == 4) throw std::runtime_error("no more");
    });
  };
  SECTION("the first") {
    a | make_extension("fail", fail);
    b | make_extension("watch", watch);
    const auto result = compare(a, b);
    CHECK(result.first_error == "no more");
    CHECK(result.second_error.empty());
    CHECK_FALSE(result.equal());
    CHECK(contains(result.str(), "the first training ended by an error: no more"));
    CHECK(last == 3);
  }
  SECTION("the second") {
    a | make_extension("watch", watch);
    b | make_extension("fail", fail);
    const auto result = compare(a, b);
    CHECK(result.second_error == "no more");
    CHECK(result.first_error.empty());
    CHECK(last == 4);
  }
}

TEST_CASE("compare refuses options that make no sense", "[ext][comparer]") {
  const problem p;
  const problem q;
  auto a = p.loop({.max_epochs = 1});
  auto b = q.loop({.max_epochs = 1});
  const auto refused = [&](rondo::loop& other, compare_options options) -> std::string {
    try {
      (void)compare(a, other, std::move(options));
      return "nothing";
    } catch (const option_error& e) {
      return e.option();
    }
  };
  CHECK(refused(b, {.rtol = -1.0}) == "rtol");
  CHECK(refused(b, {.atol = -1.0}) == "atol");
  CHECK(refused(b, {.max_differences = 0}) == "max_differences");
  CHECK(refused(a, {}) == "second");
}

}  // namespace ext_comparer_test

#include <ATen/ops/eye.h>
#include <ATen/ops/tensor.h>
#include <c10/core/GradMode.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "rondo/error.hpp"
#include "rondo/event/interval.hpp"
#include "rondo/extensions/call.hpp"
#include "rondo/extensions/evaluator.hpp"
#include "rondo/extensions/metrics.hpp"
#include "support/bare_loop.hpp"
#include "support/catch.hpp"

namespace ext_evaluator_test {

using namespace rondo;
using namespace rondo::literals;
using namespace rondo::testing;
using strings = std::vector<std::string>;

namespace {

using batches = std::vector<data::example>;

/// The model's output is its input, so that the data are the outputs. Batches of 3 and 1.
const batches uneven{{at::tensor({1.0F, 0.0F, 0.0F, 1.0F, 1.0F, 0.0F}).view({3, 2}), at::tensor({0L, 1L, 1L})},
                     {at::tensor({0.0F, 1.0F}).view({1, 2}), at::tensor({1L})}};

at::Tensor first_column(const at::Tensor& output, const at::Tensor&) { return output.select(1, 0).mean(); }

struct identity {
  torch::nn::Linear layer{torch::nn::LinearOptions(2, 2).bias(false)};
  torch::nn::Sequential model{layer, torch::nn::Dropout(0.5)};
  torch::optim::SGD optimizer{model->parameters(), torch::optim::SGDOptions(0.0)};

  identity() {
    c10::AutoGradMode no_gradients(false);
    layer->weight.copy_(at::eye(2));
  }
  loop make_loop(loop_options options = {.max_epochs = 1}) {
    return loop(model, optimizer, uneven, first_column, std::move(options));
  }
};

/// What is there to log after each iteration.
extension observe(std::map<std::string, double>& seen) {
  return make_extension("observe", [&seen](context& ctx) {
    ctx.on<event::iteration_completed>([&seen, &ctx] {
      seen.clear();
      ctx.reported().for_each([&](const std::string& key, const observation& o) { seen[key] = o.value(); });
    });
  });
}

struct metric_base {
  void reset() {}
  void update(const at::Tensor&, const at::Tensor&) {}
};

/// A module within a module, and one in both.
struct nested : torch::nn::Module {
  std::shared_ptr<torch::nn::Module> inner = std::make_shared<torch::nn::Module>();
  torch::nn::Linear frozen{2, 2};
  torch::nn::Linear shared{2, 2};

  nested() {
    register_module("shared", shared);
    register_module("inner", inner);
    inner->register_module("shared", shared);
    inner->register_module("frozen", frozen);
  }
  at::Tensor forward(const at::Tensor& input) { return frozen(shared(input)); }
};

/// Calls back for each batch.
struct probe : metric_base {
  std::function<void(const at::Tensor& output)> look;
  std::string name() const { return "probe"; }
  void update(const at::Tensor& output, const at::Tensor&) { look(output); }
  double compute() const { return 0; }
};

/// Several values with names.
struct column_sums : metric_base {
  at::Tensor sums = at::tensor({0.0F, 0.0F});
  void reset() { sums = at::tensor({0.0F, 0.0F}); }
  void update(const at::Tensor& output, const at::Tensor&) { sums = sums + output.sum(0); }
  std::map<std::string, at::Tensor> compute() const { return {{"left", sums[0]}, {"right", sums[1]}}; }
};

}  // namespace

TEST_CASE("evaluator: loss and accuracy are means over samples, not over batches", "[extensions][evaluator]") {
  identity with;
  std::map<std::string, double> seen;
  auto l = with.make_loop();
  l | evaluator(uneven, metrics::accuracy()) | observe(seen);
  l.run();
  CHECK(seen.at("validation/accuracy") == 0.75);     // 2 of 3 and 1 of 1
  CHECK(seen.at("validation/loss") == Approx(0.5));  // 2/3 over 3 samples, 0 over one
  CHECK(seen.contains("train/loss"));
  CHECK(seen.size() == 3);
}

TEST_CASE("evaluator runs after each epoch, or when its trigger says", "[extensions][evaluator]") {
  identity with;
  std::vector<std::int64_t> at;
  auto l = with.make_loop({.max_epochs = 3});
  const auto note = [&](context& ctx, const data::example&) {
    if (at.empty() || at.back() != ctx.iteration()) at.push_back(ctx.iteration());
  };
  SECTION("default") {
    l | evaluator(uneven, note);
    l.run();
    CHECK(at == std::vector<std::int64_t>{2, 4, 6});
  }
  SECTION("another trigger") {
    l | evaluator(uneven, note).triggered(every(5_iterations));
    l.run();
    CHECK(at == std::vector<std::int64_t>{5});
  }
}

TEST_CASE("evaluator: every pass starts anew", "[extensions][evaluator]") {
  identity with;
  std::vector<double> left;
  auto l = with.make_loop({.max_epochs = 2});
  l | evaluator(uneven, metrics::accuracy(), column_sums()) | call(every(1_epochs), [&](context& ctx) {
    CHECK(ctx.observed("validation/accuracy") == 0.75);
    CHECK(ctx.observed("validation/loss") == Approx(0.5));
    left.push_back(ctx.observed("validation/left"));
    CHECK(ctx.observed("validation/right") == 2.0);
  });
  l.run();
  CHECK(left == std::vector<double>{2.0, 2.0});
}

TEST_CASE("metrics::loss with another function", "[extensions][evaluator][metrics]") {
  identity with;
  std::map<std::string, double> seen;
  auto l = with.make_loop();
  const auto zero = [](const at::Tensor& output, const at::Tensor&) { return output.sum() * 0.0; };
  SECTION("beside the loop's") {
    l | evaluator(uneven, metrics::loss(torch::nn::functional::cross_entropy, "entropy")) | observe(seen);
    l.run();
    CHECK(seen.at("validation/loss") == Approx(0.5));
    // Right answers cost log(1 + 1/e), the wrong one log(1 + e).
    CHECK(seen.at("validation/entropy") == Approx((3 * std::log1p(std::exp(-1.0)) + std::log1p(std::exp(1.0))) / 4));
  }
  SECTION("in place of the loop's") {
    l | evaluator(uneven, metrics::loss(zero)) | observe(seen);
    l.run();
    CHECK(seen.at("validation/loss") == 0.0);
  }
}

TEST_CASE("metrics::accuracy counts every position, and refuses shapes that do not fit", "[extensions][metrics]") {
  metrics::accuracy accuracy;
  accuracy.reset();
  CHECK(std::isnan(accuracy.compute()));
  // One sample, two classes, three positions: classes 0, 1, 1.
  accuracy.update(at::tensor({1.0F, 0.0F, 0.0F, 0.0F, 1.0F, 1.0F}).view({1, 2, 3}),
                  at::tensor({0L, 0L, 1L}).view({1, 3}));
  CHECK(accuracy.compute() == Approx(2.0 / 3.0));
  accuracy.reset();
  accuracy.update(at::tensor({0.0F, 1.0F}).view({1, 2}), at::tensor({1L}));
  CHECK(accuracy.compute() == 1.0);
  CHECK_THROWS_AS(accuracy.update(at::tensor({0.0F, 1.0F}), at::tensor({1L, 0L})), error);
  CHECK_THROWS_AS(accuracy.update(at::tensor({0.0F, 1.0F}).view({2, 1}), at::tensor({1L})), error);
}

TEST_CASE("evaluator: the model evaluates without gradients, and every submodule gets its mode back",
          "[extensions][evaluator]") {
  auto model = std::make_shared<nested>();
  const auto inner = model->inner;
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.0));
  loop l(model, optimizer, uneven, first_column, {.max_epochs = 1});
  bool fails = false;
  SECTION("success") { fails = false; }
  SECTION("failure") { fails = true; }

  std::vector<bool> modes;
  const auto note_modes = [&] {
    modes = {model->is_training(), inner->is_training(), model->shared->is_training(), model->frozen->is_training()};
  };
  l | make_extension("freeze", [&](context& ctx) {
    ctx.on<event::training_started>([&] {
      inner->eval();
      model->frozen->train();
      model->shared->eval();
    });
    ctx.on_end<event::evaluation_completed>([&] {
      note_modes();
      CHECK(c10::GradMode::is_enabled());
    });
  });
  int looked = 0;
  probe metric;
  metric.look = [&](const at::Tensor& output) {
    ++looked;
    CHECK_FALSE(output.requires_grad());
    for (const auto& m : model->modules()) CHECK_FALSE(m->is_training());
    if (fails) throw std::domain_error("metric");
  };
  l | evaluator(uneven, metric);
  if (fails)
    CHECK_THROWS_AS(l.run(), std::domain_error);
  else
    l.run();
  CHECK(looked == (fails ? 1 : 2));
  CHECK(modes == std::vector<bool>{true, false, false, true});
  note_modes();
  CHECK(modes == std::vector<bool>{true, false, false, true});
}

TEST_CASE("evaluator announces its beginning and its end in any case", "[extensions][evaluator]") {
  identity with;
  auto l = with.make_loop();
  bool fails = false;
  SECTION("success") { fails = false; }
  SECTION("failure") { fails = true; }
  strings events;
  l | make_extension("listener", [&](context& ctx) {
    ctx.on<event::evaluation_started>(
        [&](const event::evaluation_started& e) { events.push_back("started " + e.name); });
    ctx.on_end<event::evaluation_completed>([&](const event::evaluation_completed& e) -> task<> {
      auto work = [] {};
      co_await ctx.offload(work);
      CHECK(e.seconds >= 0.0);
      events.push_back((e.error ? "failed " : "completed ") + e.name);
      if (!e.error) CHECK(ctx.observed("test/x") == 1.0);
    });
  });
  l | evaluator(uneven, {.name = "test"}, [&](context& ctx, const data::example&) {
    ctx.report("x", 1);
    events.push_back("batch");
    if (fails) throw std::domain_error("no");
  });
  if (fails) {
    CHECK_THROWS_AS(l.run(), std::domain_error);
    CHECK(events == strings{"started test", "batch", "failed test"});
  } else {
    l.run();
    CHECK(events == strings{"started test", "batch", "batch", "completed test"});
  }
}

TEST_CASE("evaluator: the first error wins over one at the closing event", "[extensions][evaluator]") {
  identity with;
  auto l = with.make_loop();
  l | make_extension("listener", [](context& ctx) {
    ctx.on_end<event::evaluation_completed>([] { throw std::range_error("second"); });
  });
  SECTION("failure") {
    l | evaluator(uneven, [](context&, const data::example&) { throw std::domain_error("first"); });
    CHECK_THROWS_AS(l.run(), std::domain_error);
  }
  SECTION("success") {
    l | evaluator(uneven, metrics::accuracy());
    CHECK_THROWS_AS(l.run(), std::range_error);
  }
}

TEST_CASE("evaluator: a function reports what it likes, averaged over the batches that had it",
          "[extensions][evaluator]") {
  const std::vector<int> numbers{0, 1, 2, 3};
  std::map<std::string, double> seen;
  auto l = bare_loop(2, [](context& ctx, int) { ctx.report("x", 7); }, {.max_epochs = 1});
  l | evaluator(numbers, [](context& ctx, const int& i) {
    CHECK(ctx.reported().find("x") == nullptr);
    CHECK_FALSE(c10::GradMode::is_enabled());
    if (i < 2) ctx.report("x", i == 0 ? 100 : 0);
    ctx.report("weighted", i, i == 3 ? 3.0 : 1.0);
  }) | observe(seen);
  l.run();
  CHECK(seen ==
        std::map<std::string, double>{{"x", 7}, {"validation/x", 50}, {"validation/weighted", (0 + 1 + 2 + 9) / 6.0}});
}

TEST_CASE("evaluator: without a weight, a batch counts as many times as it has samples", "[extensions][evaluator]") {
  identity with;
  std::map<std::string, double> seen;
  auto l = with.make_loop();
  l | evaluator(uneven, [](context& ctx, auto& batch) { ctx.report("first", batch.data.select(1, 0).mean()); }) |
      observe(seen);
  l.run();
  CHECK(seen.at("validation/first") == Approx(0.5));
}

TEST_CASE("two evaluators with names of their own", "[extensions][evaluator]") {
  identity with;
  std::map<std::string, double> seen;
  auto l = with.make_loop();
  SECTION("work side by side") {
    l | evaluator(batches{uneven[0]}, {.name = "a"}, metrics::accuracy()) |
        evaluator(batches{uneven[1]}, {.name = "b"}, metrics::accuracy()) | observe(seen);
    l.run();
    CHECK(seen.at("a/accuracy") == Approx(2.0 / 3.0));
    CHECK(seen.at("b/accuracy") == 1.0);
  }
  SECTION("must not share one") {
    l | evaluator(uneven) | evaluator(uneven);
    CHECK_THROWS_AS(l.run(), option_error);
  }
}

TEST_CASE("evaluator: misuse is an error that says what to do", "[extensions][evaluator]") {
  identity with;
  SECTION("metrics where there is no model to ask, before training") {
    int steps = 0;
    auto l = bare_loop(1, [&](context&, int) { ++steps; }, {.max_epochs = 1});
    l | evaluator(uneven, metrics::accuracy());
    CHECK_THROWS_AS(l.run(), option_error);
    CHECK(steps == 0);
  }
  SECTION("two metrics of one name") {
    CHECK_THROWS_AS(evaluator(uneven, metrics::accuracy(), metrics::accuracy()), option_error);
  }
  SECTION("no name") { CHECK_THROWS_AS(evaluator(uneven, {.name = ""}), option_error); }
  SECTION("no batch") {
    auto l = with.make_loop();
    l | evaluator(batches());
    try {
      l.run();
      FAIL("no error");
    } catch (const option_error& e) {
      CHECK(e.option() == "batches");
      CHECK(e.found().find("validation") != std::string::npos);
    }
  }
}

static_assert(metrics::metric<metrics::accuracy> && metrics::metric<metrics::loss> && metrics::metric<column_sums>);
static_assert(!metrics::metric<int> && !metrics::metric<metric_base>);
static_assert(!extensions::evaluation_step<decltype([](context&, int&) -> task<> { co_return; }), int>);

}  // namespace ext_evaluator_test

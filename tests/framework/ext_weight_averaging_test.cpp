#include "rondo/extensions/weight_averaging.hpp"

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "rondo/error.hpp"
#include "rondo/extensions/evaluator.hpp"
#include "rondo/extensions/update_batch_norm.hpp"
#include "support/bare_loop.hpp"
#include "support/catch.hpp"
#include "support/small_loops.hpp"

namespace ext_weight_averaging_test {

using namespace rondo;
using namespace rondo::literals;
using namespace rondo::testing;

namespace {

at::Tensor weights_of(const torch::nn::Linear& model) {
  return torch::cat({model->weight.flatten(), model->bias}).detach().clone();
}

at::Tensor average_in(const averaged_weights& averages) {
  const auto all = averages.weights();
  return torch::cat({all.at("weight").as<at::Tensor>().flatten(), all.at("bias").as<at::Tensor>()}).clone();
}

/// What the model's weights are after every update.
extension note_weights(const problem& p, std::vector<at::Tensor>& seen) {
  return make_extension(
      "note", [&](context& ctx) { ctx.on<event::update_completed>([&] { seen.push_back(weights_of(p.model)); }); });
}

at::Tensor expected_ema(const std::vector<at::Tensor>& seen, double decay) {
  auto average = seen.front().to(at::kDouble);
  for (std::size_t i = 1; i < seen.size(); ++i) average = decay * average + (1 - decay) * seen[i].to(at::kDouble);
  return average;
}

}  // namespace

TEST_CASE("ema follows the weights after every update", "[ext][ema]") {
  const problem p;
  std::vector<at::Tensor> seen;
  const auto averages = ema({.decay = 0.9});
  auto l = p.loop({.max_iterations = 20});
  l | averages | note_weights(p, seen);
  l.run();
  REQUIRE(averages.count() == 20);
  CHECK(at::allclose(average_in(averages).to(at::kDouble), expected_ema(seen, 0.9), 1e-5, 1e-6));
  CHECK_FALSE(at::allclose(average_in(averages), weights_of(p.model), 1e-3));
  const torch::nn::Linear other(1, 1);
  averages.apply_to(other);
  CHECK(at::equal(weights_of(other), average_in(averages)));
}

TEST_CASE("ema warms up, and counts every n-th update", "[ext][ema]") {
  const problem p;
  std::vector<at::Tensor> seen;
  const auto averages = ema({.decay = 0.99, .warm_up = true, .every = 2});
  auto l = p.loop({.max_iterations = 7});
  l | averages | note_weights(p, seen);
  l.run();
  REQUIRE(averages.count() == 3);
  auto average = seen[1];
  average = (2.0 / 11.0) * average + (9.0 / 11.0) * seen[3];
  average = (3.0 / 12.0) * average + (9.0 / 12.0) * seen[5];
  CHECK(at::allclose(average_in(averages), average, 1e-5, 1e-6));
}

TEST_CASE("swa is the mean of the weights at the ends of epochs from its start on", "[ext][swa]") {
  const problem p;
  std::vector<at::Tensor> seen;
  const auto averages = swa({.start = 2_epochs});
  auto l = p.loop({.max_epochs = 4});
  l | averages | note_weights(p, seen);
  l.run();
  REQUIRE(averages.count() == 3);
  CHECK(at::allclose(average_in(averages), (seen[15] + seen[23] + seen[31]) / 3, 1e-5, 1e-6));
}

TEST_CASE("evaluators see the averages, training and its state do not", "[ext][ema]") {
  const problem p;
  const problem plain;
  const auto averages = ema({.decay = 0.9});
  std::vector<bool> average_seen;
  std::vector<bool> weights_saved;
  at::Tensor trained;
  auto l = p.loop({.max_epochs = 2});
  const auto look = [&](context& ctx, const auto&) {
    average_seen.push_back(at::equal(weights_of(p.model), average_in(averages)));
    const auto state = ctx.state_dict();
    const auto& saved = state.at("models").at("main");
    weights_saved.push_back(at::equal(saved.get<at::Tensor>("bias"), trained));
    ctx.report("x", 1.0);
  };
  l | averages | evaluator(std::vector<int>{1, 2}, look) | make_extension("note", [&](context& ctx) {
    ctx.on<event::update_completed>([&] { trained = p.model->bias.detach().clone(); });
  });
  l.run();
  plain.loop({.max_epochs = 2}).run();
  CHECK(average_seen == std::vector<bool>(4, true));
  CHECK(weights_saved == std::vector<bool>(4, true));
  CHECK(p.digest() == plain.digest());
}

TEST_CASE("an evaluation that fails leaves the trained weights in the model", "[ext][ema]") {
  const problem p;
  const problem plain;
  auto l = p.loop({.max_epochs = 2});
  const auto fail = [](context&, const auto&) { throw std::runtime_error("broken"); };
  l | ema({.decay = 0.9}) | evaluator(std::vector<int>{1}, fail);
  REQUIRE_THROWS_WITH(l.run(), "broken");
  plain.loop({.max_epochs = 1}).run();
  CHECK(p.digest() == plain.digest());
}

TEST_CASE("a resumed average equals the unbroken one, at every iteration", "[ext][ema][resume]") {
  for (const bool exponential : {true, false}) {
    const auto make = [&] {
      return exponential ? ema({.decay = 0.9, .warm_up = true, .every = 3})
                         : swa({.start = 5_iterations, .every = 2_iterations});
    };
    const problem whole;
    const auto unbroken = make();
    auto l = whole.loop({.max_iterations = 12});
    l | unbroken;
    l.run();
    for (std::int64_t cut = 1; cut < 12; ++cut) {
      std::optional<state::value> kept;
      const problem first;
      auto a = first.loop({.max_iterations = cut});
      a | make() | keep_state(cut, kept);
      a.run();
      const problem second;
      const auto resumed = make();
      auto b = second.loop({.max_iterations = 12});
      b | resumed | restore_state(*kept);
      b.run();
      INFO("cut at " << cut);
      REQUIRE(resumed.count() == unbroken.count());
      REQUIRE(at::equal(average_in(resumed), average_in(unbroken)));
    }
  }
}

TEST_CASE("buffers are averaged, integers are copied, and the state has the layout of Python's AveragedModel",
          "[ext][ema]") {
  torch::nn::Sequential model(torch::nn::Linear(2, 3), torch::nn::BatchNorm1d(3));
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  const auto averages = ema({.decay = 0.5});
  std::optional<state::value> kept;
  auto step = [&](context&, const int&) -> at::Tensor { return model->forward(torch::rand({4, 2})).pow(3).sum(); };
  loop l(models(model), optimizers(optimizer), ranges::views::ints(0, 3), step, {.max_epochs = 1});
  l | averages | keep_state(3, kept);
  l.run();
  const auto& main = kept->at("extensions").at("ema").at("extension").at("averages").at("main");
  CHECK(main.get<at::Tensor>("n_averaged").item<std::int64_t>() == 3);
  CHECK(main.get<at::Tensor>("module.1.num_batches_tracked").item<std::int64_t>() == 3);
  CHECK(main.get<at::Tensor>("module.1.running_var").sizes() == at::IntArrayRef{3});
  CHECK_FALSE(at::equal(main.get<at::Tensor>("module.1.running_mean"), model->named_buffers()["1.running_mean"]));
}

TEST_CASE("averages of what cannot be are refused", "[ext][ema]") {
  CHECK_THROWS_WITH(ema({.decay = 1.0}), Catch::Contains("decay"));
  CHECK_THROWS_WITH(ema({.every = 0}), Catch::Contains("every"));
  CHECK_THROWS_WITH(swa({.every = 0_iterations}), Catch::Contains("0"));
  const auto averages = ema();
  CHECK_THROWS_AS(averages.weights(), option_error);
  const problem p;
  auto l = p.loop({.max_iterations = 1});
  l | ema({.models = {"generator"}});
  CHECK_THROWS_WITH(l.run(), Catch::Contains("generator") && Catch::Contains("main"));
}

TEST_CASE("an average that has been in another loop begins anew", "[ext][ema]") {
  const auto train = [](const problem& p, const averaged_weights& averages) {
    auto l = p.loop({.max_iterations = 6});
    l | averages;
    l.run();
    return average_in(averages);
  };
  const problem first;
  const problem second;
  const problem the_same;
  const auto averages = ema({.decay = 0.9});
  train(first, averages);
  CHECK(at::equal(train(second, averages), train(the_same, ema({.decay = 0.9}))));
  CHECK(averages.count() == 6);
}

TEST_CASE("batch normalisation that a model has twice keeps its momentum", "[ext][update_batch_norm]") {
  torch::nn::BatchNorm1d norm(torch::nn::BatchNormOptions(2).momentum(0.25));
  torch::nn::Sequential model(norm, torch::nn::ReLU(), norm);
  { const extensions::fresh_statistics statistics(*model); }
  CHECK(norm->options.momentum() == 0.25);
}

}  // namespace ext_weight_averaging_test

// What the loop can do with precision and gradients: clipping, mixed precision, parameter groups, recomputation.
#include <ATen/autocast_mode.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim.h>
#include <torch/utils.h>

#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <regex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "rondo/error.hpp"
#include "rondo/loop/autocast.hpp"
#include "rondo/loop/checkpointed.hpp"
#include "rondo/loop/grad_scaler.hpp"
#include "rondo/loop/loop.hpp"
#include "rondo/loop/parameter_groups.hpp"
#include "support/bare_loop.hpp"
#include "support/catch.hpp"
#include "support/python.hpp"
#include "support/small_loops.hpp"

namespace loop_techniques_test {

using namespace rondo;
using namespace rondo::testing;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

/// One update of the weights (1, 2, 3, 4) with the gradient (1, -2, 3, `last`) and lr 1.
struct one_update {
  explicit one_update(loop_options options, double last = -4.0) {
    model->weight.data().copy_(torch::tensor({1.0, 2.0, 3.0, 4.0}).view({1, 4}));
    torch::optim::SGD optimizer(model->parameters(), 1.0);
    auto step = [&](context&, const int&) -> at::Tensor {
      return model->forward(torch::tensor({1.0, -2.0, 3.0, last}).view({1, 4}).to(at::kFloat)).sum();
    };
    options.max_iterations = 1;
    loop l(models(model), optimizers(optimizer), ranges::views::ints(0, 1), step, std::move(options));
    const auto before = model->weight.detach().clone();
    l | make_extension("note", [&](context& ctx) {
      ctx.on<event::update_completed>([&] { ++updates; });
      ctx.on<event::iteration_completed>([&] {
        if (const auto* n = ctx.reported().find("train/grad_norm")) norm = n->value();
        if (const auto* n = ctx.reported().find("train/update_skipped")) skipped = n->value();
        if (const auto* n = ctx.reported().find("train/loss_scale")) scale = n->value();
      });
    });
    l.run();
    change = before - model->weight.detach();
  }
  torch::nn::Linear model{torch::nn::LinearOptions(4, 1).bias(false)};
  at::Tensor change;
  int updates = 0;
  std::optional<double> norm;
  std::optional<double> skipped;
  std::optional<double> scale;
};

/// A regression in which low precision shows.
double final_loss(std::optional<at::ScalarType> autocast, std::vector<at::ScalarType>* seen = nullptr) {
  torch::manual_seed(5);
  torch::nn::Sequential model(torch::nn::Linear(4, 32), torch::nn::Tanh(), torch::nn::Linear(32, 1));
  torch::optim::Adam optimizer(model->parameters(), 0.03);
  const auto x = torch::rand({64, 4});
  const auto y = x.sum(1, true).sin();
  auto step = [&](context&, const int&) -> at::Tensor {
    const auto output = model->forward(x);
    if (seen != nullptr) seen->push_back(output.scalar_type());
    return torch::mse_loss(output.to(at::kFloat), y);
  };
  loop l(models(model), optimizers(optimizer), ranges::views::ints(0, 300), step,
         {.max_epochs = 1, .autocast = autocast});
  l.run();
  return torch::mse_loss(model->forward(x), y).item<double>();
}

}  // namespace

TEST_CASE("gradients are clipped by any norm, which is reported with and without clipping", "[loop][clipping]") {
  const one_update largest({.clip_grad_norm = 2.0, .grad_norm_type = infinity});
  CHECK(largest.norm == 4.0);
  CHECK(largest.change.abs().max().item<double>() == Approx(2.0));
  const one_update sum({.clip_grad_norm = 5.0, .grad_norm_type = 1.0});
  CHECK(sum.norm == 10.0);
  CHECK(sum.change.abs().sum().item<double>() == Approx(5.0));
  const one_update reported({.report_grad_norm = true});
  CHECK(*reported.norm == Approx(std::sqrt(30.0)));
  CHECK(reported.change.norm().item<double>() == Approx(std::sqrt(30.0)));
  CHECK_FALSE(one_update({}).norm);
  CHECK_THROWS_WITH(one_update({.grad_norm_type = 0.0}), Catch::Contains("grad_norm_type"));
}

TEST_CASE("gradients that are not finite are used, skipped or an error", "[loop][clipping]") {
  const one_update used({}, infinity);
  CHECK(used.updates == 1);
  CHECK_FALSE(used.change.isfinite().all().item<bool>());
  const one_update skipped({.on_non_finite_gradients = non_finite_gradients::skip}, infinity);
  CHECK(skipped.updates == 0);
  CHECK(skipped.skipped == 1.0);
  CHECK(skipped.change.abs().max().item<double>() == 0.0);
  CHECK(one_update({.on_non_finite_gradients = non_finite_gradients::skip}).skipped == 0.0);
  CHECK_THROWS_WITH(one_update({.on_non_finite_gradients = non_finite_gradients::fail}, infinity),
                    Catch::Contains("'weight' of model 'main'"));
}

TEST_CASE("training in bfloat16 comes close to float32, and autocast ends with the step", "[loop][autocast]") {
  std::vector<at::ScalarType> seen;
  const double exact = final_loss(std::nullopt);
  const double low = final_loss(at::kBFloat16, &seen);
  CHECK(seen == std::vector<at::ScalarType>(300, at::kBFloat16));
  CHECK(exact < 0.01);
  CHECK(low == Approx(exact).margin(0.005));
  CHECK_FALSE(at::autocast::is_cpu_enabled());
}

TEST_CASE("an autocast scope nests, ends with an exception, and refuses what does not exist", "[loop][autocast]") {
  const auto product = [] { return torch::mm(torch::ones({2, 2}), torch::ones({2, 2})).scalar_type(); };
  try {
    const autocast_scope outer(at::kCPU, at::kBFloat16);
    {
      const autocast_scope none(at::kCPU, std::nullopt);
      const autocast_scope inner(at::kCPU, at::kBFloat16);
      CHECK(product() == at::kBFloat16);
    }
    CHECK(product() == at::kBFloat16);
    throw 1;
  } catch (int) {
  }
  CHECK(product() == at::kFloat);
  CHECK_THROWS_WITH(autocast_scope(at::kCPU, at::kHalf), Catch::Contains("Half on cpu"));
  CHECK_THROWS_WITH(one_update({.autocast = at::kHalf}), Catch::Contains("autocast"));
}

TEST_CASE("the scale goes the way of Python's", "[loop][grad_scaler]") {
  // The algorithm of torch.cuda.amp.GradScaler on the same row of finite and infinite gradients.
  const auto python = run_python(R"(
import torch
scale, tracker = torch.tensor(1024.0), 0
for bad in [0,0,0,1,0,0,1,1,0,0,0,0,0,0]:
    if bad: scale, tracker = scale * 0.25, 0
    else:
        tracker += 1
        if tracker == 3: scale, tracker = scale * 4.0, 0
    print(f'{scale.item():g}', tracker, end=';')
)");
  grad_scaler scaler({.initial_scale = 1024.0, .growth_factor = 4.0, .backoff_factor = 0.25, .growth_interval = 3});
  const auto parameter = torch::ones({2}).requires_grad_();
  torch::optim::SGD optimizer({parameter}, 0.5);
  std::string ours;
  double steps = 0;
  for (const int bad : {0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0}) {
    optimizer.zero_grad();
    scaler.scale(parameter.sum() * (bad ? infinity : 1.0)).backward();
    CHECK(scaler.step(optimizer) == !bad);
    steps += bad ? 0 : 1;
    scaler.update();
    const auto state = scaler.state_dict();
    ours += fmt::format("{:g} {};", state.at("scale").number(), state.at("_growth_tracker").as<std::int64_t>());
  }
  CHECK(python.output == ours);
  CHECK(parameter[0].item<double>() == 1.0 - 0.5 * steps);

  grad_scaler other;
  other.load_state_dict(scaler.state_dict());
  CHECK(state::equal(state::value(other.state_dict()), state::value(scaler.state_dict())));
  auto wrong = scaler.state_dict();
  wrong.insert_or_assign("scale", -1.0);
  CHECK_THROWS_WITH(other.load_state_dict(wrong), Catch::Contains("scale"));
  CHECK(other.factor() == scaler.factor());
}

TEST_CASE("misuse of a grad scaler is an error", "[loop][grad_scaler]") {
  grad_scaler scaler;
  const auto parameter = torch::ones({2}).requires_grad_();
  torch::optim::SGD optimizer({parameter}, 0.5);
  CHECK_THROWS_WITH(scaler.update(), Catch::Contains("without a step"));
  scaler.scale(parameter.sum()).backward();
  scaler.unscale(optimizer);
  CHECK(at::equal(parameter.grad(), torch::ones({2})));
  CHECK_THROWS_WITH(scaler.unscale(optimizer), Catch::Contains("twice"));
  CHECK(scaler.step(optimizer));
  CHECK_THROWS_WITH(scaler.step(optimizer), Catch::Contains("twice"));
  CHECK_THROWS_AS(grad_scaler({.growth_factor = 1.0}), option_error);
  CHECK_THROWS_AS(grad_scaler({.backoff_factor = 1.0}), option_error);
}

TEST_CASE("the loop scales, clips true gradients, skips what overflows, and saves the scale", "[loop][grad_scaler]") {
  auto scaler = std::make_shared<grad_scaler>(grad_scaler_options{.initial_scale = 4096.0, .growth_interval = 1});
  const one_update clipped({.clip_grad_norm = 0.5, .scaler = scaler});
  CHECK(*clipped.norm == Approx(std::sqrt(30.0)));
  CHECK(clipped.change.norm().item<double>() == Approx(0.5).epsilon(1e-4));
  CHECK(clipped.scale == 4096.0);
  CHECK(scaler->factor() == 8192.0);
  const one_update skipped({.clip_grad_norm = 0.5, .scaler = scaler}, infinity);
  CHECK(skipped.updates == 0);
  CHECK(skipped.skipped == 1.0);
  CHECK(scaler->factor() == 4096.0);

  const problem scaled;
  const problem plain;
  std::optional<state::value> kept;
  auto l = scaled.loop({.max_epochs = 2, .scaler = scaler});
  l | keep_state(5, kept);
  l.run();
  plain.loop({.max_epochs = 2}).run();
  CHECK(scaled.digest() == plain.digest());  // powers of two lose nothing
  CHECK(kept->at("state_objects").at("grad_scaler").get<double>("scale") == 4096.0 * 32);
}

TEST_CASE("parameters are put into groups by name", "[loop][param_groups]") {
  torch::nn::Sequential model(torch::nn::Linear(2, 3), torch::nn::BatchNorm1d(3), torch::nn::Linear(3, 1));
  using options = torch::optim::AdamWOptions;
  const auto groups = param_groups(
      *model, {{"*.bias|1.*", options(0.1).weight_decay(0.0)}, {other_parameters, options(0.2).weight_decay(0.5)}});
  REQUIRE(groups.size() == 2);
  CHECK(groups[0].params().size() == 4);
  CHECK(groups[1].params().size() == 2);
  CHECK(static_cast<const options&>(groups[1].options()).weight_decay() == 0.5);
  CHECK(param_groups(*model, {{std::regex("[02]\\..*"), options(0.1)}, {"1.?*", options(0.1)}}).size() == 2);
  CHECK_THROWS_WITH(param_groups(*model, {{"*.scale", options(0.1)}, {other_parameters, options(0.1)}}),
                    Catch::Contains("'*.scale'") && Catch::Contains("2.weight"));
  CHECK_THROWS_WITH(param_groups(*model, {{"*.bias", options(0.1)}}), Catch::Contains("no rule for '0.weight'"));
  CHECK_THROWS_WITH(param_groups(*model, {{"*", options(0.1)}, {"2.*", options(0.1)}}), Catch::Contains("both"));
}

TEST_CASE("what is frozen stays as it is, weight decay and momentum or not", "[loop][freeze]") {
  torch::nn::Sequential model(torch::nn::Linear(2, 3), torch::nn::Linear(3, 1));
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9).weight_decay(0.1));
  const auto train = [&] {
    optimizer.zero_grad();
    model->forward(torch::ones({1, 2})).sum().backward();
    optimizer.step();
  };
  train();
  CHECK(freeze(model, "0.*") == 2);
  const auto parameters = model->parameters();
  const auto frozen = parameters[0].detach().clone();
  const auto trained = parameters[2].detach().clone();
  train();
  CHECK(at::equal(parameters[0], frozen));
  CHECK_FALSE(at::equal(parameters[2], trained));
  CHECK(unfreeze(model, "0.*") == 2);
  train();
  CHECK_FALSE(at::equal(parameters[0], frozen));
  CHECK_THROWS_WITH(freeze(model, "encoder.*"), Catch::Contains("encoder.*") && Catch::Contains("0.weight"));
}

namespace {

struct outcome {
  at::Tensor value;
  std::vector<at::Tensor> gradients;
  std::vector<at::Tensor> buffers;
  at::Tensor next_random;
};

/// Two forward passes, and a backward one, of blocks with dropout and batch normalisation.
outcome train_block(bool again, bool low_precision) {
  torch::manual_seed(11);
  const auto make = [] {
    return torch::nn::Sequential(torch::nn::Linear(6, 8), torch::nn::BatchNorm1d(8), torch::nn::ReLU(),
                                 torch::nn::Dropout(0.5), torch::nn::Linear(8, 6));
  };
  auto first = make();
  auto second = make();
  const auto x = torch::rand({16, 6}).requires_grad_();
  outcome result;
  for (int i = 0; i < 2; ++i) {
    const autocast_scope precision(at::kCPU, low_precision ? std::optional(at::kBFloat16) : std::nullopt);
    auto y = again ? checkpointed(first, x) : first->forward(x);
    y = again ? checkpointed(second, y.to(at::kFloat)) : second->forward(y.to(at::kFloat));
    result.value = y.to(at::kFloat).square().sum();
  }
  result.value.backward();
  result.gradients.push_back(x.grad());
  for (const auto& block : {first, second}) {
    for (const auto& p : block->parameters()) result.gradients.push_back(p.grad());
    for (const auto& b : block->buffers()) result.buffers.push_back(b);
  }
  result.next_random = torch::rand({3});
  return result;
}

}  // namespace

TEST_CASE("a recomputed block gives the same bits", "[loop][checkpointed]") {
  for (const bool low_precision : {false, true}) {
    const auto with = train_block(true, low_precision);
    const auto without = train_block(false, low_precision);
    CHECK(at::equal(with.value, without.value));
    for (std::size_t i = 0; i < with.gradients.size(); ++i) CHECK(at::equal(with.gradients[i], without.gradients[i]));
    for (std::size_t i = 0; i < with.buffers.size(); ++i) CHECK(at::equal(with.buffers[i], without.buffers[i]));
    CHECK(at::equal(with.next_random, without.next_random));
  }
}

TEST_CASE("recomputation takes several tensors, and parameters alone", "[loop][checkpointed]") {
  const auto a = torch::rand({3}).requires_grad_();
  const auto b = torch::rand({3});
  const auto [sum, product] =
      checkpointed([](const at::Tensor& x, const at::Tensor& y) { return std::tuple(x + y, x * y); }, a, b);
  (sum.sum() + 2 * product.sum()).backward();
  CHECK(at::allclose(a.grad(), 1 + 2 * b));
  CHECK_FALSE(b.grad().defined());

  torch::nn::Linear model(3, 1);
  checkpointed(model, b).sum().backward();
  CHECK(at::equal(model->weight.grad().flatten(), b));
  const torch::NoGradGuard no_grad;
  CHECK_FALSE(checkpointed(model, b).requires_grad());
}

TEST_CASE("a recomputed block keeps nothing but its inputs", "[loop][checkpointed]") {
  const auto x = torch::rand({4}).requires_grad_();
  std::vector<c10::weak_intrusive_ptr<c10::StorageImpl>> inner;
  const auto block = [&](const at::Tensor& in) {
    const auto middle = in.exp();  // which exp keeps for its gradient
    inner.emplace_back(middle.storage().getWeakStorageImpl());
    return middle.exp();
  };
  const auto y = checkpointed(block, x);
  REQUIRE(inner.size() == 1);
  CHECK(inner[0].expired());
  const auto kept = block(x);
  CHECK_FALSE(inner[1].expired());
}

TEST_CASE("a parameter that an optimizer has twice is scaled and clipped once", "[loop][clipping]") {
  const torch::nn::Linear model(torch::nn::LinearOptions(4, 1).bias(false));
  const std::vector<at::Tensor> twice{model->weight, model->weight};
  torch::optim::SGD optimizer(twice, 1.0);
  at::Tensor gradient;
  const auto step = [&](context&, const int&) -> at::Tensor { return 3 * model->weight.sum(); };
  loop l(models(model), optimizers(optimizer), ranges::views::ints(0, 1), step,
         {.max_iterations = 1, .clip_grad_norm = 3.0, .scaler = std::make_shared<grad_scaler>()});
  l | make_extension("note", [&](context& ctx) {
    ctx.on<event::update_completed>([&] { gradient = model->weight.grad().clone(); });
  });
  l.run();
  REQUIRE(gradient.defined());
  CHECK(at::allclose(gradient, at::full({1, 4}, 1.5)));
}

TEST_CASE("a recomputed block that has batch normalisation twice leaves its momentum", "[loop][checkpointed]") {
  torch::nn::BatchNorm1d norm(torch::nn::BatchNormOptions(2).momentum(0.25));
  torch::nn::Sequential block(norm, torch::nn::ReLU(), norm);
  checkpointed(block, torch::rand({4, 2})).sum().backward();
  CHECK(norm->options.momentum() == 0.25);
}

TEST_CASE("a recomputed block may give integers beside what has gradients", "[loop][checkpointed]") {
  const auto x = torch::tensor({1.0, 3.0, 2.0}).requires_grad_();
  const auto [values, indices] =
      checkpointed([](const at::Tensor& in) { return std::tuple(in.square(), in.argsort()); }, x);
  CHECK_FALSE(indices.requires_grad());
  CHECK(at::equal(indices, torch::tensor({0, 2, 1})));
  values.sum().backward();
  CHECK(at::equal(x.grad(), 2 * x.detach()));
}

}  // namespace loop_techniques_test

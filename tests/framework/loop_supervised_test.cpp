// What a model, a loss function and a batch may be.

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/loss.h>
#include <torch/optim/sgd.h>
#include <torch/types.h>

#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "rondo/extensions.hpp"
#include "rondo/rondo.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"
#include "support/temporary_directory.hpp"

namespace loop_supervised_test {

using namespace rondo;
using rondo::testing::contains;
using rondo::testing::message_of;
using rondo::testing::temporary_directory;
namespace F = torch::nn::functional;
namespace nn = torch::nn;

namespace {

struct net_impl : nn::Module {
  explicit net_impl(double value = 0.1) {
    const torch::NoGradGuard no_grad;
    layer->weight.fill_(value);
    layer->bias.fill_(0);
  }
  at::Tensor forward(const at::Tensor& x) { return layer(x); }

  nn::Linear layer{register_module("layer", nn::Linear(2, 3))};
};
TORCH_MODULE_IMPL(net, net_impl);

struct of_two : nn::Module {
  at::Tensor forward(const at::Tensor& a, const at::Tensor& b) { return layer(a - b); }

  nn::Linear layer{register_module("layer", nn::Linear(2, 3))};
};

using dict_of_tensors = std::map<std::string, at::Tensor>;

struct of_dict : nn::Module {
  at::Tensor forward(const dict_of_tensors& all) { return layer(all.at("a") - all.at("b")); }

  nn::Linear layer{register_module("layer", nn::Linear(2, 3))};
};

struct problem {
  problem() {
    torch::manual_seed(3);
    a = torch::rand({32, 2});
    b = torch::rand({32, 2});
    y = (a.sum(1) > 1).to(torch::kLong);
  }
  [[nodiscard]] auto batches() const { return data::tensor_dataset(a, y) | data::batch(8); }

  at::Tensor a, b, y;
};

/// The sum of all parameters after three epochs, and what an evaluator has measured.
template <class Model, class Batches, class Loss>
std::pair<double, double> train(Model& model, nn::Module& module, const Batches& batches, Loss loss) {
  const temporary_directory out;
  torch::optim::SGD optimizer(module.parameters(), 0.5);
  double measured = 0;
  rondo::loop training(model, optimizer, batches, loss, {.max_epochs = 3, .out = out.path()});
  training | evaluator(batches, metrics::accuracy()) |
      call(every(epochs(3)), [&](context& ctx) { measured = ctx.observed("validation/loss"); });
  training.run();
  double sum = 0;
  for (const auto& p : module.parameters()) sum += p.abs().sum().item<double>();
  return {sum, measured};
}

template <class Loss>
std::pair<double, double> train_with(Loss loss) {
  const problem given;
  net_impl model;
  return train(model, model, given.batches(), loss);
}

}  // namespace

TEST_CASE("a loss may be a function, a callable of any kind, or a module with options", "[loop][supervised]") {
  const auto expected = train_with(F::cross_entropy);
  CHECK(train_with([](const at::Tensor& o, const at::Tensor& t) { return F::cross_entropy(o, t); }) == expected);
  CHECK(train_with([](auto& o, auto& t) { return F::cross_entropy(o, t); }) == expected);
  CHECK(train_with([](auto&& o, auto&& t) { return F::cross_entropy(o, t); }) == expected);
  CHECK(train_with(std::function<at::Tensor(at::Tensor, at::Tensor)>(
            [](at::Tensor o, at::Tensor t) { return F::cross_entropy(o, t); })) == expected);
  CHECK(train_with(nn::CrossEntropyLoss()) == expected);
  CHECK(train_with(nn::CrossEntropyLossImpl()) == expected);
  CHECK(train_with(std::make_shared<nn::CrossEntropyLossImpl>()) == expected);

  const auto smoothed = train_with(nn::CrossEntropyLoss(nn::CrossEntropyLossOptions().label_smoothing(0.2)));
  CHECK(smoothed != expected);
  CHECK(train_with([](auto& o, auto& t) {
          return F::cross_entropy(o, t, F::CrossEntropyFuncOptions().label_smoothing(0.2));
        }) == smoothed);
}

TEST_CASE("a model may be a shared_ptr, a holder, or an object", "[loop][supervised]") {
  const problem given;
  auto pointer = std::make_shared<net_impl>();
  const auto expected = train(pointer, *pointer, given.batches(), F::cross_entropy);
  net holder;
  CHECK(train(holder, *holder, given.batches(), F::cross_entropy) == expected);
  net_impl object;
  CHECK(train(object, object, given.batches(), F::cross_entropy) == expected);
  nn::Sequential sequence(net{});
  CHECK(train(sequence, *sequence, given.batches(), F::cross_entropy) == expected);
  CHECK(evaluate(object, given.batches(), metrics::accuracy())["accuracy"] ==
        evaluate(holder, given.batches(), metrics::accuracy())["accuracy"]);
}

TEST_CASE("models by name may be objects", "[loop][supervised]") {
  net_impl one;
  net two;
  torch::optim::SGD optimizer(one.parameters(), 0.1);
  const temporary_directory out;
  const std::vector<int> batches{1, 2};
  std::vector<nn::Module*> seen;
  auto step = [&](context& ctx, int&) {
    seen = {&ctx.model("one"), &ctx.model("two")};
    // It asks for itself as a shared_ptr.
    CHECK(ctx.model("one").modules().size() == 2);
  };
  rondo::loop training(models{{"one", one}, {"two", two}}, optimizer, batches, step,
                       {.max_epochs = 1, .out = out.path()});
  training.run();
  CHECK(seen == std::vector<nn::Module*>{&one, two.get()});
}

namespace {

struct two_inputs {
  at::Tensor left, right;
};

struct labelled_pair {
  at::Tensor left, right, label;
};

}  // namespace

TEST_CASE("several inputs are several arguments of forward", "[loop][supervised]") {
  const problem given;
  const auto trained_with = [&](const auto& samples) {
    torch::manual_seed(7);
    of_two model;
    return train(model, model, samples | data::batch(8), F::cross_entropy);
  };
  std::vector<labelled_pair> structs;
  std::vector<std::tuple<at::Tensor, at::Tensor, at::Tensor>> tuples;
  std::vector<torch::data::Example<two_inputs, at::Tensor>> examples;
  std::vector<torch::data::Example<std::pair<at::Tensor, at::Tensor>, at::Tensor>> pairs;
  for (std::int64_t i = 0; i < 32; ++i) {
    const auto a = given.a[i], b = given.b[i], y = given.y[i];
    structs.push_back({a, b, y});
    tuples.emplace_back(a, b, y);
    examples.emplace_back(two_inputs{a, b}, y);
    pairs.emplace_back(std::pair(a, b), y);
  }
  const auto expected = trained_with(tuples);
  CHECK(trained_with(structs) == expected);
  CHECK(trained_with(examples) == expected);
  CHECK(trained_with(pairs) == expected);

  torch::manual_seed(7);
  of_dict model;
  std::vector<torch::data::Example<dict_of_tensors, at::Tensor>> dicts;
  for (std::int64_t i = 0; i < 32; i += 8)
    dicts.emplace_back(dict_of_tensors{{"a", given.a.narrow(0, i, 8)}, {"b", given.b.narrow(0, i, 8)}},
                       given.y.narrow(0, i, 8));
  CHECK(train(model, model, dicts, F::cross_entropy) == expected);
}

TEST_CASE("a pair is an input and a target", "[loop][supervised]") {
  const problem given;
  net_impl one, other;
  const auto expected = train(one, one, given.batches(), F::cross_entropy);
  std::vector<std::pair<at::Tensor, at::Tensor>> pairs;
  for (std::int64_t i = 0; i < 32; i += 8) pairs.emplace_back(given.a.narrow(0, i, 8), given.y.narrow(0, i, 8));
  CHECK(train(other, other, pairs, F::cross_entropy) == expected);
}

TEST_CASE("an evaluator has the batches that the model is trained with", "[loop][supervised]") {
  const problem given;
  const temporary_directory out;
  of_two model;
  torch::optim::SGD optimizer(model.parameters(), 0.5);
  const std::vector<std::tuple<at::Tensor, at::Tensor, at::Tensor>> batches{{given.a, given.b, given.y}};
  rondo::loop training(model, optimizer, batches, F::cross_entropy, {.max_epochs = 1, .out = out.path()});
  training | evaluator(given.batches(), metrics::accuracy());
  const auto told = message_of<option_error>([&] { training.run(); });
  CHECK(contains(told, "at::Tensor"));
  CHECK(contains(told, "tuple"));
}

TEST_CASE("a NaN loss is told once, with its iteration", "[loop][supervised]") {
  const problem given;
  const temporary_directory out;
  net_impl model;
  torch::optim::SGD optimizer(model.parameters(), 0.5);
  auto step = [&](context& ctx, const data::example& batch) {
    const auto loss = F::cross_entropy(model.forward(batch.data), batch.target);
    return ctx.iteration() + 1 >= 3 ? loss * std::numeric_limits<double>::quiet_NaN() : loss;
  };
  const rondo::testing::captured_stderr told;
  rondo::loop training(model, optimizer, given.batches(), step, {.max_iterations = 6, .out = out.path()});
  training.run();
  const auto text = told.text();
  CHECK(contains(text, "the loss of iteration 3 is NaN"));
  CHECK(text.find("is NaN") == text.rfind("is NaN"));
}

}  // namespace loop_supervised_test

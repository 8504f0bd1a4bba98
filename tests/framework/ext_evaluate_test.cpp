#include "rondo/extensions/evaluate.hpp"

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/types.h>

#include <map>
#include <string>

#include "rondo/data/data.hpp"
#include "rondo/error.hpp"
#include "rondo/extensions/metrics.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"

namespace ext_evaluate_test {

using namespace rondo;
using rondo::testing::contains;
using rondo::testing::message_of;

namespace {

struct watched_net : torch::nn::Module {
  at::Tensor forward(const at::Tensor& x) {
    trained = trained || is_training() || dropout->is_training();
    gradients = gradients || torch::GradMode::is_enabled();
    if (fails) throw std::runtime_error("broken");
    return layer->forward(dropout->forward(x));
  }

  torch::nn::Linear layer{register_module("layer", torch::nn::Linear(3, 4))};
  torch::nn::Dropout dropout{register_module("dropout", torch::nn::Dropout(0.5))};
  bool trained = false;
  bool gradients = false;
  bool fails = false;
};

struct examples {
  examples() {
    torch::manual_seed(5);
    x = torch::randn({23, 3});
    y = torch::randint(0, 4, {23}, torch::kLong);
  }
  auto batches(std::int64_t n) const { return data::tensor_dataset(x, y) | data::batch(n); }

  at::Tensor x, y;
  std::shared_ptr<watched_net> net = std::make_shared<watched_net>();
};

}  // namespace

TEST_CASE("evaluate gives the same for batches of any size", "[ext][evaluate]") {
  const examples e;
  const auto loss = metrics::loss(torch::nn::functional::cross_entropy);
  const auto whole = evaluate(e.net, e.batches(23), metrics::accuracy(), loss);
  REQUIRE(whole.samples() == 23);
  const auto parts = evaluate(e.net, e.batches(5), metrics::accuracy(), loss);
  CHECK(parts["accuracy"] == whole["accuracy"]);
  CHECK(parts["loss"] == Approx(whole["loss"]));
  REQUIRE(parts.values().size() == 2);
  CHECK(parts.values()[1].first == "loss");
  const auto ahead = evaluate(e.net, e.batches(5) | data::prefetch(2), metrics::accuracy());
  CHECK(ahead["accuracy"] == whole["accuracy"]);

  torch::nn::Linear holder(3, 4);
  CHECK(evaluate(holder, e.batches(4), metrics::top_k_accuracy(4))["top4_accuracy"] == 1.0);
}

TEST_CASE("the model is in evaluation mode, and gets its own modes back", "[ext][evaluate]") {
  const examples e;
  e.net->dropout->eval();
  REQUIRE(e.net->is_training());
  static_cast<void>(evaluate(e.net, e.batches(5), metrics::accuracy()));
  CHECK_FALSE(e.net->trained);
  CHECK_FALSE(e.net->gradients);
  CHECK(e.net->is_training());
  CHECK_FALSE(e.net->dropout->is_training());
  CHECK(torch::GradMode::is_enabled());

  e.net->fails = true;
  CHECK_THROWS_WITH(evaluate(e.net, e.batches(5), metrics::accuracy()), "broken");
  CHECK(e.net->is_training());
  CHECK_FALSE(e.net->dropout->is_training());
  CHECK(torch::GradMode::is_enabled());
}

TEST_CASE("evaluate says what is missing", "[ext][evaluate]") {
  const examples e;
  const auto refused = [](auto f) { return message_of<option_error>([&] { static_cast<void>(f()); }); };
  CHECK(contains(refused([&] { return evaluate(e.net, e.batches(5)); }), "no metrics"));
  CHECK(contains(refused([&] { return evaluate(e.net, e.batches(5) | data::take(0), metrics::accuracy()); }),
                 "no batch"));
  CHECK(contains(refused([&] { return evaluate(e.net, e.batches(5), metrics::loss()); }), "without a function"));
  CHECK(contains(refused([&] { return evaluate(e.net, e.batches(5), metrics::f1(), metrics::f1()); }), "'f1'"));
  const auto result = evaluate(e.net, e.batches(5), metrics::accuracy(), metrics::top_k_accuracy(2));
  const auto message = refused([&] { return result["acuracy"]; });
  CHECK(contains(message, "acuracy"));
  CHECK(contains(message, "accuracy, top2_accuracy"));
}

}  // namespace ext_evaluate_test

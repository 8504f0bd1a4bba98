#include "rondo/extensions/freeze_until.hpp"

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>
#include <torch/types.h>

#include <optional>
#include <string>
#include <vector>

#include "rondo/data/data.hpp"
#include "rondo/event/once.hpp"
#include "rondo/extensions/update_batch_norm.hpp"
#include "rondo/loop/loop.hpp"
#include "rondo/state/digest.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"

namespace ext_freeze_until_test {

using namespace rondo;
using namespace rondo::literals;
using rondo::testing::contains;
using rondo::testing::message_of;

namespace {

struct network : torch::nn::Module {
  at::Tensor forward(const at::Tensor& x) { return head(torch::relu(norm(backbone(x)))); }

  torch::nn::Linear backbone{register_module("backbone", torch::nn::Linear(3, 4))};
  torch::nn::BatchNorm1d norm{register_module("norm", torch::nn::BatchNorm1d(4))};
  torch::nn::Linear head{register_module("head", torch::nn::Linear(4, 2))};
};

/// Four batches per epoch.
struct tuning {
  tuning() {
    torch::manual_seed(2);
    x = torch::randn({16, 3});
    y = torch::randint(0, 2, {16}, torch::kLong);
    net = std::make_shared<network>();
  }

  /// Notes after each iteration whether the backbone was trained in it.
  run_result run(std::int64_t iterations, const std::optional<state::value>& from = std::nullopt,
                 freeze_until_options options = {}) {
    torch::optim::SGD optimizer(net->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9).weight_decay(0.1));
    rondo::loop l(net, optimizer, data::tensor_dataset(x, y) | data::batch(4), torch::nn::functional::cross_entropy,
                  {.max_iterations = iterations});
    l | freeze_until("backbone.*|norm.*", rondo::at({6_iterations}), std::move(options)) |
        make_extension("watch", [&](context& ctx) {
          if (from) ctx.on<event::restoring>([&] { ctx.load_state_dict(*from); });
          ctx.on<event::iteration_started>([&] { before = weights(); });
          ctx.on<event::iteration_completed>([&] { trained.push_back(!weights().equal(before)); });
          ctx.on<event::training_completed>([&] { saved = state::clone(ctx.state_dict()); });
        });
    return l.run();
  }
  [[nodiscard]] at::Tensor weights() const { return net->backbone->weight.detach().clone(); }

  at::Tensor x, y, before;
  std::shared_ptr<network> net;
  std::vector<bool> trained;
  state::value saved;
};

}  // namespace

TEST_CASE("parameters are frozen until the trigger fires", "[ext][freeze_until]") {
  tuning t;
  const auto head = t.net->head->weight.detach().clone();
  t.run(8);
  CHECK(t.trained == std::vector<bool>{false, false, false, false, false, false, true, true});
  CHECK_FALSE(head.equal(t.net->head->weight));
  CHECK(t.net->backbone->weight.requires_grad());
}

TEST_CASE("batch normalisation rests with its parameters", "[ext][freeze_until]") {
  tuning t;
  t.run(5);
  CHECK(t.net->norm->running_mean.equal(torch::zeros({4})));
  CHECK(t.net->norm->is_training());
  tuning awake;
  awake.run(5, std::nullopt, {.rest_batch_norm = false});
  CHECK_FALSE(awake.net->norm->running_mean.equal(torch::zeros({4})));
  t.run(8);
  CHECK_FALSE(t.net->norm->running_mean.equal(torch::zeros({4})));
}

TEST_CASE("a resumed training freezes what the unbroken one would", "[ext][freeze_until][resume]") {
  tuning unbroken;
  unbroken.run(8);
  for (const std::int64_t at : {3, 6, 7}) {
    INFO("interrupted after " << at);
    tuning first;
    first.run(at);
    tuning second;
    second.run(8, first.saved);
    auto all = first.trained;
    all.insert(all.end(), second.trained.begin(), second.trained.end());
    CHECK(all == unbroken.trained);
    CHECK(state::digest_of(state::module_state(*second.net)) == state::digest_of(state::module_state(*unbroken.net)));
  }
}

TEST_CASE("a pattern without a parameter is refused with their names", "[ext][freeze_until]") {
  tuning t;
  torch::optim::SGD optimizer(t.net->parameters(), 0.1);
  rondo::loop l(t.net, optimizer, data::tensor_dataset(t.x, t.y) | data::batch(4), torch::nn::functional::cross_entropy,
                {.max_epochs = 1});
  l | freeze_until("encoder.*", once());
  const auto message = message_of<option_error>([&] { l.run(); });
  CHECK(contains(message, "encoder.*"));
  CHECK(contains(message, "backbone.weight"));
}

TEST_CASE("the statistics of batch normalisation are those of the batches, each with the same weight",
          "[ext][update_batch_norm]") {
  tuning t;
  t.run(8);
  t.net->eval();
  t.net->head->train();
  update_batch_norm(t.net, data::tensor_dataset(t.x, t.y) | data::batch(4));
  torch::NoGradGuard no_grad;
  const auto inner = t.net->backbone(t.x).view({4, 4, 4});
  CHECK(torch::allclose(t.net->norm->running_mean, inner.mean(1).mean(0), 1e-5, 1e-6));
  CHECK(torch::allclose(t.net->norm->running_var, inner.var(1).mean(0), 1e-5, 1e-6));
  CHECK(t.net->norm->options.momentum() == c10::optional<double>(0.1));
  CHECK_FALSE(t.net->norm->is_training());
  CHECK(t.net->head->is_training());
}

}  // namespace ext_freeze_until_test

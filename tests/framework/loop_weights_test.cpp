// What counts how much: in averages of what is reported, and in gradients.

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>
#include <torch/types.h>

#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "rondo/data/data.hpp"
#include "rondo/extensions/evaluator.hpp"
#include "rondo/extensions/log_report.hpp"
#include "rondo/extensions/metrics.hpp"
#include "rondo/loop/loop.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"
#include "support/temporary_directory.hpp"

namespace loop_weights_test {

using namespace rondo;
using namespace rondo::literals;
using rondo::testing::contains;
using rondo::testing::message_of;
using rondo::testing::temporary_directory;

namespace {

/// One parameter w, and what the loop does to it.
struct scalar_model : torch::nn::Module {
  scalar_model() { w = register_parameter("w", torch::zeros({1})); }
  at::Tensor forward(const at::Tensor& x) { return w * torch::ones_like(x); }
  at::Tensor w;
};

at::Tensor half_square(const at::Tensor& output, const at::Tensor& target) {
  return 0.5 * (output - target).square().mean();
}

/// What the only line of the log says.
std::map<std::string, double> logged(rondo::loop& l) {
  std::map<std::string, double> means;
  l | log_report() | make_extension("look", [&](context& ctx) {
    ctx.on<extensions::log_entry>([&](const extensions::log_entry& e) {
      for (const auto& [key, value] : e.values) means[key.str()] = value.number();
    });
  });
  l.run();
  return means;
}

/// Five samples in batches of four.
auto five(const at::Tensor& targets) { return data::tensor_dataset(torch::zeros({5, 1}), targets) | data::batch(4); }

}  // namespace

TEST_CASE("a given weight of 1 is one", "[loop][report]") {
  const temporary_directory dir;
  auto step = [](context& ctx, data::example& batch) {
    const bool first = batch.data.size(0) == 4;
    ctx.report("explicit", first ? 2.0 : 10.0, first ? 1.0 : 9.0);
    ctx.report("implicit", first ? 1.0 : 0.0);
  };
  const auto early = make_extension("early", [](context& ctx) {
    ctx.on<event::iteration_started>([&ctx] { ctx.report("early", ctx.iteration() == 0 ? 1.0 : 0.0); });
  });
  rondo::loop l(models{}, optimizers{}, five(torch::zeros({5, 1})), step, {.max_epochs = 1, .out = dir.path()});
  l | early;
  const auto means = logged(l);
  CHECK(means.at("early") == Approx(0.8));
  CHECK(means.at("explicit") == Approx(9.2));
  CHECK(means.at("implicit") == Approx(0.8));
}

TEST_CASE("an evaluator's function may report with weight 1", "[loop][report][evaluator]") {
  const temporary_directory dir;
  auto step = [](context&, data::example&) {};
  rondo::loop l(models{}, optimizers{}, five(torch::zeros({5, 1})), step, {.max_epochs = 1, .out = dir.path()});
  l | evaluator(data::tensor_dataset(torch::zeros({10, 1}), torch::zeros({10, 1})) | data::batch(5),
                [n = 0](context& ctx, data::example&) mutable {
                  const bool first = n++ == 0;
                  ctx.report("x", first ? 2.0 : 10.0, first ? 1.0 : 9.0);
                });
  CHECK(logged(l).at("validation/x") == Approx(9.2));
}

TEST_CASE("targets that are ignored do not count, and a batch without any other is nothing", "[loop][report]") {
  const temporary_directory dir;
  torch::manual_seed(1);
  const auto outputs = torch::randn({6, 3});
  const auto targets = torch::tensor({0, -100, -100, 2, -100, -100}, torch::kLong);  // batches of 2: 1, 1 and 0 valid
  const auto right = [&] {
    const auto valid = targets.ne(-100);
    const auto loss = torch::nn::functional::cross_entropy(outputs.index({valid}), targets.index({valid}));
    const auto hits = outputs.index({valid}).argmax(1).eq(targets.index({valid})).to(torch::kFloat).mean();
    return std::pair(loss.item<double>(), hits.item<double>());
  }();
  struct given : torch::nn::Module {
    given() { w = register_parameter("w", torch::zeros({1})); }
    at::Tensor forward(const at::Tensor& x) { return x + w; }
    at::Tensor w;
  };
  auto model = std::make_shared<given>();
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(1e-9));
  const auto batches = data::tensor_dataset(outputs, targets) | data::batch(2);
  rondo::loop l(model, optimizer, batches, torch::nn::functional::cross_entropy,
                {.max_epochs = 1, .out = dir.path(), .counts = valid_targets()});
  l | evaluator(batches, metrics::accuracy(-100));
  const auto means = logged(l);
  CHECK(means.at("train/loss") == Approx(right.first).epsilon(1e-5));
  CHECK(means.at("validation/loss") == Approx(right.first).epsilon(1e-5));
  CHECK(means.at("validation/accuracy") == Approx(right.second));
  CHECK(std::isfinite(model->w.item<double>()));
}

TEST_CASE("gradients accumulated by weight are those of one batch", "[loop][accumulate]") {
  const auto train = [](loop_options options) {
    auto model = std::make_shared<scalar_model>();
    torch::optim::SGD optimizer(model->parameters(), 0.5);
    options.max_epochs = 1;
    rondo::loop l(model, optimizer, five(torch::tensor({0.0, 0.0, 0.0, 0.0, 10.0}).view({5, 1})), half_square,
                  std::move(options));
    l.run();
    return model->w.item<double>();
  };
  CHECK(train({.accumulate = 2}) == Approx(2.5));
  CHECK(train({.accumulate = 2, .accumulate_by_weight = true}) == Approx(1.0));
  CHECK(train({.accumulate = 3, .accumulate_by_weight = true}) == Approx(1.0));  // a window that the epoch ends
  const auto only_last = [](const at::Tensor& target) { return target.max().item<double>() > 0 ? 1.0 : 0.0; };
  CHECK(train({.counts = only_last, .accumulate = 2, .accumulate_by_weight = true}) == Approx(5.0));
}

TEST_CASE("a resume inside a window that counts by weight ends with the same bits", "[loop][accumulate][resume]") {
  torch::manual_seed(4);
  const auto x = torch::rand({10, 1});
  const auto y = torch::rand({10, 1});
  const auto train = [&](std::int64_t iterations, const state::value* from, state::value* saved) {
    torch::manual_seed(5);
    torch::nn::Linear model(1, 1);
    torch::optim::SGD optimizer(model->parameters(), 0.1);
    const auto pairs = data::tensor_dataset(x, y) | data::batch(3);  // the last one has one sample
    rondo::loop l(model, optimizer, pairs, torch::nn::functional::mse_loss,
                  {.max_epochs = 2, .accumulate = 4, .accumulate_by_weight = true});
    l | make_extension("save", [&](context& ctx) {
      if (from != nullptr) ctx.on<event::restoring>([&, from] { ctx.load_state_dict(*from); });
      ctx.on<event::iteration_completed>([&, saved, iterations] {
        if (saved != nullptr && ctx.iteration() == iterations) ctx.stop("enough");
      });
      ctx.on<event::training_completed>([&, saved] {
        if (saved != nullptr) *saved = state::clone(ctx.state_dict());
      });
    });
    l.run();
    return torch::cat({model->weight.flatten(), model->bias}).detach().clone();
  };
  const auto unbroken = train(100, nullptr, nullptr);
  for (std::int64_t k = 1; k < 8; ++k) {
    state::value saved;
    static_cast<void>(train(k, nullptr, &saved));
    CHECK(torch::equal(train(100, &saved, nullptr), unbroken));
  }
}

TEST_CASE("weights of batches that make no sense are refused", "[loop][report]") {
  const auto run = [](double weight) {
    auto step = [weight](context& ctx, data::example&) { ctx.weigh_batch(weight); };
    rondo::loop l(models{}, optimizers{}, five(torch::zeros({5, 1})), step, {.max_epochs = 1});
    return message_of<option_error>([&] { l.run(); });
  };
  CHECK(contains(run(-1), "weight of a batch"));
  CHECK(contains(run(std::nan("")), "weight of a batch"));
  auto step = [](context&, data::example&) {};
  CHECK(contains(message_of<option_error>([&] {
                   rondo::loop l(models{}, optimizers{}, five(torch::zeros({5, 1})), step,
                                 {.max_epochs = 1, .counts = valid_targets()});
                 }),
                 "weigh_batch"));
}

TEST_CASE("options of updates are refused by steps that would ignore them", "[loop][options]") {
  const auto refusal = [](auto step, loop_options options) {
    options.max_epochs = 1;
    torch::nn::Linear model(1, 1);
    torch::optim::SGD optimizer(model->parameters(), 0.1);
    rondo::loop l(model, optimizer, five(torch::zeros({5, 1})), step, std::move(options));
    return message_of<option_error>([&] { l.run(); });
  };
  const auto by_hand = [](context&, data::example&) {};
  const auto with_update = [](context&, data::example&) -> task<> { co_return; };
  CHECK(contains(refusal(by_hand, {.accumulate = 2}), "accumulate"));
  CHECK(contains(refusal(with_update, {.accumulate = 2}), "accumulate"));
  CHECK(contains(refusal(by_hand, {.clip_grad_norm = 1.0}), "clip_grad_norm"));
  CHECK(contains(refusal(by_hand, {.clip_grad_value = 1.0}), "clip_grad_value"));
  CHECK(contains(refusal(by_hand, {.report_grad_norm = true}), "report_grad_norm"));
}

TEST_CASE("max_iterations inside an accumulation window makes the update of what there is", "[loop][accumulate]") {
  auto model = std::make_shared<scalar_model>();
  torch::optim::SGD optimizer(model->parameters(), 0.5);
  rondo::loop l(model, optimizer, data::tensor_dataset(torch::zeros({16, 1}), torch::ones({16, 1})) | data::batch(4),
                half_square, {.max_iterations = 3, .accumulate = 4});
  int updates = 0;
  l | make_extension("count", [&](context& ctx) { ctx.on<event::update_completed>([&] { ++updates; }); });
  l.run();
  CHECK(updates == 1);
  CHECK(model->w.item<double>() == Approx(0.5));
}

}  // namespace loop_weights_test

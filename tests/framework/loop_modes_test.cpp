// Which modules are in training mode and which parameters are trained: as the program says, also after a resume.

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>
#include <torch/types.h>

#include <string>

#include "rondo/data/data.hpp"
#include "rondo/loop/loop.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"

namespace loop_modes_test {

using namespace rondo;
using rondo::testing::captured_stderr;
using rondo::testing::contains;

namespace {

struct normalised {
  normalised() {
    torch::manual_seed(2);
    first = torch::nn::Linear(2, 2);
    norm = torch::nn::BatchNorm1d(2);
    last = torch::nn::Linear(2, 1);
    model = torch::nn::Sequential(first, norm, last);
    optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.1);
    x = torch::rand({16, 2});
    y = torch::rand({16, 1});
  }
  rondo::loop loop(std::int64_t iterations) {
    return rondo::loop(model, optimizer, data::tensor_dataset(x, y) | data::batch(4), torch::nn::functional::mse_loss,
                       {.max_iterations = iterations});
  }

  torch::nn::Linear first{nullptr};
  torch::nn::BatchNorm1d norm{nullptr};
  torch::nn::Linear last{nullptr};
  torch::nn::Sequential model{nullptr};
  std::shared_ptr<torch::optim::SGD> optimizer;
  at::Tensor x;
  at::Tensor y;
};

}  // namespace

TEST_CASE("what was put into evaluation mode before the loop stays so", "[loop][modes]") {
  normalised p;
  p.norm->eval();
  const auto before = p.norm->running_mean.clone();
  auto l = p.loop(4);
  l.run();
  REQUIRE_FALSE(p.norm->is_training());
  REQUIRE(p.model->is_training());
  REQUIRE(torch::equal(p.norm->running_mean, before));
}

TEST_CASE("a model that is in evaluation mode as a whole is trained like that, with a warning", "[loop][modes]") {
  normalised p;
  p.model->eval();
  auto l = p.loop(1);
  captured_stderr told;
  l.run();
  REQUIRE(contains(told.text(), "evaluation mode"));
}

TEST_CASE("what an extension switches during training is switched again after a resume", "[loop][modes][resume]") {
  const auto run = [](std::int64_t iterations, const state::value* from, state::value* saved) {
    normalised p;
    auto l = p.loop(iterations);
    l | make_extension("switcher", [&](context& ctx) {
      ctx.on<event::iteration_completed>([&] {
        if (ctx.iteration() != 2) return;
        p.norm->eval();
        for (auto& parameter : p.first->parameters()) parameter.requires_grad_(false);
      });
      if (from != nullptr) ctx.on<event::restoring>([&, from] { ctx.load_state_dict(*from); });
      ctx.on<event::training_completed>([&, saved] {
        if (saved != nullptr) *saved = state::clone(ctx.state_dict());
      });
    });
    l.run();
    REQUIRE(p.model->is_training());
    REQUIRE(p.last->weight.requires_grad());
    REQUIRE_FALSE(p.norm->is_training());
    REQUIRE_FALSE(p.first->weight.requires_grad());
    return torch::cat({p.first->weight.flatten(), p.last->weight.flatten(), p.norm->running_mean}).detach().clone();
  };
  const auto unbroken = run(8, nullptr, nullptr);
  state::value saved;
  static_cast<void>(run(3, nullptr, &saved));
  REQUIRE(torch::equal(run(8, &saved, nullptr), unbroken));
}

TEST_CASE("what an extension has switched back stays so after a resume, and what the program switches now counts",
          "[loop][modes][resume]") {
  const auto run = [](std::int64_t iterations, bool program_freezes, const state::value* from, state::value* saved) {
    normalised p;
    p.last->bias.requires_grad_(!program_freezes);
    auto l = p.loop(iterations);
    l | make_extension("rests", [&](context& ctx) {
      ctx.on<event::training_started>([&] { p.norm->eval(); });
      ctx.on<event::iteration_completed>([&] {
        if (ctx.iteration() == 2) p.norm->train();
      });
      if (from != nullptr) ctx.on<event::restoring>([&, from] { ctx.load_state_dict(*from); });
      ctx.on<event::training_completed>([&, saved] {
        if (saved != nullptr) *saved = state::clone(ctx.state_dict());
      });
    });
    l.run();
    CHECK(p.norm->is_training());
    CHECK(p.last->bias.requires_grad() == !program_freezes);
  };
  state::value saved;
  run(3, false, nullptr, &saved);
  run(6, false, &saved, nullptr);
  run(6, true, &saved, nullptr);
}

TEST_CASE("a run where gradients are switched off is refused", "[loop][modes]") {
  normalised p;
  auto l = p.loop(1);
  const torch::NoGradGuard off;
  REQUIRE(contains(rondo::testing::message_of<option_error>([&] { l.run(); }), "NoGradGuard"));
}

}  // namespace loop_modes_test

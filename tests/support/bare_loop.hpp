// A loop in which a function of the test takes the place of training.
#pragma once

#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <range/v3/view/iota.hpp>
#include <utility>

#include "rondo/loop/loop.hpp"

namespace rondo::testing {

/// `length` iterations per epoch, of which each calls `step(context&, index in the epoch)`.
template <class Step>
loop bare_loop(int length, Step step, loop_options options) {
  torch::nn::Linear model(1, 1);
  std::shared_ptr<torch::optim::Optimizer> optimizer =
      std::make_shared<torch::optim::SGD>(model->parameters(), torch::optim::SGDOptions(0.1));
  auto call = [step = std::move(step)](context& ctx, int& index) mutable -> void { step(ctx, index); };
  return loop(models(model), optimizers(std::move(optimizer)), ranges::views::ints(0, length), std::move(call),
              std::move(options));
}

/// Keeps a copy of the state after iteration `iteration`, as a snapshot would.
inline extension keep_state(std::int64_t iteration, std::optional<state::value>& kept) {
  return make_extension("snapshot",
                        [iteration, &kept](context& ctx) {
                          ctx.on<event::iteration_completed>([iteration, &kept, &ctx] {
                            if (ctx.iteration() == iteration) kept = state::clone(state::value(ctx.state_dict()));
                          });
                        })
      .at_priority(priority::snapshot);
}

/// Brings a state back before training.
inline extension restore_state(state::value kept, state::load_options options = {}) {
  return make_extension("snapshot",
                        [kept = std::move(kept), options = std::move(options)](context& ctx) {
                          ctx.on<event::restoring>([&kept, &options, &ctx] { ctx.load_state_dict(kept, options); });
                        })
      .at_priority(priority::snapshot);
}

}  // namespace rondo::testing

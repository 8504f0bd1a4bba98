// Small loops that tests train, stop and resume.
#pragma once

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim.h>
#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <range/v3/view/iota.hpp>
#include <string>
#include <utility>
#include <vector>

#include "rondo/data/data.hpp"
#include "rondo/loop/loop.hpp"
#include "rondo/state/digest.hpp"

namespace rondo::testing {

using journal = std::vector<std::string>;

/// A small real problem: y = 2x + 1 with a linear model, 8 batches of 4 per epoch.
struct problem {
  problem() {
    torch::manual_seed(3);
    x = torch::rand({32, 1});
    y = 2 * x + 1;
    model = torch::nn::Linear(1, 1);
    optimizer = std::make_shared<torch::optim::Adam>(model->parameters(), torch::optim::AdamOptions(0.05));
  }
  auto batches() const { return data::tensor_dataset(x, y) | data::shuffle(7) | data::batch(4); }
  rondo::loop loop(loop_options options) const {
    return rondo::loop(model, optimizer, batches(), torch::nn::functional::mse_loss, std::move(options));
  }
  [[nodiscard]] std::string digest() const {
    return state::digest_of(state::dict{{"m", state::module_state(*model)}, {"o", state::optimizer_state(*optimizer)}});
  }

  torch::Tensor x;
  torch::Tensor y;
  torch::nn::Linear model{nullptr};
  std::shared_ptr<torch::optim::Adam> optimizer;
};

/// A loop without learning: `n` batches per epoch, which are their own numbers.
inline rondo::loop counting_loop(std::int64_t n, loop_options options) {
  auto step = [](context&, const std::int64_t&) {};
  return rondo::loop(models{}, optimizers{}, ranges::views::iota(std::int64_t{0}, n), step, std::move(options));
}

}  // namespace rondo::testing

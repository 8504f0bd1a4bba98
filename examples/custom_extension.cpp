// The ten-line extension: a coroutine that lives as long as the training, keeps its state in local variables, and stops
// the training when the validation loss has been flat for two epochs.
//
// Fits y = 3x - 1 with noise. Should end with a line like
//
//   stopped after epoch 8: validation/loss flat at epoch 8; y = 3.0 x + -1.0

#include <fmt/format.h>
#include <torch/nn.h>
#include <torch/optim.h>

#include <algorithm>
#include <iostream>
#include <limits>
#include <rondo/extensions.hpp>
#include <rondo/rondo.hpp>

using namespace rondo;

extension stop_when_flat(int patience) {
  return make_extension("stop_when_flat", [patience](context& ctx) -> task<> {
    double best = std::numeric_limits<double>::infinity();
    int stale = 0;
    while (const auto* epoch = co_await ctx.next<event::epoch_completed>()) {
      const double loss = ctx.observed("validation/loss");
      stale = loss < best - 1e-4 ? 0 : stale + 1;
      best = std::min(best, loss);
      if (stale == patience) ctx.stop(fmt::format("validation/loss flat at epoch {}", epoch->epoch));
    }
  });
}

namespace {

data::tensor_dataset noisy_line(std::int64_t n) {
  const auto x = torch::rand({n, 1}) * 2 - 1;
  return {x, 3 * x - 1 + 0.1 * torch::randn({n, 1})};
}

run_result train() {
  torch::manual_seed(1);
  torch::nn::Linear model(1, 1);
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  auto batches = noisy_line(512) | data::shuffle(1) | data::batch(32);
  auto validation = noisy_line(128) | data::batch(64);

  loop training(model, optimizer, batches, torch::nn::functional::mse_loss, {.max_epochs = 100});
  training | evaluator(validation) | stop_when_flat(2);
  const run_result result = training.run();

  std::cout << fmt::format("stopped after epoch {}: {}; y = {:.1f} x + {:.1f}\n", result.epoch, result.stop_reason,
                           model->weight.item<double>(), model->bias.item<double>());
  return result;
}

}  // namespace

int main() { return rondo::run_main(train); }

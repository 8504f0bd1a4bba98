// A whole training with an installed Rondo: a supervised loop, an evaluator, an extension of one's own, snapshots.
#include <torch/nn.h>
#include <torch/optim.h>

#include <filesystem>
#include <rondo/extensions.hpp>
#include <rondo/rondo.hpp>

using namespace rondo;

int main() {
  torch::nn::Linear model(1, 1);
  torch::optim::Adam optimizer(model->parameters(), 0.1);
  const auto x = torch::rand({32, 1});
  auto batches = data::tensor_dataset(x, 2 * x) | data::shuffle(1) | data::batch(8);
  auto validation = data::tensor_dataset(x, 2 * x) | data::batch(16);
  const auto out = std::filesystem::temp_directory_path() / "rondo-consumer";
  std::filesystem::remove_all(out);

  int seen = 0;
  loop training(model, optimizer, batches, torch::nn::functional::mse_loss, {.max_epochs = 3, .out = out});
  training | evaluator(validation) | call(every(2_iterations), [&](context& ctx) { ctx.report("seen", ++seen); }) |
      snapshot({.n_retains = 1});
  const run_result result = training.run();
  const bool saved = std::filesystem::exists(out / "snapshot_iter_12");
  std::filesystem::remove_all(out);
  return result.iteration == 12 && seen == 6 && saved ? 0 : 1;
}

// Two models, two optimizers and a training step of one's own: a generator learns to draw points from a ring, and a
// discriminator learns to tell them from real ones. The step awaits one managed update per optimizer, so that
// extensions see both, and a snapshot can never fall between a gradient and its update.
//
//   gan [iterations]      (default 3000)
//
// Should end with a mean radius near 1 and a small deviation, after 2 updates per iteration:
//
//   3000 iterations, 6000 updates; generated points lie at radius 1.0 +- 0.1

#include <fmt/format.h>
#include <torch/nn.h>
#include <torch/optim.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <iostream>
#include <range/v3/view/generate_n.hpp>
#include <rondo/rondo.hpp>

using namespace rondo;

namespace {

constexpr std::int64_t batch_size = 128;
constexpr std::int64_t noise_size = 8;

torch::Tensor points_on_ring() {
  const auto angle = torch::rand({batch_size}) * (2 * M_PI);
  return torch::stack({angle.cos(), angle.sin()}, 1) + 0.03 * torch::randn({batch_size, 2});
}

torch::nn::Sequential network(std::int64_t inputs, std::int64_t outputs) {
  return torch::nn::Sequential(torch::nn::Linear(inputs, 64), torch::nn::LeakyReLU(), torch::nn::Linear(64, 64),
                               torch::nn::LeakyReLU(), torch::nn::Linear(64, outputs));
}

torch::Tensor judged(const torch::Tensor& logits, double label) {
  return torch::nn::functional::binary_cross_entropy_with_logits(logits, torch::full_like(logits, label));
}

run_result train(std::int64_t iterations) {
  torch::manual_seed(2);
  auto generator = network(noise_size, 2);
  auto discriminator = network(2, 1);
  torch::optim::Adam generator_optimizer(generator->parameters(), torch::optim::AdamOptions(1e-3).betas({0.5, 0.99}));
  torch::optim::Adam discriminator_optimizer(discriminator->parameters(),
                                             torch::optim::AdamOptions(1e-3).betas({0.5, 0.99}));
  auto real_batches = ranges::views::generate_n(points_on_ring, iterations);

  auto step = [&](context& ctx, const torch::Tensor& real) -> task<> {
    const auto fake = generator->forward(torch::randn({batch_size, noise_size}));
    discriminator_optimizer.zero_grad();
    const auto d_loss = judged(discriminator->forward(real), 1) + judged(discriminator->forward(fake.detach()), 0);
    d_loss.backward();
    co_await ctx.update(discriminator_optimizer);

    generator_optimizer.zero_grad();
    const auto g_loss = judged(discriminator->forward(fake), 1);
    g_loss.backward();
    co_await ctx.update(generator_optimizer);
    ctx.report("discriminator/loss", d_loss);
    ctx.report("generator/loss", g_loss);
  };

  std::int64_t updates = 0;
  rondo::loop training(models{{"generator", generator}, {"discriminator", discriminator}},
                       optimizers{{"generator", generator_optimizer}, {"discriminator", discriminator_optimizer}},
                       real_batches, step, {.max_iterations = iterations});
  training |
      make_extension("count_updates", [&](context& ctx) { ctx.on<event::update_completed>([&] { ++updates; }); });
  const run_result result = training.run();

  torch::NoGradGuard no_grad;
  const auto radius = generator->forward(torch::randn({1000, noise_size})).norm(2, 1);
  std::cout << fmt::format("{} iterations, {} updates; generated points lie at radius {:.1f} +- {:.1f}\n",
                           result.iteration, updates, radius.mean().item<double>(), radius.std().item<double>());
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Trains a generator of points on a ring against a discriminator.");
  std::int64_t iterations = 3000;
  app.add_option("iterations", iterations, "how long (default: 3000)")->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  return rondo::run_main([&] { return train(iterations); });
}

// What the Fashion-MNIST examples have in common: options, networks, and what is done to images.
#pragma once

#include <torch/nn.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <nlohmann/json.hpp>
#include <rondo/extensions.hpp>
#include <rondo/rondo.hpp>

namespace fashion {

namespace F = torch::nn::functional;
namespace data = rondo::data;

struct settings {
  std::string data = "/usr/share/datasets/fashion-mnist";
  std::string out = "result";
  std::int64_t epochs = 3;
  std::int64_t max_iterations = 0;
  std::int64_t batch_size = 64;
  std::int64_t limit = 60000;
  std::int64_t workers = 2;
  bool augment = false;
  std::uint64_t seed = 1;
  double lr = 1e-3;
  std::string schedule = "constant";
  std::int64_t patience = 0;
  std::string optimizer = "adam";
  std::string model = "cnn";
  std::string writer = "thread";
  std::string snapshot_every = "1ep";
  std::int64_t n_retains = 3;
  bool no_autoload = false;
  double grace_period = 0;
  int threads = 0;
  bool quiet = false;
};

struct mlp_net : torch::nn::Module {
  mlp_net() {
    hidden = register_module("hidden", torch::nn::Linear(28 * 28, 128));
    output = register_module("output", torch::nn::Linear(128, 10));
  }
  torch::Tensor forward(torch::Tensor x) { return output(torch::relu(hidden(x.flatten(1)))); }

  torch::nn::Linear hidden{nullptr};
  torch::nn::Linear output{nullptr};
};

struct cnn_net : torch::nn::Module {
  cnn_net() {
    conv1 = register_module("conv1", torch::nn::Conv2d(torch::nn::Conv2dOptions(1, 16, 3).padding(1)));
    conv2 = register_module("conv2", torch::nn::Conv2d(torch::nn::Conv2dOptions(16, 32, 3).padding(1)));
    norm = register_module("norm", torch::nn::BatchNorm2d(32));
    hidden = register_module("hidden", torch::nn::Linear(32 * 7 * 7, 96));
    output = register_module("output", torch::nn::Linear(96, 10));
  }
  torch::Tensor forward(torch::Tensor x) {
    x = torch::relu(torch::max_pool2d(conv1(x), 2));
    x = torch::relu(torch::max_pool2d(norm(conv2(x)), 2));
    return output(
        F::dropout(torch::relu(hidden(x.flatten(1))), F::DropoutFuncOptions().p(0.2).training(is_training())));
  }

  torch::nn::Conv2d conv1{nullptr};
  torch::nn::Conv2d conv2{nullptr};
  torch::nn::BatchNorm2d norm{nullptr};
  torch::nn::Linear hidden{nullptr};
  torch::nn::Linear output{nullptr};
};

inline std::shared_ptr<rondo::writing::writer> writer_of(const std::string& name) {
  if (name == "thread") return rondo::writers::thread();
  if (name == "process") return rondo::writers::process();
  if (name == "thread_queue") return rondo::writers::thread_queue();
  if (name == "process_queue") return rondo::writers::process_queue();
  return rondo::writers::simple();
}

inline void add_options(CLI::App& app, settings& s) {
  app.option_defaults()->take_last();
  app.add_option("--data", s.data, "folder with the IDX files, plain or .gz")->capture_default_str();
  app.add_option("--out", s.out, "folder for log and snapshots")->capture_default_str();
  app.add_option("--epochs", s.epochs, "epochs to train")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1000000}))
      ->capture_default_str();
  app.add_option("--max-iterations", s.max_iterations, "stop after so many iterations (0: no such limit)")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--batch-size", s.batch_size)
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{60000}))
      ->capture_default_str();
  app.add_option("--limit", s.limit, "images to use at most, of those for training and of those for testing")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{60000}))
      ->capture_default_str();
  app.add_option("--workers", s.workers, "threads that prepare batches (0: none, the same results)")
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{64}))
      ->capture_default_str();
  app.add_flag("--augment", s.augment, "mirror and move images at random, with noise");
  app.add_option("--seed", s.seed, "of weights, data order and augmentation")->capture_default_str();
  app.add_option("--lr", s.lr, "learning rate")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--schedule", s.schedule, "of the learning rate")
      ->check(CLI::IsMember({"constant", "cosine", "step", "plateau"}))
      ->capture_default_str();
  app.add_option("--patience", s.patience, "stop after so many epochs without a better accuracy (0: never)")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--model", s.model)->check(CLI::IsMember({"mlp", "cnn"}))->capture_default_str();
  app.add_option("--writer", s.writer, "who writes the snapshots")
      ->check(CLI::IsMember({"simple", "thread", "process", "thread_queue", "process_queue"}))
      ->capture_default_str();
  app.add_option("--snapshot-every", s.snapshot_every, "such as 100it, 1ep or 0.5ep")->capture_default_str();
  app.add_option("--n-retains", s.n_retains, "snapshots to keep (-1: all)")->capture_default_str();
  app.add_flag("--no-autoload", s.no_autoload, "start afresh although there are snapshots");
  app.add_option("--grace-period", s.grace_period, "seconds in which to end after a signal (0: no limit)")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  app.add_option("--threads", s.threads, "of LibTorch (0: its own choice)")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_flag("--quiet", s.quiet, "no table and no progress bar");
}

/// Each image mirrored or not, moved by up to two pixels, and with noise. All chance comes from `random`, which depends
/// on the seed, the epoch and the batch alone, not on who prepares it and when.
inline data::example augmented(const data::example& batch, data::random_sequence& random) {
  const auto noise = torch::randn(batch.data.sizes(), data::torch_generator(random), torch::TensorOptions());
  const auto padded = torch::constant_pad_nd(batch.data, {2, 2, 2, 2});
  auto images = torch::empty_like(batch.data);
  for (std::int64_t i = 0; i < images.size(0); ++i) {
    const auto down = static_cast<std::int64_t>(random.below(5));
    const auto right = static_cast<std::int64_t>(random.below(5));
    auto image = padded[i].narrow(1, down, images.size(2)).narrow(2, right, images.size(3));
    if (random.below(2) == 1) image = image.flip(2);
    images[i].copy_(image);
  }
  return {images.add_(noise, 0.05), batch.target};
}

/// A batch as the network gets it; a function for `data::transform`.
inline auto preparation(const settings& s) {
  return [augment = s.augment](data::example batch, data::random_sequence& random) {
    return augment ? augmented(batch, random) : std::move(batch);
  };
}

inline rondo::schedule make_schedule(const settings& s) {
  if (s.schedule == "cosine") return rondo::schedules::cosine(rondo::epochs(s.epochs));
  if (s.schedule == "step") return rondo::schedules::step(rondo::epochs(1), 0.5);
  if (s.schedule == "plateau") return rondo::schedules::reduce_on_plateau({.factor = 0.3, .patience = 1});
  return rondo::schedules::constant();
}

inline rondo::loop_options make_options(const settings& s) {
  rondo::loop_options options{.max_epochs = s.epochs, .out = s.out};
  if (s.max_iterations > 0) options.max_iterations = s.max_iterations;
  if (s.patience > 0)
    options.stop_trigger = rondo::early_stopping({.monitor = "validation/accuracy", .patience = s.patience});
  if (s.grace_period > 0)
    options.grace_period =
        std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(s.grace_period));
  return options;
}

/// Keeps the last line of the log for the JSON object at the end; saved, so that a resumed run that has nothing left to
/// do still knows it.
struct last_entry {
  void attach(rondo::context& ctx) {
    ctx.on<rondo::extensions::log_entry>([this](const rondo::extensions::log_entry& e) { values = e.values; });
  }
  rondo::state::dict state_dict() const { return values; }
  void load_state_dict(const rondo::state::value& state) { values = state.as<rondo::state::dict>(); }

  [[nodiscard]] nlohmann::json number(const char* key) const {
    const auto* value = values.find(key);
    return value == nullptr || value->is_null() ? nlohmann::json() : nlohmann::json(value->number());
  }

  rondo::state::dict values;
};

}  // namespace fashion

// A character-level transformer (decoder only, pre-norm, as in Radford et al. 2019) that learns to write the short
// texts of the Debian package "fortunes".
//
//   transformer --epochs 2 --out result
//
// prints a table and, after each evaluation, what the network writes by then; `tensorboard --logdir result/tensorboard`
// shows the curves. Interrupt it and run the same command again: it goes on.
//
// The learning rate warms up and then follows a cosine, gradients are clipped, and an exponential moving average of the
// weights is what is evaluated and what writes.
//
// The last line on stdout is one JSON object. Exit status: 0 when training has come to its end, 128 + signal after a
// signal, 1 for an error, 2 for options that make no sense.

#include <fmt/format.h>
#include <torch/nn.h>
#include <torch/optim.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <rondo/extensions.hpp>
#include <rondo/rondo.hpp>

namespace fs = std::filesystem;
namespace data = rondo::data;
namespace nn = torch::nn;
using namespace rondo::literals;

namespace {

struct settings {
  std::string text = "/usr/share/games/fortunes";
  std::string out = "result";
  std::int64_t epochs = 2;
  std::int64_t max_iterations = 0;
  std::int64_t evaluate_every = 200;
  std::int64_t characters = 0;
  std::int64_t context = 128;
  std::int64_t batch_size = 32;
  std::int64_t width = 128;
  std::int64_t heads = 4;
  std::int64_t blocks = 3;
  double lr = 3e-3;
  std::uint64_t seed = 1;
  bool quiet = false;
};

settings parse(int argc, char** argv) {
  settings s;
  CLI::App app("Trains a small transformer to write, one character after the other.");
  app.add_option("--text", s.text, "a text file, or a folder of them (files with a dot in their names are left out)")
      ->check(CLI::ExistingPath)
      ->capture_default_str();
  app.add_option("--out", s.out, "where the log, the report and the snapshots go")->capture_default_str();
  app.add_option("--epochs", s.epochs)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--max-iterations", s.max_iterations, "0: no limit")->check(CLI::NonNegativeNumber);
  app.add_option("--evaluate-every", s.evaluate_every, "iterations")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--characters", s.characters, "use so many characters of the text; 0: all")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--context", s.context, "characters that the network sees")
      ->check(CLI::Range(8, 4096))
      ->capture_default_str();
  app.add_option("--batch-size", s.batch_size)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--width", s.width)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--heads", s.heads)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--blocks", s.blocks)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--lr", s.lr)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--seed", s.seed)->capture_default_str();
  app.add_flag("--quiet", s.quiet, "no table, no samples, no progress bar");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    std::exit(app.exit(e) == 0 ? 0 : 2);
  }
  if (s.width % s.heads != 0)
    throw rondo::option_error("--heads", std::to_string(s.heads), fmt::format("a divisor of the width {}", s.width));
  return s;
}

// ---- text ----------------------------------------------------------------------------------------------------------

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  if (!in) throw std::runtime_error(fmt::format("'{}' cannot be read", path.string()));
  return text;
}

std::string read_text(const settings& s) {
  std::string text;
  if (fs::is_directory(s.text)) {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(s.text))
      if (entry.is_regular_file() && !entry.path().has_extension()) files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    for (const auto& file : files) text += read_file(file);
  } else {
    text = read_file(s.text);
  }
  if (s.characters > 0) text.resize(std::min(text.size(), static_cast<std::size_t>(s.characters)));
  const auto needed = static_cast<std::size_t>(40 * (s.context + 1));
  if (text.size() < needed)
    throw rondo::option_error("--text", fmt::format("'{}' with {} characters", s.text, text.size()),
                              fmt::format("at least {} (install the package fortunes for the default)", needed));
  return text;
}

/// The bytes that occur in a text, numbered.
class vocabulary {
 public:
  explicit vocabulary(const std::string& text) {
    std::array<bool, 256> seen{};
    for (const char c : text) seen[static_cast<unsigned char>(c)] = true;
    for (int c = 0; c < 256; ++c)
      if (seen[static_cast<std::size_t>(c)]) {
        numbers_[static_cast<std::size_t>(c)] = size();
        letters_.push_back(static_cast<char>(c));
      }
  }

  [[nodiscard]] std::int64_t size() const { return static_cast<std::int64_t>(letters_.size()); }
  [[nodiscard]] torch::Tensor encode(const std::string& text) const {
    auto tokens = torch::empty({static_cast<std::int64_t>(text.size())}, torch::kLong);
    std::transform(text.begin(), text.end(), tokens.data_ptr<std::int64_t>(),
                   [&](char c) { return numbers_[static_cast<unsigned char>(c)]; });
    return tokens;
  }
  [[nodiscard]] char letter(std::int64_t token) const { return letters_[static_cast<std::size_t>(token)]; }

 private:
  std::array<std::int64_t, 256> numbers_{};
  std::string letters_;
};

/// Windows of the text, each with the same one character later as its target. No character is copied before a batch is
/// made.
data::tensor_dataset windows(const torch::Tensor& tokens, std::int64_t context) {
  const auto all = tokens.unfold(0, context + 1, context);
  return {all.narrow(1, 0, context), all.narrow(1, 1, context)};
}

// ---- network -------------------------------------------------------------------------------------------------------

struct block : nn::Module {
  block(std::int64_t width, std::int64_t head_count) : heads(head_count) {
    norm1 = register_module("norm1", nn::LayerNorm(nn::LayerNormOptions({width})));
    norm2 = register_module("norm2", nn::LayerNorm(nn::LayerNormOptions({width})));
    qkv = register_module("qkv", nn::Linear(width, 3 * width));
    projection = register_module("projection", nn::Linear(width, width));
    hidden = register_module("hidden", nn::Linear(width, 4 * width));
    output = register_module("output", nn::Linear(4 * width, width));
  }

  torch::Tensor forward(torch::Tensor x, const torch::Tensor& mask) {
    x = x + attend(norm1(x), mask);
    return x + output(torch::gelu(hidden(norm2(x))));
  }

  torch::Tensor attend(const torch::Tensor& x, const torch::Tensor& mask) {
    const auto n = x.size(0), length = x.size(1), width = x.size(2);
    const auto parts = qkv(x).view({n, length, 3, heads, width / heads}).permute({2, 0, 3, 1, 4}).unbind(0);
    const auto scale = 1.0 / std::sqrt(static_cast<double>(width / heads));
    const auto scores = torch::matmul(parts[0], parts[1].transpose(-2, -1)) * scale + mask;
    const auto mixed = torch::matmul(torch::softmax(scores, -1), parts[2]);
    return projection(mixed.transpose(1, 2).reshape({n, length, width}));
  }

  std::int64_t heads;
  nn::LayerNorm norm1{nullptr}, norm2{nullptr};
  nn::Linear qkv{nullptr}, projection{nullptr}, hidden{nullptr}, output{nullptr};
};

/// From tokens [n, length] to their scores [n, vocabulary, length], as `cross_entropy` wants them.
struct transformer : nn::Module {
  transformer(const settings& s, std::int64_t vocabulary) : context(s.context) {
    letters = register_module("letters", nn::Embedding(vocabulary, s.width));
    positions = register_module("positions", nn::Embedding(s.context, s.width));
    for (std::int64_t i = 0; i < s.blocks; ++i)
      blocks.push_back(register_module(fmt::format("block{}", i), std::make_shared<block>(s.width, s.heads)));
    norm = register_module("norm", nn::LayerNorm(nn::LayerNormOptions({s.width})));
    head = register_module("head", nn::Linear(s.width, vocabulary));
    mask = register_buffer("mask", torch::full({s.context, s.context}, -1e9).triu(1));
    torch::NoGradGuard no_grad;
    for (auto& weight : {letters->weight, positions->weight, head->weight}) weight.normal_(0.0, 0.02);
  }

  torch::Tensor forward(const torch::Tensor& tokens) {
    const auto length = tokens.size(1);
    auto x = letters(tokens) + positions(torch::arange(length, tokens.options()));
    const auto seen = mask.narrow(0, 0, length).narrow(1, 0, length);
    for (auto& one : blocks) x = one->forward(x, seen);
    return head(norm(x)).transpose(1, 2);
  }

  /// Goes on writing after `tokens` [length]; `random` alone decides, so that a resumed training writes the same.
  std::vector<std::int64_t> write(torch::Tensor tokens, std::int64_t count, torch::Generator random) {
    torch::NoGradGuard no_grad;
    std::vector<std::int64_t> written;
    for (std::int64_t i = 0; i < count; ++i) {
      const auto length = std::min(tokens.size(0), context);
      const auto scores = forward(tokens.narrow(0, tokens.size(0) - length, length).unsqueeze(0)).select(2, length - 1);
      const auto next = torch::multinomial(torch::softmax(scores / 0.8, 1), 1, false, random).view({1});
      written.push_back(next.item<std::int64_t>());
      tokens = torch::cat({tokens, next});
    }
    return written;
  }

  std::int64_t context;
  nn::Embedding letters{nullptr}, positions{nullptr};
  std::vector<std::shared_ptr<block>> blocks;
  nn::LayerNorm norm{nullptr};
  nn::Linear head{nullptr};
  torch::Tensor mask;
};

// ---- training ------------------------------------------------------------------------------------------------------

/// After each evaluation: what the network writes now, with the averaged weights, for people and for TensorBoard.
rondo::extension samples(std::shared_ptr<transformer> net, const vocabulary& letters, std::uint64_t seed) {
  auto write = [=](rondo::context& ctx) {
    ctx.on<rondo::event::evaluation_completed>([=, &ctx] {
      const auto written = net->write(letters.encode("\n%\n"), 160, at::make_generator<at::CPUGeneratorImpl>(seed));
      std::string text;
      for (const auto token : written) text += letters.letter(token);
      std::cout << fmt::format("---- after {} iterations it writes:\n{}\n----\n", ctx.iteration(), text);
    });
  };
  // Above the averages, which are put away after the evaluation.
  return rondo::make_extension("samples", write).at_priority(500);
}

int train(const settings& s) {
  const auto text = read_text(s);
  const vocabulary letters(text);
  const auto tokens = letters.encode(text);
  const auto held_out = tokens.size(0) / 20;
  auto batches = windows(tokens.narrow(0, 0, tokens.size(0) - held_out), s.context) | data::shuffle(s.seed) |
                 data::batch(s.batch_size, {.drop_last = true});
  auto validation =
      windows(tokens.narrow(0, tokens.size(0) - held_out, held_out), s.context) | data::take(512) | data::batch(64);

  const auto net = std::make_shared<transformer>(s, letters.size());
  torch::optim::AdamW optimizer(net->parameters(), torch::optim::AdamWOptions(s.lr).weight_decay(0.1));

  rondo::loop_options options{.max_epochs = s.epochs, .out = s.out, .clip_grad_norm = 1.0};
  if (s.max_iterations > 0) options.max_iterations = s.max_iterations;
  rondo::loop loop(net, optimizer, batches, nn::functional::cross_entropy, options);
  const auto often = rondo::every(rondo::iterations(s.evaluate_every));
  const auto total = rondo::iterations(s.epochs * static_cast<std::int64_t>(ranges::size(batches)));
  loop | rondo::lr_scheduler(rondo::schedules::warm_up(100_iterations, rondo::schedules::cosine(total, s.lr / 10)));
  loop | rondo::ema({.decay = 0.99, .warm_up = true});
  loop | rondo::evaluator(validation, rondo::metrics::accuracy(), rondo::metrics::perplexity()).triggered(often);
  const auto last = std::make_shared<rondo::state::dict>();
  loop | rondo::log_report({.trigger = often,
                            .postprocess = [last](rondo::state::dict& entry) { *last = entry; },
                            .writer = rondo::writers::tensorboard()});
  if (!s.quiet)
    loop |
        rondo::print_report({"epoch", "iteration", "lr", "train/loss", "train/grad_norm", "validation/loss",
                             "validation/accuracy", "validation/perplexity", "elapsed_time"}) |
        rondo::progress_bar() | samples(net, letters, s.seed);
  loop | rondo::snapshot({.n_retains = 2, .autoload = true}).triggered(often);
  const auto result = loop.run();

  const auto number = [&](const char* key) {
    const auto* found = last->find(key);
    return found != nullptr ? nlohmann::json(found->number()) : nlohmann::json();
  };
  const nlohmann::json summary{{"iteration", result.iteration},
                               {"epoch", result.epoch},
                               {"train/loss", number("train/loss")},
                               {"validation/loss", number("validation/loss")},
                               {"stop_reason", result.stop_reason},
                               {"state_digest", rondo::state::digest_of(rondo::state::module_state(*net))}};
  std::cout << summary.dump() << std::endl;
  return rondo::exit_code(result);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const auto s = parse(argc, argv);
    torch::manual_seed(s.seed);
    return train(s);
  } catch (const rondo::option_error& e) {
    std::cerr << "transformer: " << e.what() << '\n';
    return 2;
  } catch (const std::exception& e) {
    std::cerr << "transformer: " << e.what() << '\n';
    return 1;
  }
}

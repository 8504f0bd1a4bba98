// Trains a network on Fashion-MNIST, the main example.
//
//   fashion_mnist --model cnn --epochs 3 --out result
//
// prints a table with one row per epoch and writes a log and snapshots to result/. Interrupt it (Ctrl-C, SIGTERM, or
// even kill -9) and run the same command again: it goes on from the newest good snapshot, and ends with the same bits
// as if nobody had interrupted it. --workers may be another number then. A snapshot opens in Python:
//
//   python3 -c "import torch; print(torch.load('result/snapshot_iter_938').keys())"
//
// The last line on stdout is one JSON object. With the command above it should read about
//
//   {"epoch":3,"iteration":2814,"resumed_from":null,"state_digest":"…","stop_reason":"3 epochs completed",
//    "train/loss":0.2…,"validation/accuracy":0.90…}
//
// Exit status: 0 when training has come to its end, 143 after SIGTERM and 130 after Ctrl-C (with a snapshot of the last
// iteration), 124 when --grace-period was over first, 1 for an error, 2 for options that make no sense.

#include <torch/optim.h>

#include <iostream>

#include "fashion_mnist.hpp"

namespace F = torch::nn::functional;
namespace data = rondo::data;

namespace {

using fashion::settings;

settings parse(int argc, char** argv) {
  settings s;
  CLI::App app("Trains a network on Fashion-MNIST, with snapshots that survive anything.");
  fashion::add_options(app, s);
  app.add_option("--optimizer", s.optimizer)
      ->check(CLI::IsMember({"sgd", "adam", "adamw", "rmsprop", "adagrad"}))
      ->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    std::exit(app.exit(e) == 0 ? 0 : 2);
  }
  return s;
}

std::unique_ptr<torch::optim::Optimizer> make_optimizer(const settings& s,
                                                        const std::vector<torch::Tensor>& parameters) {
  if (s.optimizer == "sgd")
    return std::make_unique<torch::optim::SGD>(parameters, torch::optim::SGDOptions(s.lr).momentum(0.9));
  if (s.optimizer == "adamw")
    return std::make_unique<torch::optim::AdamW>(parameters, torch::optim::AdamWOptions(s.lr));
  if (s.optimizer == "rmsprop")
    return std::make_unique<torch::optim::RMSprop>(parameters, torch::optim::RMSpropOptions(s.lr));
  if (s.optimizer == "adagrad")
    return std::make_unique<torch::optim::Adagrad>(parameters, torch::optim::AdagradOptions(s.lr));
  return std::make_unique<torch::optim::Adam>(parameters, torch::optim::AdamOptions(s.lr));
}

auto training_batches(const settings& s) {
  return data::fashion_mnist(s.data, data::split::train) | data::take(s.limit) | data::shuffle(s.seed) |
         data::batch(s.batch_size) | data::transform(fashion::preparation(s), s.seed) | data::prefetch(8, s.workers);
}

template <class Net>
int train(const settings& s) {
  auto model = std::make_shared<Net>();
  const auto optimizer = make_optimizer(s, model->parameters());
  auto test_batches = data::fashion_mnist(s.data, data::split::test) | data::take(s.limit) | data::batch(500);
  rondo::loop loop(model, *optimizer, training_batches(s), F::cross_entropy, fashion::make_options(s));

  auto last = std::make_shared<fashion::last_entry>();
  loop | rondo::evaluator(test_batches, rondo::metrics::accuracy())  //
      | rondo::lr_scheduler(fashion::make_schedule(s))               //
      | rondo::log_report()                                          //
      | rondo::make_extension("last_entry", last);
  if (!s.quiet)
    loop |
        rondo::print_report(
            {"epoch", "iteration", "lr", "train/loss", "validation/loss", "validation/accuracy", "elapsed_time"}) |
        rondo::progress_bar();
  loop | rondo::snapshot({.n_retains = s.n_retains, .autoload = !s.no_autoload, .writer = fashion::writer_of(s.writer)})
             .triggered(rondo::every(rondo::parse_period("--snapshot-every", s.snapshot_every)));
  const rondo::run_result result = loop.run();

  const rondo::state::dict state{{"model", rondo::state::module_state(*model)},
                                 {"optimizer", rondo::state::optimizer_state(*optimizer)}};
  const nlohmann::json summary{
      {"iteration", result.iteration},
      {"epoch", result.epoch},
      {"train/loss", last->number("train/loss")},
      {"validation/accuracy", last->number("validation/accuracy")},
      {"resumed_from", result.resumed_from ? nlohmann::json(result.resumed_from->string()) : nlohmann::json()},
      {"stop_reason", result.stop_reason},
      {"state_digest", rondo::state::digest_of(state)}};
  std::cout << summary.dump() << std::endl;
  if (!std::cout) {
    std::cerr << "fashion_mnist: the result cannot be written to stdout\n";
    return 1;
  }
  return rondo::exit_code(result);
}

}  // namespace

int main(int argc, char** argv) {
  const settings s = parse(argc, argv);
  try {
    if (!(s.lr > 0 && s.lr <= 1e6))
      throw rondo::option_error("--lr", std::to_string(s.lr), "a positive number up to 1e6");
    if (s.threads > 0) torch::set_num_threads(s.threads);
    torch::manual_seed(s.seed);
    return s.model == "mlp" ? train<fashion::mlp_net>(s) : train<fashion::cnn_net>(s);
  } catch (const rondo::option_error& e) {
    std::cerr << "fashion_mnist: " << e.what() << '\n';
    return 2;
  } catch (const std::exception& e) {
    std::cerr << "fashion_mnist: " << e.what() << '\n';
    return 1;
  }
}

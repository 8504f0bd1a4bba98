// Trains a network on Fashion-MNIST with several processes.
//
//   rondo run -n 2 ./distributed_fashion_mnist --model cnn --epochs 3 --out result
//
// Every rank computes a part of each batch; --batch-size is that of the whole batch. The optimizer's state is spread
// over the ranks, and so are the snapshots: result/snapshot_iter_938 is a directory in which each rank has written its
// part. Interrupt it, kill any rank, start it again, also with another number of ranks: it goes on from the newest
// complete snapshot. `rondo consolidate result/snapshot_iter_938 file` makes one file that Python opens.
//
// torchrun, srun and mpirun start it as well; started by itself it is a single process. The last line of each rank on
// stdout is one JSON object, with the same "state_digest" on all ranks: of the model's and the optimizer's whole state.
//
// Exit status: as that of fashion_mnist; 1 on all other ranks when one is gone.

#include <torch/optim.h>

#include <iostream>
#include <rondo/distributed/consolidate.hpp>
#include <rondo/distributed/sharded_optimizer.hpp>

#include "fashion_mnist.hpp"

namespace F = torch::nn::functional;
namespace data = rondo::data;
namespace distributed = rondo::distributed;

namespace {

struct settings : fashion::settings {
  std::string mode = "sharded";
  int saver_rank = 0;
  double timeout = 300;
};

settings parse(int argc, char** argv) {
  settings s;
  CLI::App app("Trains a network on Fashion-MNIST with several processes.");
  fashion::add_options(app, s);
  app.add_option("--optimizer", s.optimizer)->check(CLI::IsMember({"sgd", "adam", "adamw"}))->capture_default_str();
  app.add_option("--mode", s.mode, "of the snapshots: one file, or a part of each rank")
      ->check(CLI::IsMember({"distributed", "sharded"}))
      ->capture_default_str();
  app.add_option("--saver-rank", s.saver_rank, "who writes or completes the snapshots")->capture_default_str();
  app.add_option("--timeout", s.timeout, "seconds to wait for a rank that is late")
      ->check(CLI::Range(0.1, 1e6))
      ->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    std::exit(app.exit(e) == 0 ? 0 : 2);
  }
  return s;
}

std::unique_ptr<torch::optim::Optimizer> make_optimizer(const settings& s, const std::vector<torch::Tensor>& parameters,
                                                        const distributed::rank_group& group) {
  namespace optim = torch::optim;
  if (s.optimizer == "sgd")
    return std::make_unique<distributed::sharded_optimizer<optim::SGD>>(parameters,
                                                                        optim::SGDOptions(s.lr).momentum(0.9), group);
  if (s.optimizer == "adamw")
    return std::make_unique<distributed::sharded_optimizer<optim::AdamW>>(parameters, optim::AdamWOptions(s.lr), group);
  return std::make_unique<distributed::sharded_optimizer<optim::Adam>>(parameters, optim::AdamOptions(s.lr), group);
}

/// This rank's share of each batch: the shares of all ranks together are the batches of one process.
auto training_batches(const settings& s, const distributed::rank_group& group) {
  const auto ranks = group.world_size();
  if (s.batch_size % ranks != 0)
    throw rondo::option_error("--batch-size", std::to_string(s.batch_size),
                              "a multiple of the " + std::to_string(ranks) + " ranks");
  return data::fashion_mnist(s.data, data::split::train) | data::take(s.limit) | data::shuffle(s.seed) |
         data::distributed(group.rank(), ranks) | data::batch(s.batch_size / ranks) |
         data::transform(fashion::preparation(s), s.seed) | data::prefetch(8, s.workers);
}

/// Computes the digest of the whole state, which takes all ranks, at the end of training.
struct final_digest {
  void attach(rondo::context& ctx) {
    ctx.on<rondo::event::training_completed>([this, &ctx]() -> rondo::task<> { return compute(ctx); });
  }

  rondo::task<> compute(rondo::context& ctx) {
    const auto& model = *ctx.models().front().module;
    const auto& optimizer = *ctx.optimizers().front().optimizer;
    rondo::state::value state = rondo::state::dict{{"model", rondo::state::module_state(model)},
                                                   {"optimizer", rondo::state::optimizer_state(optimizer)}};
    const auto whole = co_await distributed::consolidate(std::move(state), ctx.group());
    text = rondo::state::digest_of(whole);
  }

  std::string text;
};

template <class Net>
int train(const settings& s, const distributed::rank_group& group) {
  auto model = std::make_shared<Net>();
  const auto optimizer = make_optimizer(s, model->parameters(), group);
  auto test_batches = data::fashion_mnist(s.data, data::split::test) | data::take(s.limit) |
                      data::distributed(group.rank(), group.world_size(), {.even = false}) | data::batch(500);
  auto options = fashion::make_options(s);
  options.group = group;
  rondo::loop loop(model, *optimizer, training_batches(s, group), F::cross_entropy, options);

  auto last = std::make_shared<fashion::last_entry>();
  auto digest = std::make_shared<final_digest>();
  loop | rondo::evaluator(test_batches, rondo::metrics::accuracy())  //
      | rondo::lr_scheduler(fashion::make_schedule(s))               //
      | rondo::log_report()                                          //
      | rondo::make_extension("last_entry", last)                    //
      | rondo::make_extension("final_digest", digest);
  if (!s.quiet)
    loop |
        rondo::print_report(
            {"epoch", "iteration", "lr", "train/loss", "validation/loss", "validation/accuracy", "elapsed_time"}) |
        rondo::progress_bar();
  loop |
      rondo::snapshot({.n_retains = s.n_retains,
                       .autoload = !s.no_autoload,
                       .writer = fashion::writer_of(s.writer),
                       .mode = s.mode == "sharded" ? rondo::snapshot_mode::sharded : rondo::snapshot_mode::distributed,
                       .saver_rank = s.saver_rank})
          .triggered(rondo::every(rondo::parse_period("--snapshot-every", s.snapshot_every)));
  const rondo::run_result result = loop.run();

  const nlohmann::json summary{
      {"rank", group.rank()},
      {"iteration", result.iteration},
      {"epoch", result.epoch},
      {"train/loss", last->number("train/loss")},
      {"validation/accuracy", last->number("validation/accuracy")},
      {"resumed_from", result.resumed_from ? nlohmann::json(result.resumed_from->string()) : nlohmann::json()},
      {"stop_reason", result.stop_reason},
      {"state_digest", digest->text}};
  std::cout << summary.dump() << std::endl;
  if (!std::cout) {
    std::cerr << "distributed_fashion_mnist: the result cannot be written to stdout\n";
    return 1;
  }
  return rondo::exit_code(result);
}

int run(const settings& s) {
  if (!(s.lr > 0 && s.lr <= 1e6))
    throw rondo::option_error("--lr", std::to_string(s.lr), "a positive number up to 1e6");
  const auto timeout = std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::duration<double>(s.timeout));
  const auto group = distributed::rank_group::connect(distributed::environment(), {.timeout = timeout});
  if (s.threads > 0) torch::set_num_threads(s.threads);
  // Each rank drops out other activations. The network's first weights are those of rank 0.
  torch::manual_seed(s.seed + static_cast<std::uint64_t>(group.rank()));
  return s.model == "mlp" ? train<fashion::mlp_net>(s, group) : train<fashion::cnn_net>(s, group);
}

}  // namespace

int main(int argc, char** argv) {
  const settings s = parse(argc, argv);
  try {
    return run(s);
  } catch (const rondo::option_error& e) {
    std::cerr << "distributed_fashion_mnist: " << e.what() << '\n';
    return 2;
  } catch (const std::exception& e) {
    std::cerr << "distributed_fashion_mnist: " << e.what() << '\n';
    return 1;
  }
}

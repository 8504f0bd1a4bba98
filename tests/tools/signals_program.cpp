// A training that can be made slow wherever a signal may find it; see signals_test.py.
//
//   signals_program PLACE WRITER OUT MILLISECONDS [OPTION...]
//
// PLACE says what takes MILLISECONDS each: training (every step), evaluation (every batch of an evaluator), data (every
// batch that a worker prepares), snapshot (nothing: a large state is saved after every iteration), stuck (nothing, but
// the step of the tenth iteration never ends if MILLISECONDS is not 0), stuck_data (the same of the worker that
// prepares the tenth batch). The results do not depend on them.
//
//   --default-action    leave SIGTERM as it was outside of the run; without it, a handler is there that does nothing
//   --rarely            no snapshots but those that signals ask for
//   --grace-period MS   of the loop
//
// Says "begun" when it listens to signals, "iteration N" after the step of each iteration, "evaluating N" and
// "evaluated N" around each evaluation, and at the end one JSON object. Goes on from the newest snapshot in OUT.

#include <torch/nn.h>
#include <torch/optim.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <rondo/extensions.hpp>
#include <rondo/rondo.hpp>
#include <string>
#include <thread>
#include <vector>

namespace F = torch::nn::functional;
namespace data = rondo::data;
using std::chrono::milliseconds;

namespace {

constexpr std::int64_t iterations = 60;
constexpr std::int64_t epoch_length = 12;
constexpr std::int64_t batch_size = 8;
constexpr std::int64_t stuck_at = 10;

struct settings {
  std::string place;
  std::string writer;
  std::string out;
  milliseconds pause{0};
  bool default_action = false;
  bool rarely = false;
  std::optional<milliseconds> grace_period = std::nullopt;

  [[nodiscard]] bool is(const char* name) const { return place == name; }
  void pause_in(const char* name) const {
    if (is(name)) std::this_thread::sleep_for(pause);
  }
};

settings parse(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() < 4) throw rondo::error("usage: signals_program PLACE WRITER OUT MILLISECONDS [OPTION...]");
  settings s{.place = arguments[0],
             .writer = arguments[1],
             .out = arguments[2],
             .pause = milliseconds(std::stoll(arguments[3]))};
  for (std::size_t i = 4; i < arguments.size(); ++i) {
    if (arguments[i] == "--default-action")
      s.default_action = true;
    else if (arguments[i] == "--rarely")
      s.rarely = true;
    else if (arguments[i] == "--grace-period")
      s.grace_period = milliseconds(std::stoll(arguments.at(++i)));
    else
      throw rondo::error("signals_program: unknown option " + arguments[i]);
  }
  return s;
}

void say(const std::string& line) { std::cout << line << std::endl; }

/// Uses random numbers, remembers means, and is as large as one likes.
struct network : torch::nn::Module {
  explicit network(std::int64_t ballast) {
    hidden = register_module("hidden", torch::nn::Linear(16, 32));
    norm = register_module("norm", torch::nn::BatchNorm1d(32));
    output = register_module("output", torch::nn::Linear(32, 4));
    if (ballast > 0) {
      resting = register_parameter("resting", torch::zeros(ballast));
      changing = register_buffer("changing", torch::zeros(ballast));
    }
  }
  torch::Tensor forward(torch::Tensor x) {
    x = torch::relu(norm(hidden(x)));
    return output(F::dropout(x, F::DropoutFuncOptions().p(0.3).training(is_training())));
  }

  torch::nn::Linear hidden{nullptr};
  torch::nn::BatchNorm1d norm{nullptr};
  torch::nn::Linear output{nullptr};
  torch::Tensor resting;
  torch::Tensor changing;
};

std::shared_ptr<rondo::writing::writer> writer_of(const std::string& name) {
  if (name == "simple") return rondo::writers::simple();
  if (name == "thread") return rondo::writers::thread();
  if (name == "process") return rondo::writers::process();
  if (name == "thread_queue") return rondo::writers::thread_queue();
  if (name == "process_queue") return rondo::writers::process_queue();
  throw rondo::error("signals_program: no writer " + name);
}

data::tensor_dataset examples(std::int64_t n) { return {torch::randn({n, 16}), torch::randint(4, {n})}; }

/// Says what is going on, before the evaluator begins its work.
rondo::extension narrator() {
  auto subscribe = [](rondo::context& ctx) {
    ctx.on<rondo::event::training_started>([] { say("begun"); });
    ctx.on<rondo::event::iteration_completed>([&ctx] { say("iteration " + std::to_string(ctx.iteration())); });
    ctx.on<rondo::event::evaluation_started>([&ctx] { say("evaluating " + std::to_string(ctx.iteration())); });
    ctx.on<rondo::event::evaluation_completed>([&ctx] { say("evaluated " + std::to_string(ctx.iteration())); });
  };
  return rondo::make_extension("narrator", subscribe).at_priority(rondo::priority::writer + 1);
}

int train(const settings& s) {
  auto model = std::make_shared<network>(s.is("snapshot") ? 1'000'000 : 0);
  torch::optim::Adam optimizer(model->parameters(), torch::optim::AdamOptions(1e-2));
  auto prepared = [s](data::example batch, data::random_sequence& random) {
    s.pause_in("data");
    static std::atomic<std::int64_t> batches_prepared = 0;
    if (s.is("stuck_data") && s.pause.count() > 0 && ++batches_prepared == stuck_at)
      std::this_thread::sleep_for(std::chrono::hours(1));
    return data::example(
        batch.data + 0.1 * torch::randn(batch.data.sizes(), data::torch_generator(random), torch::TensorOptions()),
        batch.target);
  };
  auto batches = examples(epoch_length * batch_size) | data::shuffle(1) | data::batch(batch_size) |
                 data::transform(prepared, 2) | data::prefetch(2, 1);
  auto test_batches = examples(40 * batch_size) | data::batch(batch_size);

  const auto step = [s, model](rondo::context& ctx, const data::example& batch) {
    s.pause_in("training");
    if (s.is("stuck") && s.pause.count() > 0 && ctx.iteration() + 1 == stuck_at)
      std::this_thread::sleep_for(std::chrono::hours(1));
    auto loss = F::cross_entropy(model->forward(batch.data), batch.target);
    if (model->resting.defined()) {
      loss = loss + 1e-3 * (model->resting - 1).square().sum();
      const torch::NoGradGuard no_gradients;
      model->changing.add_(loss.detach());
    }
    ctx.report("train/loss", loss);
    return loss;
  };
  const auto evaluate = [s, model](rondo::context& ctx, const data::example& batch) {
    s.pause_in("evaluation");
    ctx.report("loss", F::cross_entropy(model->forward(batch.data), batch.target));
  };

  rondo::loop_options options{.max_iterations = iterations, .out = s.out};
  if (s.grace_period) options.grace_period = *s.grace_period;
  rondo::loop loop(model, optimizer, batches, step, std::move(options));
  const auto when = s.rarely           ? rondo::every(rondo::iterations(1000))
                    : s.is("snapshot") ? rondo::every(rondo::iterations(1))
                                       : rondo::every(rondo::iterations(4));
  loop | narrator()                                                                             //
      | rondo::evaluator(test_batches, evaluate).triggered(rondo::every(rondo::iterations(3)))  //
      | rondo::lr_scheduler(rondo::schedules::cosine(rondo::iterations(iterations)))            //
      | rondo::log_report({.trigger = rondo::every(rondo::iterations(1))})                      //
      | rondo::snapshot({.n_retains = s.rarely ? -1 : 3, .autoload = true, .writer = writer_of(s.writer)})
            .triggered(when);
  const rondo::run_result result = loop.run();

  const rondo::state::dict state{{"model", rondo::state::module_state(*model)},
                                 {"optimizer", rondo::state::optimizer_state(optimizer)}};
  const nlohmann::json summary{
      {"iteration", result.iteration},
      {"resumed_from", result.resumed_from ? nlohmann::json(result.resumed_from->string()) : nlohmann::json()},
      {"stop_reason", result.stop_reason},
      {"state_digest", rondo::state::digest_of(state)},
      {"random_digest", rondo::state::digest_of(rondo::state::random_state())}};
  say(summary.dump());
  return rondo::exit_code(result);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const settings s = parse(argc, argv);
    // One that arrives when the loop has just ended is not the loop's.
    if (!s.default_action) std::signal(SIGTERM, [](int) {});
    torch::set_num_threads(1);
    torch::manual_seed(1);
    return train(s);
  } catch (const std::exception& e) {
    std::cerr << "signals_program: " << e.what() << '\n';
    return 1;
  }
}

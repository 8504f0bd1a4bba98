// What the loop costs: training of a small network beside the same training written by hand, and iterations that do
// nothing but serve extensions. One thread.

#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>
#include <dlfcn.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim.h>

#include <algorithm>
#include <cstdint>
#include <ctime>
#include <filesystem>
#include <memory>
#include <range/v3/view/iota.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "rondo/data/data.hpp"
#include "rondo/event/interval.hpp"
#include "rondo/extensions.hpp"
#include "rondo/loop/loop.hpp"
#include "support.hpp"

namespace rondo::bench {
namespace {

using namespace rondo::literals;
namespace F = torch::nn::functional;

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// ---- the mlp of examples/fashion_mnist ----

struct mlp_net : torch::nn::Module {
  mlp_net() {
    hidden = register_module("hidden", torch::nn::Linear(28 * 28, 128));
    output = register_module("output", torch::nn::Linear(128, 10));
  }
  at::Tensor forward(const at::Tensor& x) { return output(torch::relu(hidden(x.flatten(1)))); }

  torch::nn::Linear hidden{nullptr};
  torch::nn::Linear output{nullptr};
};

constexpr std::int64_t iterations_at_a_time = 200;

/// CPU time of this thread: what other programs do in the meantime does not count.
double cpu_microseconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e6 + static_cast<double>(now.tv_nsec) * 1e-3;
}

/// One training that goes on and on, in stretches of so many iterations from the beginning of an epoch. Both functions
/// give the microseconds per iteration.
template <class Batches>
struct training {
  std::shared_ptr<mlp_net> model;
  std::unique_ptr<torch::optim::Optimizer> optimizer;
  Batches batches;
  double loss_sum = 0.0;

  double by_hand() {
    const double start = cpu_microseconds();
    std::int64_t iteration = 0;
    for (const auto batch : batches) {
      if (iteration++ == iterations_at_a_time) break;
      const auto loss = F::cross_entropy(model->forward(batch.data), batch.target);
      optimizer->zero_grad();
      loss.backward();
      optimizer->step();
      loss_sum += loss.template item<double>();
    }
    return (cpu_microseconds() - start) / static_cast<double>(iterations_at_a_time);
  }

  /// From `training_started` to `training_completed`: what happens once per run is not the matter here.
  double by_rondo() {
    double start = 0.0, end = 0.0;
    rondo::loop loop(model, *optimizer, batches, F::cross_entropy, {.max_iterations = iterations_at_a_time});
    loop | make_extension("loss_sum", [this, &start, &end](context& ctx) {
      ctx.on<event::training_started>([&start] { start = cpu_microseconds(); });
      ctx.on<event::iteration_completed>([this, &ctx] { loss_sum += ctx.observed("train/loss"); });
      ctx.on<event::training_completed>([&end] { end = cpu_microseconds(); });
    });
    loop.run();
    return (end - start) / static_cast<double>(iterations_at_a_time);
  }
};

template <class Optimizer>
void train_mlp(benchmark::State& state) {
  static const data::tensor_dataset images = data::fashion_mnist();
  torch::manual_seed(1);
  auto model = std::make_shared<mlp_net>();
  auto optimizer = std::make_unique<Optimizer>(model->parameters(), 1e-3);
  auto batches = images | data::shuffle(1) | data::batch(64);
  training<decltype(batches)> t{model, std::move(optimizer), batches};
  t.by_hand();
  t.by_rondo();

  // In turns, and in changing order, so that a slow moment of the machine hits both.
  std::vector<double> by_hand, by_rondo, ratios;
  bool hand_first = true;
  for (auto _ : state) {
    if (hand_first) by_hand.push_back(t.by_hand());
    by_rondo.push_back(t.by_rondo());
    if (!hand_first) by_hand.push_back(t.by_hand());
    ratios.push_back(by_rondo.back() / by_hand.back());
    hand_first = !hand_first;
  }
  benchmark::DoNotOptimize(t.loss_sum);
  state.counters["hand_us"] = median(by_hand);
  state.counters["rondo_us"] = median(by_rondo);
  state.counters["rondo_per_hand"] = median(ratios);
}

// ---- iterations that do nothing ----

constexpr std::int64_t empty_iterations = 20'000;

template <class MakeExtension>
void empty_loop(benchmark::State& state, MakeExtension make) {
  for (auto _ : state) {
    rondo::loop loop(models{}, optimizers{}, ranges::views::iota(std::int64_t{0}, empty_iterations),
                     [](context&, std::int64_t&) {}, {.max_epochs = 1});
    for (std::int64_t i = 0; i != state.range(0); ++i) loop | make("extension " + std::to_string(i));
    loop.run();
  }
  state.counters["ns_per_iteration"] = nanoseconds_for_each_of(static_cast<double>(empty_iterations));
}

void empty_loop_inline(benchmark::State& state) {
  std::int64_t calls = 0;
  empty_loop(state, [&calls](std::string name) {
    return make_extension(std::move(name),
                          [&calls](context& ctx) { ctx.on<event::iteration_completed>([&calls] { ++calls; }); });
  });
  benchmark::DoNotOptimize(calls);
}

void empty_loop_never_due(benchmark::State& state) {
  std::int64_t calls = 0;
  empty_loop(state, [&calls](std::string name) {
    return make_extension(std::move(name), [&calls](context& ctx) { ctx.when_due([&calls] { ++calls; }); })
        .triggered(every(1'000'000_iterations));
  });
  if (calls != 0) state.SkipWithError("a trigger fired");
}

void empty_loop_coroutine(benchmark::State& state) {
  std::int64_t calls = 0;
  empty_loop(state, [&calls](std::string name) {
    return make_extension(std::move(name), [&calls](context& ctx) -> task<> {
      while (const auto* e = co_await ctx.next<event::iteration_completed>()) calls += e->iteration;
    });
  });
  benchmark::DoNotOptimize(calls);
}

/// Every extension that waits for something, none of which comes. What looks at every iteration by its nature (the
/// averages of a log, profile_report) is not here.
void idle_extensions(benchmark::State& state) {
  std::ostringstream nowhere;
  const auto out = std::filesystem::temp_directory_path() / "rondo-bench-idle";
  torch::nn::Linear model(1, 1);
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  for (auto _ : state) {
    rondo::loop loop(model, optimizer, ranges::views::iota(std::int64_t{0}, empty_iterations),
                     [](context&, std::int64_t&) {}, {.max_iterations = empty_iterations, .out = out});
    if (state.range(0) != 0) {
      const auto idle = never();
      loop | snapshot({.final = false}).triggered(idle) | call("call", idle, [] {}) |
          evaluator(data::tensor_dataset(torch::rand({4, 1}), torch::rand({4, 1})) | data::batch(2),
                    [](context&, const auto&) {})
              .triggered(idle) |
          lr_scheduler(schedules::constant(), {.key = ""}).triggered(idle) | ema() | swa({.every = 1'000'000_epochs}) |
          freeze_until("weight", idle) | timeline_trace({.trigger = idle, .enable = idle}) |
          notify({.url = "http://127.0.0.1:1/", .start_message = "", .end_message = ""}).triggered(idle);
    }
    loop.run();
  }
  std::filesystem::remove_all(out);
  state.counters["ns_per_iteration"] = nanoseconds_for_each_of(static_cast<double>(empty_iterations));
}

constexpr auto ms = benchmark::kMillisecond;
BENCHMARK_TEMPLATE(train_mlp, torch::optim::SGD)->Name("train/mlp/sgd")->Unit(ms)->Iterations(25);
BENCHMARK_TEMPLATE(train_mlp, torch::optim::Adam)->Name("train/mlp/adam")->Unit(ms)->Iterations(25);
BENCHMARK(empty_loop_inline)->Name("empty_loop/inline")->Unit(ms)->Arg(0)->Arg(5)->Arg(20);
BENCHMARK(empty_loop_never_due)->Name("empty_loop/never_due")->Unit(ms)->Arg(20);
BENCHMARK(idle_extensions)->Name("empty_loop/all_extensions")->Unit(ms)->Arg(0)->Arg(1);
BENCHMARK(empty_loop_coroutine)->Name("empty_loop/coroutine")->Unit(ms)->Arg(1)->Arg(5);

/// LibTorch's number of threads does not reach OpenBLAS, which has threads of its own.
void use_one_thread() {
  at::set_num_threads(1);
  if (void* found = dlsym(RTLD_DEFAULT, "openblas_set_num_threads")) reinterpret_cast<void (*)(int)>(found)(1);
}

}  // namespace
}  // namespace rondo::bench

int main(int argc, char** argv) {
  rondo::bench::use_one_thread();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

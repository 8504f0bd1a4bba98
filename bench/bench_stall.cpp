// How long snapshots hold up training: a model of 100 million parameters with Adam (1.2 GB of state) that trains while
// it is saved. Files go to the folder in the environment variable RONDO_BENCH_DIR, else to the current one.
//
//     iteration   the mean time of an iteration, snapshots included
//     stall       what the loop itself has lost to a snapshot: `snapshot_completed::stall_seconds`, the median

#include <benchmark/benchmark.h>
#include <sys/resource.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adam.h>
#include <torch/types.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <range/v3/view/iota.hpp>
#include <string>
#include <vector>

#include "rondo/event/interval.hpp"
#include "rondo/extensions/snapshot/formats.hpp"
#include "rondo/extensions/snapshot/snapshot.hpp"
#include "rondo/loop/loop.hpp"

namespace rondo::bench {
namespace {

namespace fs = std::filesystem;
using writer_pointer = std::shared_ptr<writing::writer>;

constexpr std::int64_t width = 1024;
constexpr std::int64_t batch = 64;
constexpr std::int64_t iterations_per_snapshot = 4;

fs::path folder() {
  const char* chosen = std::getenv("RONDO_BENCH_DIR");
  const fs::path parent = chosen != nullptr ? fs::path(chosen) : fs::current_path();
  return parent / (".rondo-bench-stall-" + std::to_string(::getpid()));
}

double median(std::vector<double> numbers) {
  if (numbers.empty()) return 0.0;
  const auto middle = numbers.begin() + static_cast<std::ptrdiff_t>(numbers.size() / 2);
  std::nth_element(numbers.begin(), middle, numbers.end());
  return *middle;
}

long page_faults() {
  rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  return used.ru_minflt;
}

/// Trains with a snapshot every few iterations, or none without a writer.
void train(benchmark::State& state, const std::function<writer_pointer()>& make_writer) {
  torch::nn::Sequential model;
  for (std::int64_t i = 0; i < state.range(0) / 12; ++i) model->push_back(torch::nn::Linear(width, width));
  auto optimizer = std::make_shared<torch::optim::Adam>(model->parameters(), 1e-4);
  const auto x = torch::rand({batch, width});
  const std::int64_t snapshots = 6;
  const auto out = folder();
  for (auto _ : state) {
    rondo::loop loop(models(model), optimizers(optimizer), ranges::views::ints(0, 1'000'000),
                     [&](context&, int&) -> at::Tensor { return model->forward(x).square().mean(); },
                     {.max_iterations = iterations_per_snapshot * snapshots + 1, .out = out});
    std::vector<double> stalls;
    std::vector<double> totals;
    double memory = 0.0;
    double size = 0.0;
    long faults = 0;
    if (const auto writer = make_writer())
      loop | snapshot({.n_retains = 1, .writer = writer}).triggered(every(iterations{iterations_per_snapshot}));
    std::chrono::steady_clock::time_point begun;
    double seconds = 0.0;
    loop | make_extension("measure", [&](context& ctx) {
      ctx.on<event::snapshot_completed>([&](const event::snapshot_completed& e) {
        // The first one finds memory that has not been used before.
        if (e.iteration > iterations_per_snapshot) stalls.push_back(e.stall_seconds);
        totals.push_back(e.total_seconds);
        memory = static_cast<double>(e.memory) / 1e6;
        size = static_cast<double>(e.bytes) / 1e6;
      });
      ctx.on<event::iteration_completed>([&] {
        if (ctx.iteration() == 1) begun = std::chrono::steady_clock::now();
        if (ctx.iteration() == iterations_per_snapshot + 2) faults = page_faults();
      });
      ctx.on<event::training_completed>([&] {
        faults = page_faults() - faults;
        seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
      });
    });
    loop.run();
    state.SetIterationTime(seconds / static_cast<double>(iterations_per_snapshot * snapshots));
    state.counters["stall_ms"] = median(stalls) * 1e3;
    state.counters["stall_max_ms"] = stalls.empty() ? 0.0 : *std::max_element(stalls.begin(), stalls.end()) * 1e3;
    state.counters["durable_ms"] = median(totals) * 1e3;
    state.counters["memory_MB"] = memory;
    state.counters["file_MB"] = size;
    state.counters["page_faults"] = static_cast<double>(faults);
  }
  fs::remove_all(out);
}

writer_pointer make(const std::string& kind, const writing::savefun& savefun) {
  if (kind == "simple") return writers::simple({.savefun = savefun});
  if (kind == "thread") return writers::thread({.savefun = savefun});
  if (kind == "thread_queue") return writers::thread_queue({.capacity = 2, .savefun = savefun});
  if (kind == "process_queue") return writers::process_queue({.savefun = savefun});
  return nullptr;
}

void add(const std::string& kind, const std::string& format, const writing::savefun& savefun) {
  benchmark::RegisterBenchmark(("iteration/" + kind + format).c_str(),
                               [=](benchmark::State& state) { train(state, [&] { return make(kind, savefun); }); })
      ->ArgName("MiB")
      ->Arg(1200)
      ->Unit(benchmark::kMillisecond)
      ->UseManualTime()
      ->Iterations(1);
}

const bool all_added = [] {
  for (const char* const kind : {"no_snapshots", "simple", "thread", "thread_queue", "process_queue"})
    add(kind, "", {});
  for (const char* const kind : {"simple", "thread", "thread_queue", "process_queue"}) {
    add(kind, "/libtorch", formats::libtorch());
    add(kind, "/safetensors", formats::safetensors());
    add(kind, "/zstd", formats::zstd(formats::checkpoint()));
  }
  return true;
}();

}  // namespace
}  // namespace rondo::bench

BENCHMARK_MAIN();

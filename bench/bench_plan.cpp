// What a snapshot costs before the first byte is copied, and what it costs to open a file: states of very many small
// tensors, and files of few large ones. Files go to the folder in the environment variable RONDO_BENCH_DIR, else to the
// current one; it needs room for 1 GB.

#include <benchmark/benchmark.h>
#include <fmt/format.h>
#include <torch/types.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <system_error>
#include <vector>

#include "rondo/checkpoint/planner.hpp"
#include "rondo/checkpoint/reader.hpp"
#include "rondo/checkpoint/tensors.hpp"
#include "rondo/checkpoint/verify.hpp"

namespace rondo::bench {
namespace {

namespace fs = std::filesystem;

/// So many parameters of 8 numbers, and scalars beside them.
class many_tensors {
 public:
  explicit many_tensors(std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) parameters_.push_back(torch::zeros({4, 2}));
  }
  /// As a model gives it: other tensors each time, which view the same memory.
  [[nodiscard]] state::value state_dict() const {
    state::dict model;
    for (std::size_t i = 0; i < parameters_.size(); ++i)
      model.insert_or_assign(fmt::format("layers.{}.weight", i), parameters_[i].detach());
    return state::dict{{"models", state::dict{{"main", std::move(model)}}}, {"lr", 0.1}, {"iteration", 1}};
  }

 private:
  std::vector<at::Tensor> parameters_;
};

void plan_first(benchmark::State& state) {
  const auto v = many_tensors(state.range(0)).state_dict();
  for (auto _ : state) {
    checkpoint::planner planner;
    planner.plan(v, {});
    benchmark::DoNotOptimize(planner.file().size());
    state.PauseTiming();
    planner = {};
    state.ResumeTiming();
  }
}

void plan_cached(benchmark::State& state) {
  const many_tensors training(state.range(0));
  checkpoint::planner planner;
  planner.plan(training.state_dict(), {});
  checkpoint::snapshot_info info;
  for (auto _ : state) {
    state.PauseTiming();
    planner.release();
    {
      const auto v = training.state_dict();
      info.iteration += 7;
      state.ResumeTiming();
      planner.plan(v, info);
      state.PauseTiming();
    }
    if (!planner.reused()) state.SkipWithError("the plan was not built upon the one before");
    state.ResumeTiming();
  }
}

/// What remains to be done once everything is planned: the file's frame and copies of the storages.
void fill_image(benchmark::State& state) {
  const auto v = many_tensors(state.range(0)).state_dict();
  checkpoint::planner planner;
  planner.plan(v, {});
  std::vector<std::byte> image(planner.file().size(), std::byte{1});
  for (auto _ : state) {
    planner.file().write_frame(image);
    for (std::size_t i = 0; i < planner.storages().size(); ++i) {
      const auto data = planner.storages()[i].data;
      if (!data.empty()) std::memcpy(image.data() + planner.file().storage_offset(i), data.data(), data.size());
    }
    auto spots = planner.file().checksum_spots();
    benchmark::DoNotOptimize(spots);
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(image.size()) * state.iterations());
}

/// A file of this state, in the page cache; removed at the end.
class written_file {
 public:
  explicit written_file(const state::value& v) {
    const char* chosen = std::getenv("RONDO_BENCH_DIR");
    path_ = (chosen != nullptr ? fs::path(chosen) : fs::current_path()) / fmt::format(".rondo-bench-plan-{}", getpid());
    const auto described = checkpoint::describe(v);
    std::ofstream out(path_, std::ios::binary);
    out.exceptions(std::ios::failbit | std::ios::badbit);
    checkpoint::encoder(described.tree, described.views(), {}).write([&](std::span<const std::byte> bytes) {
      out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    });
  }
  written_file(const written_file&) = delete;
  written_file& operator=(const written_file&) = delete;
  ~written_file() {
    std::error_code ignored;
    fs::remove(path_, ignored);
  }
  [[nodiscard]] const fs::path& path() const noexcept { return path_; }

 private:
  fs::path path_;
};

template <class Action>
void measure_file(benchmark::State& state, const state::value& v, Action action) {
  const written_file file(v);
  for (auto _ : state) action(file.path());
  state.counters["MB"] = static_cast<double>(fs::file_size(file.path())) / 1e6;
}

void open_file(const fs::path& path) {
  auto file = checkpoint::reader::open(path);
  benchmark::DoNotOptimize(file);
}

void open_many(benchmark::State& state) { measure_file(state, many_tensors(state.range(0)).state_dict(), open_file); }

void load_many(benchmark::State& state) {
  measure_file(state, many_tensors(state.range(0)).state_dict(), [](const fs::path& path) {
    auto loaded = checkpoint::materialize(checkpoint::reader::open(path));
    benchmark::DoNotOptimize(loaded);
  });
}

void verify_many(benchmark::State& state) {
  measure_file(state, many_tensors(state.range(0)).state_dict(),
               [](const fs::path& path) { checkpoint::verify(checkpoint::reader::open(path)); });
}

void open_large(benchmark::State& state) {
  state::list tensors;
  for (std::int64_t i = 0; i < state.range(0) / 8; ++i) tensors.push_back(torch::zeros({2, 1024, 1024}));
  measure_file(state, std::move(tensors), open_file);
}

void configure(benchmark::internal::Benchmark* b) {
  b->ArgName("tensors")->Arg(100'000)->Unit(benchmark::kMillisecond)->UseRealTime();
}
BENCHMARK(plan_first)->Name("plan/first")->Apply(configure);
BENCHMARK(plan_cached)->Name("plan/cached")->Apply(configure);
BENCHMARK(fill_image)->Name("plan/fill_image")->Apply(configure);
BENCHMARK(open_many)->Name("read/open")->Apply(configure);
BENCHMARK(verify_many)->Name("read/open_and_verify")->Apply(configure);
BENCHMARK(load_many)->Name("read/open_and_materialize")->Apply(configure);
BENCHMARK(open_large)->Name("read/open")->ArgName("MiB")->Arg(1024)->Unit(benchmark::kMillisecond)->UseRealTime();

}  // namespace
}  // namespace rondo::bench

BENCHMARK_MAIN();

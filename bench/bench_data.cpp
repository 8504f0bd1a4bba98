// What data pipelines give and cost: batches of augmented Fashion-MNIST by `prefetch` beside LibTorch's DataLoader, how
// long a training thread waits for them, and how long it takes to get to a position. LibTorch uses one thread for each
// operation here. The reader of the DataLoader wants plain files, which are put into a temporary folder for a moment.
//
//     throughput   ours_images_s and torch_images_s; ours_per_torch is the median of the ratios of neighbouring epochs
//     wait         training on a small convolutional network; late_percent is the part of the batches that are not
//     there
//                  when they are needed, wait_percent the part of the time during which the training thread waits for
//                  those, fetch_percent the part of the time that it spends on getting batches at all, or without the
//                  processor meanwhile
//     resume       `pass::load_state_dict` of a pass that has not begun (restore_us), and from its beginning until the
//     first
//                  batch is there (first_us)

#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>
#include <dlfcn.h>
#include <torch/data/dataloader.h>
#include <torch/data/datasets/map.h>
#include <torch/data/datasets/mnist.h>
#include <torch/data/samplers/random.h>
#include <torch/data/transforms/lambda.h>
#include <torch/data/transforms/stack.h>
#include <torch/data/transforms/tensor.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/container/functional.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "rondo/data/data.hpp"
#include "rondo/data/pass.hpp"
#include "rondo/data/prefetch.hpp"
#include "support.hpp"

namespace rondo::bench {
namespace {

namespace fs = std::filesystem;
namespace F = torch::nn::functional;

constexpr double mean = data::fashion_mnist_normalised.mean;
constexpr double deviation = data::fashion_mnist_normalised.std;
constexpr std::int64_t batch_size = 64;
constexpr std::int64_t depth = 8;

using clock = std::chrono::steady_clock;

double seconds_since(clock::time_point start) { return std::chrono::duration<double>(clock::now() - start).count(); }

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

const data::tensor_dataset& images() {
  static const data::tensor_dataset all = data::fashion_mnist();
  return all;
}

// ---- the augmentation, which is the same for both: normalise, and turn over every other image ----

at::Tensor normalised(const at::Tensor& pixels) {
  static const at::Tensor centre = at::full({1, 1, 1}, mean);
  static const at::Tensor scale = at::full({1, 1, 1}, deviation);
  return pixels.sub(centre).div(scale);
}

data::example augment_image(data::example e, data::random_sequence& random) {
  e.data = normalised(e.data);
  if (random.below(2) == 0) e.data = e.data.flip({2});
  return e;
}

data::example augment_batch(data::example b, data::random_sequence& random) {
  const auto turned = at::empty({b.data.size(0), 1, 1, 1}, at::kBool);
  bool* const each = turned.data_ptr<bool>();
  for (std::int64_t i = 0; i != b.data.size(0); ++i) each[i] = random.below(2) == 0;
  const auto upright = normalised(b.data);
  b.data = at::where(turned, upright.flip({3}), upright);
  return b;
}

// ---- LibTorch's side ----

/// The files of Fashion-MNIST as LibTorch reads them.
class plain_files {
 public:
  plain_files() : folder_(fs::temp_directory_path() / ("rondo-bench-data-" + std::to_string(::getpid()))) {
    fs::create_directory(folder_);
    write("train-images-idx3-ubyte", {0, 0, 8, 3});
    write("train-labels-idx1-ubyte", {0, 0, 8, 1});
  }
  plain_files(const plain_files&) = delete;
  plain_files& operator=(const plain_files&) = delete;
  ~plain_files() {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }

  [[nodiscard]] std::string folder() const { return folder_.string(); }

 private:
  void write(const std::string& name, std::vector<char> bytes) const {
    const auto content = data::read_idx(fs::path(data::fashion_mnist_root) / (name + ".gz"));
    for (const std::int64_t size : content.sizes())
      for (const int shift : {24, 16, 8, 0}) bytes.push_back(static_cast<char>((size >> shift) & 0xff));
    std::ofstream out(folder_ / name, std::ios::binary);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    out.write(reinterpret_cast<const char*>(content.data_ptr<std::uint8_t>()), content.numel());
    if (!out.flush()) throw std::runtime_error("cannot write " + (folder_ / name).string());
  }

  fs::path folder_;
};

data::random_sequence& random_of_thread() {
  static std::atomic<std::uint64_t> threads{0};
  thread_local data::random_sequence random(++threads);
  return random;
}

torch::data::datasets::MNIST torch_images() {
  static const auto all = [] {
    const plain_files files;
    return torch::data::datasets::MNIST(files.folder());
  }();
  return all;
}

auto torch_options(std::int64_t workers) {
  return torch::data::DataLoaderOptions(batch_size).workers(static_cast<std::size_t>(workers)).max_jobs(depth);
}

auto torch_by_image(std::int64_t workers) {
  auto set = torch_images()
                 .map(torch::data::transforms::Normalize<>(mean, deviation))
                 .map(torch::data::transforms::TensorLambda<>(
                     [](at::Tensor image) { return random_of_thread().below(2) == 0 ? image.flip({2}) : image; }))
                 .map(torch::data::transforms::Stack<>());
  return torch::data::make_data_loader<torch::data::samplers::RandomSampler>(std::move(set), torch_options(workers));
}

/// LibTorch has no transform of a stacked batch: this one stacks by itself.
auto torch_by_batch(std::int64_t workers) {
  using stack_and_augment = torch::data::transforms::BatchLambda<std::vector<data::example>, data::example>;
  auto set = torch_images().map(stack_and_augment([](std::vector<data::example> examples) {
    return augment_batch(data::collate(std::move(examples)), random_of_thread());
  }));
  return torch::data::make_data_loader<torch::data::samplers::RandomSampler>(std::move(set), torch_options(workers));
}

auto ours_by_image(std::int64_t workers) {
  return images() | data::shuffle(1) | data::transform(augment_image, 2) | data::batch(batch_size) |
         data::prefetch(depth, workers);
}

auto ours_by_batch(std::int64_t workers) {
  return images() | data::shuffle(1) | data::batch(batch_size) | data::transform(augment_batch, 2) |
         data::prefetch(depth, workers);
}

/// Images per second of one epoch. The reader does nothing with them.
template <class Batches>
double read_epoch(Batches& batches) {
  std::int64_t count = 0;
  const auto start = clock::now();
  for (auto& b : batches) {
    count += b.data.size(0);
    benchmark::DoNotOptimize(b.data);
  }
  return static_cast<double>(count) / seconds_since(start);
}

template <class MakeOurs, class MakeTheirs>
void throughput(benchmark::State& state, MakeOurs make_ours, MakeTheirs make_theirs) {
  auto ours = make_ours(state.range(0));
  auto theirs = make_theirs(state.range(0));
  read_epoch(ours);
  read_epoch(*theirs);
  std::vector<double> ours_per_second, theirs_per_second, ratios;
  std::int64_t epoch = 0;
  for (auto _ : state) {
    data::set_epoch(ours, ++epoch);
    // In turns, and in changing order, so that a slow moment of the machine hits both.
    if (epoch % 2 == 0) ours_per_second.push_back(read_epoch(ours));
    theirs_per_second.push_back(read_epoch(*theirs));
    if (epoch % 2 != 0) ours_per_second.push_back(read_epoch(ours));
    ratios.push_back(ours_per_second.back() / theirs_per_second.back());
  }
  state.counters["ours_images_s"] = median(ours_per_second);
  state.counters["torch_images_s"] = median(theirs_per_second);
  state.counters["ours_per_torch"] = median(ratios);
}

void throughput_batch(benchmark::State& state) { throughput(state, ours_by_batch, torch_by_image); }
void throughput_image(benchmark::State& state) { throughput(state, ours_by_image, torch_by_image); }
void throughput_both_batch(benchmark::State& state) { throughput(state, ours_by_batch, torch_by_batch); }

// ---- waiting ----

struct small_network {
  torch::nn::Sequential model{torch::nn::Conv2d(torch::nn::Conv2dOptions(1, 16, 3)),
                              torch::nn::Functional(torch::relu),
                              torch::nn::Conv2d(torch::nn::Conv2dOptions(16, 16, 3).stride(2)),
                              torch::nn::Functional(torch::relu),
                              torch::nn::Functional([](const at::Tensor& x) { return x.flatten(1); }),
                              torch::nn::Linear(16 * 12 * 12, 10)};
  torch::optim::SGD optimizer{model->parameters(), 0.01};

  void step(const data::example& batch) {
    optimizer.zero_grad();
    F::cross_entropy(model->forward(batch.data), batch.target).backward();
    optimizer.step();
  }
};

void wait(benchmark::State& state) {
  constexpr std::int64_t iterations = 300;
  small_network network;
  data::pass batches(images() | data::shuffle(1) | data::batch(batch_size) | data::transform(augment_batch, 2) |
                     data::prefetch(depth, state.range(0)));
  std::vector<double> late_shares, wait_shares, fetch_shares, steps;
  for (auto _ : state) {
    batches.begin(0);
    network.step(batches.take());  // nobody could have made the first one ahead
    batches.advance();
    std::int64_t late = 0;
    double waited = 0.0, fetched = 0.0;
    const auto start = clock::now();
    for (std::int64_t i = 0; i != iterations; ++i) {
      const auto asked = clock::now();
      const bool is_late = batches.ready().has_value();
      const auto batch = batches.take();
      const double seconds = seconds_since(asked);
      fetched += seconds;
      late += is_late ? 1 : 0;
      waited += is_late ? seconds : 0.0;
      network.step(batch);
      batches.advance();
    }
    const double total = seconds_since(start);
    late_shares.push_back(100.0 * static_cast<double>(late) / static_cast<double>(iterations));
    wait_shares.push_back(100.0 * waited / total);
    fetch_shares.push_back(100.0 * fetched / total);
    steps.push_back(1e3 * (total - fetched) / static_cast<double>(iterations));
  }
  state.counters["late_percent"] = median(late_shares);
  state.counters["wait_percent"] = median(wait_shares);
  state.counters["fetch_percent"] = median(fetch_shares);
  state.counters["step_ms"] = median(steps);
}

// ---- positions ----

template <class View>
void resume(benchmark::State& state, View view) {
  const std::int64_t batch = state.range(0) / 50;
  data::pass saved(view);
  saved.begin(3, batch);
  const state::value position(saved.state_dict());
  std::vector<double> restore, first;
  for (auto _ : state) {
    state.PauseTiming();
    {
      data::pass restored(view);
      state.ResumeTiming();
      const auto start = clock::now();
      restored.load_state_dict(position);
      restore.push_back(1e6 * seconds_since(start));
      benchmark::DoNotOptimize(restored.take());
      first.push_back(1e6 * seconds_since(start));
      state.PauseTiming();
    }
    state.ResumeTiming();
  }
  state.counters["restore_us"] = median(restore);
  state.counters["first_us"] = median(first);
}

auto batches_of_50() { return images() | data::shuffle(1) | data::transform(augment_image, 2) | data::batch(50); }

void resume_plain(benchmark::State& state) { resume(state, batches_of_50()); }
void resume_prefetch(benchmark::State& state) { resume(state, batches_of_50() | data::prefetch(depth, 2)); }

constexpr auto ms = benchmark::kMillisecond;
constexpr auto us = benchmark::kMicrosecond;
BENCHMARK(throughput_batch)
    ->Name("throughput/batch")
    ->ArgName("workers")
    ->Arg(1)
    ->Arg(2)
    ->Unit(ms)
    ->Iterations(7)
    ->UseRealTime();
BENCHMARK(throughput_image)
    ->Name("throughput/image")
    ->ArgName("workers")
    ->Arg(1)
    ->Arg(2)
    ->Unit(ms)
    ->Iterations(5)
    ->UseRealTime();
BENCHMARK(throughput_both_batch)
    ->Name("throughput/both_batch")
    ->ArgName("workers")
    ->Arg(1)
    ->Arg(2)
    ->Unit(ms)
    ->Iterations(5)
    ->UseRealTime();
BENCHMARK(wait)->Name("wait")->ArgName("workers")->Arg(1)->Arg(2)->Unit(ms)->Iterations(5)->UseRealTime();
BENCHMARK(resume_plain)
    ->Name("resume/plain")
    ->ArgName("sample")
    ->Arg(100)
    ->Arg(50'000)
    ->Unit(us)
    ->Iterations(200)
    ->UseRealTime();
BENCHMARK(resume_prefetch)
    ->Name("resume/prefetch")
    ->ArgName("sample")
    ->Arg(100)
    ->Arg(50'000)
    ->Unit(us)
    ->Iterations(200)
    ->UseRealTime();

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

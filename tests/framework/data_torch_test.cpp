// DataLoaders and data sets of LibTorch as batches and data.

#include <torch/data/dataloader.h>
#include <torch/data/datasets/base.h>
#include <torch/data/datasets/map.h>
#include <torch/data/samplers.h>
#include <torch/data/transforms.h>
#include <torch/types.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "rondo/data/data.hpp"
#include "rondo/error.hpp"
#include "rondo/state/random.hpp"
#include "support/catch.hpp"

namespace data_torch_test {

using namespace rondo;
using numbers = std::vector<std::int64_t>;

namespace {

class counted : public torch::data::datasets::Dataset<counted> {
 public:
  explicit counted(std::int64_t size) : size_(size) {}
  torch::data::Example<> get(std::size_t index) override {
    return {torch::full({2}, static_cast<double>(index)), torch::tensor(static_cast<std::int64_t>(index))};
  }
  torch::optional<std::size_t> size() const override { return static_cast<std::size_t>(size_); }

 private:
  std::int64_t size_;
};

auto random_loader(std::int64_t size, std::int64_t batch, std::size_t workers) {
  return torch::data::make_data_loader<torch::data::samplers::RandomSampler>(
      counted(size).map(torch::data::transforms::Stack<>()),
      torch::data::DataLoaderOptions(static_cast<std::size_t>(batch)).workers(workers));
}

void append(numbers& to, const at::Tensor& targets) {
  for (std::int64_t i = 0; i < targets.numel(); ++i) to.push_back(targets[i].item<std::int64_t>());
}

template <class View>
numbers rest_of(data::pass<View>& walk) {
  numbers all;
  for (; !walk.exhausted(); walk.advance()) append(all, walk.take().target);
  return all;
}

}  // namespace

TEST_CASE("a DataLoader gives its batches, epoch after epoch", "[data][torch]") {
  const std::size_t workers = GENERATE(0, 2);
  auto loader = random_loader(10, 4, workers);
  data::pass walk(data::torch_loader(*loader));
  CHECK_FALSE(walk.size());
  std::vector<numbers> epochs;
  for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
    walk.begin(epoch);
    epochs.push_back(rest_of(walk));
    auto sorted = epochs.back();
    std::sort(sorted.begin(), sorted.end());
    CHECK(sorted == numbers{0, 1, 2, 3, 4, 5, 6, 7, 8, 9});
  }
  CHECK(epochs[0] != epochs[1]);
  // Also where the last one was left before its end.
  walk.begin(3);
  static_cast<void>(walk.take());
  walk.begin(4);
  CHECK(rest_of(walk).size() == 10);
}

TEST_CASE("a resumed run has the DataLoader's order of the epoch", "[data][torch]") {
  const std::size_t workers = GENERATE(0, 2);
  torch::manual_seed(5);
  auto loader = random_loader(20, 3, workers);
  data::pass walk(data::torch_loader(*loader));
  walk.begin(0);
  static_cast<void>(rest_of(walk));
  walk.begin(1);
  for (int i = 0; i < 3; ++i, walk.advance()) static_cast<void>(walk.take());
  const state::value position = walk.state_dict();
  const state::value generators = state::random_state();
  const auto rest = rest_of(walk);
  walk.begin(2);
  const auto next_epoch = rest_of(walk);

  torch::manual_seed(77);
  auto other = random_loader(20, 3, workers == 0 ? 2 : 0);
  data::pass again(data::torch_loader(std::move(other)));
  again.load_state_dict(position);
  state::load_random_state(generators);
  CHECK(rest_of(again) == rest);
  again.begin(2);
  CHECK(rest_of(again) == next_epoch);
}

TEST_CASE("a data set of LibTorch begins a pipeline", "[data][torch]") {
  const auto plain = data::torch_dataset(counted(10));
  CHECK(ranges::size(plain) == 10);
  numbers all;
  for (auto&& batch : plain | data::shuffle(1) | data::batch(4) | data::prefetch(2, 2)) append(all, batch.target);
  std::sort(all.begin(), all.end());
  CHECK(all == numbers{0, 1, 2, 3, 4, 5, 6, 7, 8, 9});

  const auto mapped = data::torch_dataset(counted(4).map(torch::data::transforms::Normalize<>(1.0, 2.0)));
  const data::example third = mapped[2];
  CHECK(third.data.flatten()[0].item<double>() == 0.5);
}

namespace {

class endless : public torch::data::datasets::Dataset<endless> {
 public:
  torch::data::Example<> get(std::size_t) override { return {torch::zeros({1}), torch::zeros({1})}; }
  torch::optional<std::size_t> size() const override { return torch::nullopt; }
};

}  // namespace

TEST_CASE("a data set of LibTorch must know its size", "[data][torch]") {
  CHECK_THROWS_AS(data::torch_dataset(endless()), option_error);
}

}  // namespace data_torch_test

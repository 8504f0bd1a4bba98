#pragma once

#include <c10/util/ArrayRef.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <range/v3/range/access.hpp>
#include <range/v3/view/facade.hpp>
#include <utility>

#include "rondo/data/stage.hpp"
#include "rondo/error.hpp"

namespace rondo::data {

namespace detail {

template <class Dataset>
concept gets_one = requires(Dataset& dataset) {
  dataset.get(std::size_t{0});
};

template <class Dataset>
concept gets_vectors = requires(Dataset& dataset, c10::ArrayRef<std::size_t> positions) {
  dataset.get_batch(positions).front();
};

template <class Dataset>
class torch_dataset_view : public ranges::view_facade<torch_dataset_view<Dataset>, ranges::finite> {
  static_assert(gets_one<Dataset> || gets_vectors<Dataset>,
                "data::torch_dataset takes data sets of LibTorch that give single examples: leave torch's Stack out, "
                "data::batch stacks them");

 public:
  torch_dataset_view() = default;
  explicit torch_dataset_view(Dataset dataset) : dataset_(std::make_shared<Dataset>(std::move(dataset))) {
    const auto size = dataset_->size();
    if (!size) throw option_error("torch_dataset", "a data set of unknown size", "one that knows it");
    size_ = static_cast<std::int64_t>(*size);
  }

  [[nodiscard]] std::int64_t size() const noexcept { return size_; }

 private:
  friend ranges::range_access;
  friend index_cursor<torch_dataset_view>;

  [[nodiscard]] auto element(std::int64_t index) const {
    const auto position = static_cast<std::size_t>(index);
    if constexpr (gets_one<Dataset>)
      return dataset_->get(position);
    else
      return std::move(dataset_->get_batch(c10::ArrayRef<std::size_t>(position)).front());
  }
  [[nodiscard]] auto begin_cursor() const { return index_cursor<torch_dataset_view>(this, 0); }
  [[nodiscard]] auto end_cursor() const { return index_cursor<torch_dataset_view>(this, size_); }

  std::shared_ptr<Dataset> dataset_;
  std::int64_t size_ = 0;
};

}  // namespace detail

/// The examples of a data set of LibTorch (`torch::data::datasets`, mapped or not), as the beginning of a pipeline:
///
///     auto batches =
///     data::torch_dataset(torch::data::datasets::MNIST("mnist").map(torch::data::transforms::Normalize<>(0.13, 0.31)))
///                  | data::shuffle(seed) | data::batch(64);
///
/// Random access; the data set is taken over and shared by copies. It is asked by several threads at once where
/// `prefetch` has several workers, which those of LibTorch allow. Throws `option_error` when it does not know its size;
/// does not compile for one that gives stacked batches.
template <class Dataset>
[[nodiscard]] auto torch_dataset(Dataset dataset) {
  return detail::torch_dataset_view<Dataset>(std::move(dataset));
}

}  // namespace rondo::data

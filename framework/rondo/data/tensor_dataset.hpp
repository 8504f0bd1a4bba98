#pragma once

#include <cstddef>
#include <cstdint>
#include <range/v3/view/facade.hpp>
#include <span>

#include "rondo/data/example.hpp"

namespace rondo::data {

/// Examples held in two tensors, whose leading dimensions count the examples. A random access view: a copy shares the
/// tensors and costs nothing. Reading it from several threads at once is safe.
class tensor_dataset : public ranges::view_facade<tensor_dataset, ranges::finite> {
 public:
  /// No examples.
  tensor_dataset() = default;

  /// Shares both tensors. Throws `option_error` when one is undefined or has no dimension, or when their leading
  /// dimensions differ.
  tensor_dataset(at::Tensor data, at::Tensor target);

  [[nodiscard]] std::int64_t size() const { return size_; }

  /// A copy of example `index`, so that changing it in place leaves the data set as it is. Throws LibTorch's
  /// `c10::IndexError` when there is no such example.
  [[nodiscard]] example operator[](std::int64_t index) const;

  /// A batch of the examples at `positions`, in that order, copied with one `index_select` per tensor. Throws
  /// LibTorch's error when a position is out of range.
  [[nodiscard]] example gather(std::span<const std::int64_t> positions) const;

  /// All examples as one batch; the tensors are those of the data set, not copies.
  [[nodiscard]] const example& tensors() const noexcept { return tensors_; }

 private:
  friend ranges::range_access;

  class cursor {
   public:
    cursor() = default;
    cursor(const tensor_dataset* dataset, std::int64_t index) : dataset_(dataset), index_(index) {}

    [[nodiscard]] example read() const { return (*dataset_)[index_]; }
    [[nodiscard]] bool equal(const cursor& other) const { return index_ == other.index_; }
    void next() { ++index_; }
    void prev() { --index_; }
    void advance(std::ptrdiff_t n) { index_ += n; }
    [[nodiscard]] std::ptrdiff_t distance_to(const cursor& other) const { return other.index_ - index_; }

   private:
    const tensor_dataset* dataset_ = nullptr;
    std::int64_t index_ = 0;
  };

  [[nodiscard]] cursor begin_cursor() const { return {this, 0}; }
  [[nodiscard]] cursor end_cursor() const { return {this, size_}; }

  example tensors_;
  std::int64_t size_ = 0;
};

}  // namespace rondo::data

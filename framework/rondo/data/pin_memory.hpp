#pragma once

#include <ATen/core/Tensor.h>

#include <concepts>
#include <utility>

#include "rondo/data/example.hpp"

namespace rondo::data {

namespace detail {

void pin_memory() = delete;

template <class Batch>
concept pins_itself = requires(Batch batch) {
  { pin_memory(std::move(batch)) } -> std::convertible_to<Batch>;
};

struct pin_memory_fn {
  template <class Batch>
  Batch operator()(Batch batch) const {
    if constexpr (pins_itself<Batch>) {
      return pin_memory(std::move(batch));
    } else if constexpr (std::same_as<Batch, at::Tensor>) {
      if (batch.defined() && batch.device().is_cpu() && batch.layout() == at::kStrided) return batch.pin_memory();
    } else {
      each_part(batch, [this](auto& part) { part = (*this)(std::move(part)); });
    }
    return batch;
  }
};

}  // namespace detail

inline namespace customisation {

/// `pin_memory(batch)` returns the batch with every dense tensor of the CPU in page-locked memory, from which a GPU
/// copies without stopping the program. Knows the types that `to_device` knows; any other type passes unchanged.
/// Tensors that are in such memory already are shared. For an own type `B`, write `B pin_memory(B)` in its namespace.
/// Throws LibTorch's error where there is no CUDA.
inline constexpr detail::pin_memory_fn pin_memory{};

}  // namespace customisation

}  // namespace rondo::data

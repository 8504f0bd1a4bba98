#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "rondo/checkpoint/tensor_descriptor.hpp"

namespace rondo::checkpoint {

/// A tensor as a pickle describes it, like `tensor_descriptor`, but nothing of it is owned.
struct tensor_view {
  scalar_type dtype;
  std::size_t storage;  ///< numbers the storages of one tree: 0, 1, … in the order in which they come
  std::string_view storage_key;
  std::int64_t storage_numel;
  std::int64_t storage_offset;
  std::span<const std::int64_t> sizes;
  std::span<const std::int64_t> strides;
  bool requires_grad = false;
  bool parameter = false;
};

[[nodiscard]] inline tensor_view view_of(const tensor_descriptor& tensor, std::size_t storage) noexcept {
  return {tensor.dtype, storage,        tensor.storage_key,   tensor.storage_numel, tensor.storage_offset,
          tensor.sizes, tensor.strides, tensor.requires_grad, tensor.parameter};
}

/// See `problem_of(const tensor_descriptor&)`.
[[nodiscard]] std::optional<std::string> problem_of(const tensor_view& tensor);

}  // namespace rondo::checkpoint

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

/// How tensors of several dtypes share a message. They travel as bytes, because backends know few dtypes (Gloo has no
/// bfloat16) and bits must not change.
namespace rondo::distributed::detail {

/// Where something may begin in a message: tensors of every dtype can be views from there on.
[[nodiscard]] constexpr std::int64_t aligned(std::int64_t bytes) { return (bytes + 15) / 16 * 16; }

/// The bytes that `tensor` takes in a message.
[[nodiscard]] std::int64_t packed_size(const at::Tensor& tensor);

/// A contiguous tensor as its bytes, over the same memory.
[[nodiscard]] at::Tensor as_bytes(const at::Tensor& tensor);

/// The part of a message that begins at `offset`, as a tensor like `tensor`.
[[nodiscard]] at::Tensor place_in_message(const at::Tensor& message, std::int64_t offset, const at::Tensor& tensor);

}  // namespace rondo::distributed::detail

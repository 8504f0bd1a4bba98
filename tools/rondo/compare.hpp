#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "rondo/checkpoint/tensor_descriptor.hpp"

namespace rondo::tool {

/// How the elements of two tensors differ.
struct difference {
  std::uint64_t different = 0;  ///< elements that differ by more than the tolerance
  std::uint64_t with_nan = 0;   ///< those of them where exactly one side is NaN, or both are with different bits
  double max_abs = 0;           ///< the largest absolute difference, of those that are not `with_nan`

  /// Adds what differs between two runs of elements of equal length. Equal bits are equal. Others differ by the
  /// absolute value of a - b, rounded to double; for complex numbers that is the distance. Elements count as different
  /// when that is above `tolerance`, or, with a tolerance of 0, whenever their bits are not the same.
  void add(checkpoint::scalar_type type, std::span<const std::byte> a, std::span<const std::byte> b, double tolerance);
};

}  // namespace rondo::tool

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "rondo/checkpoint/tensor_descriptor.hpp"

namespace rondo::tool {

/// The number of elements of a tensor without `problem_of`.
[[nodiscard]] std::uint64_t numel(const checkpoint::tensor_descriptor& tensor);

/// `numel` in bytes; the highest number if that is more than 64 bits can hold.
[[nodiscard]] std::uint64_t byte_size(const checkpoint::tensor_descriptor& tensor);

/// The elements of a tensor in row-major order, however its strides lie, a piece at a time and so in little memory.
class elements {
 public:
  /// `storage` is the whole storage and must live longer. The tensor must lie inside it, as `reader::storage` makes
  /// sure. Throws `unusable_error` for a view that repeats a few elements so often that more than 1 GiB comes of it:
  /// an honest file has no such view, and a forged one could fill any disk.
  elements(const checkpoint::tensor_descriptor& tensor, std::span<const std::byte> storage);

  /// The next `size` bytes, fewer at the end, none behind it; `size` is a multiple of 16. Valid until the next call.
  [[nodiscard]] std::span<const std::byte> next(std::size_t size);

 private:
  struct dimension {
    std::uint64_t size;
    std::uint64_t stride;  // in elements
    std::uint64_t at = 0;
  };
  void merge_dimensions(const checkpoint::tensor_descriptor& tensor);
  [[nodiscard]] bool is_contiguous() const;
  void copy_row(std::byte* to, std::uint64_t count) const;
  void step_over(std::uint64_t count);

  std::span<const std::byte> storage_;
  std::size_t element_size_;
  std::vector<dimension> dimensions_;  // outermost first; never empty
  std::uint64_t offset_;               // of the next element, in elements
  std::uint64_t left_;                 // bytes
  std::vector<std::byte> gathered_;
};

}  // namespace rondo::tool

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>

namespace rondo::checkpoint {

/// A part of a tensor: from `offsets` on, `sizes` elements in each dimension. Nothing is owned.
struct box_view {
  std::span<const std::int64_t> offsets;
  std::span<const std::int64_t> sizes;
};

/// The number of elements, or nothing for a negative size or more than 64 bits can count.
[[nodiscard]] std::optional<std::int64_t> volume(std::span<const std::int64_t> sizes);

/// Whether the box lies inside a tensor of these sizes. All arithmetic is checked.
[[nodiscard]] bool is_inside(const box_view& box, std::span<const std::int64_t> sizes);

/// Why boxes do not make up a tensor.
struct coverage_fault {
  enum class kind {
    outside,  ///< the box `first` leads outside
    overlap,  ///< the boxes `first` and `second` have elements in common
    gap,      ///< together they hold only `covered` elements
  };
  kind what = kind::gap;
  std::size_t first = 0;
  std::size_t second = 0;
  std::int64_t covered = 0;
};

/// Whether boxes cover a tensor of these sizes, whose `volume` must be there, exactly once; if not, the first reason.
/// Takes n log n steps where boxes are cut along one dimension, and never more than n².
[[nodiscard]] std::optional<coverage_fault> coverage_fault_of(std::span<const std::int64_t> sizes,
                                                              std::span<const box_view> boxes);

/// Called with elements that two boxes have in common and that follow each other in both: where they begin in either,
/// counted in elements from its first one on in row-major order, and how many there are.
using common_run = std::function<void(std::uint64_t in_a, std::uint64_t in_b, std::uint64_t count)>;

/// Goes through the elements that two boxes of one tensor have in common, in runs as long as possible.
void for_common_runs(const box_view& a, const box_view& b, const common_run& run);

/// Where `inner` begins in `outer`, in elements, if all of its elements are there and follow each other there.
[[nodiscard]] std::optional<std::uint64_t> place_in(const box_view& inner, const box_view& outer);

/// Whether the boxes have an element in common.
[[nodiscard]] bool have_common_elements(const box_view& a, const box_view& b);

}  // namespace rondo::checkpoint

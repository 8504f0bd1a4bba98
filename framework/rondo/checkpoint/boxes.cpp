#include "rondo/checkpoint/boxes.hpp"

#include <algorithm>
#include <numeric>
#include <vector>

namespace rondo::checkpoint {

namespace {

std::int64_t end_of(const box_view& box, std::size_t dimension) {
  return box.offsets[dimension] + box.sizes[dimension];
}

/// The dimension along which boxes begin at the most different places.
std::size_t busiest_dimension(std::size_t dimensions, std::span<const box_view> boxes) {
  std::size_t best = 0;
  std::size_t most = 0;
  std::vector<std::int64_t> begins(boxes.size());
  for (std::size_t d = 0; d < dimensions; ++d) {
    std::ranges::transform(boxes, begins.begin(), [d](const box_view& box) { return box.offsets[d]; });
    std::ranges::sort(begins);
    const auto different = begins.size() - std::ranges::unique(begins).size();
    begins.resize(boxes.size());
    if (different > most) {
      most = different;
      best = d;
    }
  }
  return best;
}

/// Two boxes with elements in common, found by sweeping over one dimension.
std::optional<coverage_fault> overlap_among(std::size_t dimension, std::span<const box_view> boxes) {
  std::vector<std::size_t> order(boxes.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, {}, [&](std::size_t i) { return boxes[i].offsets[dimension]; });
  std::vector<std::size_t> open;
  for (const auto i : order) {
    const auto begin = boxes[i].offsets[dimension];
    for (std::size_t k = 0; k < open.size();) {
      if (end_of(boxes[open[k]], dimension) <= begin) {
        open[k] = open.back();
        open.pop_back();
        continue;
      }
      if (have_common_elements(boxes[open[k]], boxes[i]))
        return coverage_fault{coverage_fault::kind::overlap, std::min(open[k], i), std::max(open[k], i), 0};
      ++k;
    }
    open.push_back(i);
  }
  return std::nullopt;
}

/// What two boxes have in common, as seen from each.
struct common_part {
  struct dimension {
    std::int64_t in_a;
    std::int64_t in_b;
    std::int64_t size;
    std::int64_t size_a;
    std::int64_t size_b;
  };
  std::vector<dimension> dimensions;
  bool is_empty = false;

  common_part(const box_view& a, const box_view& b) {
    for (std::size_t d = 0; d < a.sizes.size(); ++d) {
      const auto begin = std::max(a.offsets[d], b.offsets[d]);
      const auto end = std::min(end_of(a, d), end_of(b, d));
      is_empty |= end <= begin;
      dimensions.push_back({begin - a.offsets[d], begin - b.offsets[d], end - begin, a.sizes[d], b.sizes[d]});
    }
  }

  /// The outermost dimension of which a run can hold more than one element.
  [[nodiscard]] std::size_t run_dimension() const {
    auto d = dimensions.size();
    while (d > 0) {
      const auto& inner = dimensions[--d];
      if (inner.size != inner.size_a || inner.size != inner.size_b) break;
    }
    return d;
  }
};

std::uint64_t as_count(std::int64_t number) { return static_cast<std::uint64_t>(number); }

}  // namespace

std::optional<std::int64_t> volume(std::span<const std::int64_t> sizes) {
  std::int64_t count = 1;
  bool too_many = false;
  for (const auto size : sizes) {
    if (size < 0) return std::nullopt;
    too_many |= __builtin_mul_overflow(count, size, &count);
  }
  if (too_many && std::ranges::find(sizes, 0) == sizes.end()) return std::nullopt;
  return too_many ? 0 : count;
}

bool is_inside(const box_view& box, std::span<const std::int64_t> sizes) {
  if (box.offsets.size() != sizes.size() || box.sizes.size() != sizes.size()) return false;
  for (std::size_t d = 0; d < sizes.size(); ++d)
    if (box.offsets[d] < 0 || box.sizes[d] < 0 || box.offsets[d] > sizes[d] || box.sizes[d] > sizes[d] - box.offsets[d])
      return false;
  return true;
}

bool have_common_elements(const box_view& a, const box_view& b) {
  for (std::size_t d = 0; d < a.sizes.size(); ++d)
    if (std::max(a.offsets[d], b.offsets[d]) >= std::min(end_of(a, d), end_of(b, d))) return false;
  return true;
}

std::optional<coverage_fault> coverage_fault_of(std::span<const std::int64_t> sizes, std::span<const box_view> boxes) {
  // The volumes of boxes inside a tensor whose own volume is countable are countable; only their sum may not be.
  const auto whole = volume(sizes).value_or(0);
  std::int64_t covered = 0;
  bool too_much = false;
  for (std::size_t i = 0; i < boxes.size(); ++i) {
    if (!is_inside(boxes[i], sizes)) return coverage_fault{coverage_fault::kind::outside, i, 0, 0};
    too_much |= __builtin_add_overflow(covered, volume(boxes[i].sizes).value_or(0), &covered);
  }
  if (!too_much && covered < whole) return coverage_fault{coverage_fault::kind::gap, 0, 0, covered};
  if (sizes.empty())
    return boxes.size() > 1 ? std::optional(coverage_fault{coverage_fault::kind::overlap, 0, 1, 0}) : std::nullopt;
  return overlap_among(busiest_dimension(sizes.size(), boxes), boxes);
}

void for_common_runs(const box_view& a, const box_view& b, const common_run& run) {
  const common_part common(a, b);
  if (common.is_empty) return;
  const auto& dimensions = common.dimensions;
  const auto last = common.run_dimension();
  std::uint64_t count = 1;
  for (std::size_t d = last; d < dimensions.size(); ++d) count *= as_count(dimensions[d].size);

  std::vector<std::int64_t> at(last, 0);
  while (true) {
    std::uint64_t in_a = 0;
    std::uint64_t in_b = 0;
    for (std::size_t d = 0; d < dimensions.size(); ++d) {
      const auto step = d < last ? at[d] : 0;
      in_a = in_a * as_count(dimensions[d].size_a) + as_count(dimensions[d].in_a + step);
      in_b = in_b * as_count(dimensions[d].size_b) + as_count(dimensions[d].in_b + step);
    }
    run(in_a, in_b, count);
    auto d = last;
    while (d > 0 && ++at[d - 1] == dimensions[d - 1].size) at[--d] = 0;
    if (d == 0) return;
  }
}

std::optional<std::uint64_t> place_in(const box_view& inner, const box_view& outer) {
  const common_part common(inner, outer);
  const auto& dimensions = common.dimensions;
  if (common.is_empty) return std::nullopt;
  if (std::ranges::any_of(dimensions, [](const auto& d) { return d.size != d.size_a; })) return std::nullopt;
  const auto last = common.run_dimension();
  for (std::size_t d = 0; d < last; ++d)
    if (dimensions[d].size != 1) return std::nullopt;
  std::uint64_t place = 0;
  for (const auto& d : dimensions) place = place * as_count(d.size_b) + as_count(d.in_b);
  return place;
}

}  // namespace rondo::checkpoint

#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "rondo/data/stage.hpp"
#include "rondo/error.hpp"

namespace rondo::data {

struct distributed_options {
  /// Leave out the last elements that are not enough for every rank. Otherwise elements from the beginning are used
  /// again.
  bool drop_last = false;
  /// Whether all shares have the same number of elements, which training needs. False: no element is used twice or left
  /// out, and the first shares may have one more than the last: for evaluation. Not together with `drop_last`.
  bool even = true;
};

namespace detail {

template <indexable Base>
class indexed_distributed : public indexed_stage<indexed_distributed<Base>, Base> {
  using stage = indexed_stage<indexed_distributed<Base>, Base>;

 public:
  static constexpr const char* stage_name = "distributed";

  indexed_distributed() = default;
  indexed_distributed(Base base, std::int64_t rank, std::int64_t world_size, distributed_options options)
      : stage(std::move(base)), rank_(rank), world_size_(world_size), options_(options) {}

  /// Without the rank: one state is for all ranks.
  template <class Self, class Visitor>
  static void visit_settings(Self& self, Visitor& visitor) {
    visitor.number("world_size", self.world_size_);
    visitor.number("drop_last", self.options_.drop_last ? 1 : 0);
    if (!self.options_.even) visitor.number("even", 0);
  }

  [[nodiscard]] std::int64_t size() const {
    const auto elements = size_of(this->below());
    const auto full = elements / world_size_;
    if (!options_.even) return full + (rank_ < elements % world_size_ ? 1 : 0);
    return options_.drop_last || elements % world_size_ == 0 ? full : full + 1;
  }

  [[nodiscard]] decltype(auto) element(std::int64_t index) const { return this->below(position_below(index)); }

  [[nodiscard]] auto gather(std::span<const std::int64_t> positions) const requires gatherable<Base> {
    std::vector<std::int64_t> below;
    below.reserve(positions.size());
    for (const auto position : positions) below.push_back(position_below(position));
    return detail::gather(this->below(), below);
  }

 private:
  [[nodiscard]] std::int64_t position_below(std::int64_t index) const {
    return (rank_ + index * world_size_) % size_of(this->below());
  }

  std::int64_t rank_ = 0;
  std::int64_t world_size_ = 1;
  distributed_options options_;
};

struct distributed_function {
  std::int64_t rank;
  std::int64_t world_size;
  distributed_options options;

  template <ranges::input_range Range>
    requires indexable<all_t<Range>>
  auto operator()(Range&& range) const {
    return indexed_distributed<all_t<Range>>(detail::all(std::forward<Range>(range)), rank, world_size, options);
  }
};

}  // namespace detail

/// `range | distributed(rank, world_size)`: the share of process `rank` among `world_size`: the elements at `rank`,
/// `rank + world_size`, `rank + 2 world_size` and so on of a random access range. The shares have no element in common
/// and cover the range, except that all have the same number of elements: where they would not, the last ones begin
/// again at the beginning of the range, `drop_last` leaves some out, or `even` says that they may differ. The
/// counterpart of Python's DistributedSampler: put it behind `shuffle`, which must have the same seed in all processes,
/// and before `batch`.
///
/// Its state is the same in all processes: a snapshot of one is for all of them.
///
/// Throws `option_error` when `world_size` is below 1, `rank` is not from 0 to `world_size - 1`, or the options
/// contradict each other.
[[nodiscard]] inline auto distributed(std::int64_t rank, std::int64_t world_size, distributed_options options = {}) {
  if (world_size < 1) throw option_error("world_size", fmt::format("{}", world_size), "1 or more");
  if (rank < 0 || rank >= world_size)
    throw option_error("rank", fmt::format("{}", rank), fmt::format("from 0 to {}", world_size - 1));
  if (options.drop_last && !options.even)
    throw option_error("drop_last", "true with even = false, which leaves nothing out", "one of the two");
  return detail::make_closure(detail::distributed_function{rank, world_size, options});
}

}  // namespace rondo::data

#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "rondo/data/random.hpp"
#include "rondo/data/stage.hpp"
#include "rondo/error.hpp"

namespace rondo::data {

/// A permutation of 0 to size-1 that depends on its arguments only: Fisher-Yates from the last position down, position i
/// being swapped with `random_sequence(sample_seed(seed, epoch, -1)).below(i + 1)`. The same on every platform.
[[nodiscard]] inline std::vector<std::int64_t> shuffled_positions(std::int64_t size, std::uint64_t seed,
                                                                  std::int64_t epoch) {
  std::vector<std::int64_t> positions(static_cast<std::size_t>(size));
  for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::int64_t>(i);
  random_sequence random(sample_seed(seed, epoch, -1));
  for (std::size_t i = positions.size(); i > 1; --i) std::swap(positions[i - 1], positions[random.below(i)]);
  return positions;
}

namespace detail {

template <indexable Base>
class indexed_shuffle : public indexed_stage<indexed_shuffle<Base>, Base> {
  using stage = indexed_stage<indexed_shuffle<Base>, Base>;

 public:
  indexed_shuffle() = default;
  indexed_shuffle(Base base, std::uint64_t seed) : stage(std::move(base)), seed_(seed) { reorder(); }

  void set_epoch(std::int64_t epoch) {
    stage::set_epoch(epoch);
    if (epoch == epoch_ && size() == size_of(this->below())) return;
    epoch_ = epoch;
    reorder();
  }

  static constexpr const char* stage_name = "shuffle";
  template <class Self, class Visitor>
  static void visit_settings(Self& self, Visitor& visitor) {
    visitor.seed("seed", self.seed_);
  }
  void load_state_dict(const state::value& stored) {
    const auto present = seed_;
    stage::load_state_dict(stored);
    if (seed_ != present) reorder();
  }

  [[nodiscard]] std::int64_t size() const { return order_ ? static_cast<std::int64_t>(order_->size()) : 0; }

  [[nodiscard]] decltype(auto) element(std::int64_t index) const {
    return this->below(order()[static_cast<std::size_t>(index)]);
  }

  [[nodiscard]] auto gather(std::span<const std::int64_t> positions) const requires gatherable<Base> {
    const auto& order = this->order();
    std::vector<std::int64_t> shuffled;
    shuffled.reserve(positions.size());
    for (const auto position : positions) shuffled.push_back(order.at(static_cast<std::size_t>(position)));
    return detail::gather(this->below(), shuffled);
  }

 private:
  void reorder() {
    order_ =
        std::make_shared<const std::vector<std::int64_t>>(shuffled_positions(size_of(this->below()), seed_, epoch_));
  }

  [[nodiscard]] const std::vector<std::int64_t>& order() const {
    if (const auto found = size_of(this->below()); found != size())
      throw error(
          fmt::format("data::shuffle: the range below had {} elements and has {} now; call set_epoch after changing it",
                      size(), found));
    return *order_;
  }

  std::uint64_t seed_ = 0;
  std::int64_t epoch_ = 0;
  std::shared_ptr<const std::vector<std::int64_t>> order_;
};

/// The position is the index: a pass has to read the whole range below in any case.
template <ranges::input_range Base>
class buffered_shuffle : public stream_stage<buffered_shuffle<Base>, Base, ranges::range_value_t<Base>> {
  using value = ranges::range_value_t<Base>;
  using stage = stream_stage<buffered_shuffle<Base>, Base, value>;

 public:
  static constexpr std::size_t position_fields = 1;

  buffered_shuffle() = default;
  buffered_shuffle(Base base, std::uint64_t seed) : stage(std::move(base)), seed_(seed) {}

  void set_epoch(std::int64_t epoch) {
    stage::set_epoch(epoch);
    epoch_ = epoch;
  }

  static constexpr const char* stage_name = "shuffle";
  template <class Self, class Visitor>
  static void visit_settings(Self& self, Visitor& visitor) {
    visitor.seed("seed", self.seed_);
  }

  [[nodiscard]] fields<1> tell() const { return {first_ + this->index()}; }
  void seek(const fields<1>& position) { sought_ = position[0]; }
  [[nodiscard]] fields<1> position_at(std::int64_t index) const { return {index}; }

  [[nodiscard]] std::int64_t size() const requires sized<Base> { return size_of(this->below()); }

  void start() {
    buffer fresh;
    while (this->reading().next()) fresh.elements.push_back(this->reading().take());
    fresh.order = shuffled_positions(static_cast<std::int64_t>(fresh.elements.size()), seed_, epoch_);
    buffer_->emplace(std::move(fresh));
    first_ = std::exchange(sought_, 0);
  }

  [[nodiscard]] std::optional<value> produce() {
    auto& [elements, order] = **buffer_;
    const auto next = static_cast<std::size_t>(first_ + this->index());
    if (next >= order.size()) return std::nullopt;
    return std::move(elements[static_cast<std::size_t>(order[next])]);
  }

 private:
  struct buffer {
    std::vector<value> elements;
    std::vector<std::int64_t> order;
  };

  std::uint64_t seed_ = 0;
  std::int64_t epoch_ = 0;
  std::int64_t sought_ = 0;
  std::int64_t first_ = 0;
  left_behind<buffer> buffer_;
};

struct shuffle_function {
  std::uint64_t seed;

  template <ranges::input_range Range>
  auto operator()(Range&& range) const {
    using base = all_t<Range>;
    if constexpr (indexable<base>)
      return indexed_shuffle<base>(detail::all(std::forward<Range>(range)), seed);
    else
      return buffered_shuffle<base>(detail::all(std::forward<Range>(range)), seed);
  }
};

}  // namespace detail

/// `range | shuffle(seed)`: the elements in an order that is a function of their number, `seed` and the epoch only (see
/// `shuffled_positions`). The epoch is 0 until `set_epoch` says otherwise.
///
/// Random access and sized when the range is; the order is then computed when the view is made and at `set_epoch`
/// (8 bytes per element, shared by copies of the view), and the size of the range must not change in between: reading
/// throws `rondo::error` if it did. Any other input range is read into memory whenever iterating begins.
[[nodiscard]] inline auto shuffle(std::uint64_t seed) { return detail::make_closure(detail::shuffle_function{seed}); }

}  // namespace rondo::data

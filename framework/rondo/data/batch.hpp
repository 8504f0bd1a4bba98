#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "rondo/data/collate.hpp"
#include "rondo/data/stage.hpp"
#include "rondo/error.hpp"

namespace rondo::data {

struct batch_options {
  /// Leave out a last batch that is not full.
  bool drop_last = false;
};

namespace detail {

inline std::int64_t batch_count(std::int64_t elements, std::int64_t per_batch, const batch_options& options) {
  const auto full = elements / per_batch;
  return options.drop_last || elements % per_batch == 0 ? full : full + 1;
}

template <indexable Base>
class indexed_batch : public indexed_stage<indexed_batch<Base>, Base> {
  using stage = indexed_stage<indexed_batch<Base>, Base>;

 public:
  indexed_batch() = default;
  indexed_batch(Base base, std::int64_t per_batch, batch_options options)
      : stage(std::move(base)), per_batch_(per_batch), options_(options) {}

  static constexpr const char* stage_name = "batch";
  template <class Self, class Visitor>
  static void visit_settings(Self& self, Visitor& visitor) {
    visitor.number("batch_size", self.per_batch_);
    visitor.number("drop_last", self.options_.drop_last);
  }

  [[nodiscard]] std::int64_t size() const { return batch_count(size_of(this->below()), per_batch_, options_); }

  [[nodiscard]] auto element(std::int64_t index) const {
    const auto first = index * per_batch_;
    const auto count = std::min(per_batch_, size_of(this->below()) - first);
    if constexpr (gatherable<Base>)
      return gathered(first, count);
    else
      return collected(first, count);
  }

 private:
  [[nodiscard]] auto gathered(std::int64_t first, std::int64_t count) const {
    std::vector<std::int64_t> positions(static_cast<std::size_t>(count));
    std::iota(positions.begin(), positions.end(), first);
    return detail::gather(this->below(), positions);
  }

  [[nodiscard]] auto collected(std::int64_t first, std::int64_t count) const {
    std::vector<ranges::range_value_t<const Base>> items;
    items.reserve(static_cast<std::size_t>(count));
    auto at = position(this->below(), first);
    for (std::int64_t i = 0; i < count; ++i, ++at) items.push_back(*at);
    return collate(std::move(items));
  }

  std::int64_t per_batch_ = 1;
  batch_options options_;
};

template <class Base>
using collated_t = decltype(collate(std::declval<std::vector<ranges::range_value_t<Base>>>()));

template <ranges::input_range Base>
class streamed_batch
    : public stream_stage<streamed_batch<Base>, Base, collated_t<Base>, stream_cardinality<Base>, /*Indexed=*/false> {
  using stage = stream_stage<streamed_batch<Base>, Base, collated_t<Base>, stream_cardinality<Base>, false>;

 public:
  streamed_batch() = default;
  streamed_batch(Base base, std::int64_t per_batch, batch_options options)
      : stage(std::move(base)), per_batch_(per_batch), options_(options) {}

  static constexpr const char* stage_name = "batch";
  template <class Self, class Visitor>
  static void visit_settings(Self& self, Visitor& visitor) {
    visitor.number("batch_size", self.per_batch_);
    visitor.number("drop_last", self.options_.drop_last);
  }

  [[nodiscard]] std::int64_t size() const requires sized<Base> {
    return batch_count(size_of(this->below()), per_batch_, options_);
  }

  [[nodiscard]] std::int64_t first_below(std::int64_t index) const { return index * per_batch_; }

  [[nodiscard]] std::optional<collated_t<Base>> produce() {
    std::vector<ranges::range_value_t<Base>> items;
    const auto wanted = static_cast<std::size_t>(per_batch_);
    while (items.size() < wanted && this->reading().next()) items.push_back(this->reading().take());
    if (items.empty() || (options_.drop_last && items.size() < wanted)) return std::nullopt;
    return collate(std::move(items));
  }

 private:
  std::int64_t per_batch_ = 1;
  batch_options options_;
};

struct batch_function {
  std::int64_t per_batch;
  batch_options options;

  template <ranges::input_range Range>
  auto operator()(Range&& range) const {
    using base = all_t<Range>;
    if constexpr (indexable<base>)
      return indexed_batch<base>(detail::all(std::forward<Range>(range)), per_batch, options);
    else
      return streamed_batch<base>(detail::all(std::forward<Range>(range)), per_batch, options);
  }
};

}  // namespace detail

/// `range | batch(n)`: the elements in groups of `n`, made into batches by `collate`; the last one may be smaller,
/// unless `drop_last` leaves it out. Sized when the range is, and random access when it is both. Where the range below
/// (a data set, or `shuffle` or `take` of one) has a member `gather(std::span<const std::int64_t> positions)`, that
/// makes the batch, which is much faster than stacking examples. Throws `option_error` when `n` is below 1.
[[nodiscard]] inline auto batch(std::int64_t n, batch_options options = {}) {
  if (n < 1) throw option_error("batch_size", fmt::format("{}", n), "1 or more");
  return detail::make_closure(detail::batch_function{n, options});
}

}  // namespace rondo::data

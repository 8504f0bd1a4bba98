#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>

#include "rondo/data/stage.hpp"
#include "rondo/error.hpp"

namespace rondo::data {

namespace detail {

template <indexable Base>
class indexed_take : public indexed_stage<indexed_take<Base>, Base> {
  using stage = indexed_stage<indexed_take<Base>, Base>;

 public:
  indexed_take() = default;
  indexed_take(Base base, std::int64_t limit) : stage(std::move(base)), limit_(limit) {}

  static constexpr const char* stage_name = "take";
  template <class Self, class Visitor>
  static void visit_settings(Self& self, Visitor& visitor) {
    visitor.number("limit", self.limit_);
  }

  [[nodiscard]] std::int64_t size() const { return std::min(limit_, size_of(this->below())); }
  [[nodiscard]] decltype(auto) element(std::int64_t index) const { return this->below(index); }
  [[nodiscard]] auto gather(std::span<const std::int64_t> positions) const requires gatherable<Base> {
    return detail::gather(this->below(), positions);
  }

 private:
  std::int64_t limit_ = 0;
};

template <ranges::input_range Base>
class streamed_take : public stream_stage<streamed_take<Base>, Base, ranges::range_value_t<Base>> {
  using value = ranges::range_value_t<Base>;
  using stage = stream_stage<streamed_take<Base>, Base, value>;

 public:
  streamed_take() = default;
  streamed_take(Base base, std::int64_t limit) : stage(std::move(base)), limit_(limit) {}

  static constexpr const char* stage_name = "take";
  template <class Self, class Visitor>
  static void visit_settings(Self& self, Visitor& visitor) {
    visitor.number("limit", self.limit_);
  }

  [[nodiscard]] std::int64_t size() const requires sized<Base> { return std::min(limit_, size_of(this->below())); }

  [[nodiscard]] std::optional<value> produce() {
    if (this->index() >= limit_ || !this->reading().next()) return std::nullopt;
    return this->reading().take();
  }

 private:
  std::int64_t limit_ = 0;
};

struct take_function {
  std::int64_t limit;

  template <ranges::input_range Range>
  auto operator()(Range&& range) const {
    using base = all_t<Range>;
    if constexpr (indexable<base>)
      return indexed_take<base>(detail::all(std::forward<Range>(range)), limit);
    else
      return streamed_take<base>(detail::all(std::forward<Range>(range)), limit);
  }
};

}  // namespace detail

/// `range | take(n)`: the first `n` elements, or all if there are fewer. Sized when the range is, random access when it
/// is both, and never reads more than `n` elements. After `shuffle`, that is a new random sample each epoch; before it,
/// always the same elements. Throws `option_error` when `n` is negative.
[[nodiscard]] inline auto take(std::int64_t n) {
  if (n < 0) throw option_error("take", fmt::format("{}", n), "0 or more");
  return detail::make_closure(detail::take_function{n});
}

/// Another name of `take`, for quick runs: `range | limit(100)`.
[[nodiscard]] inline auto limit(std::int64_t n) { return take(n); }

}  // namespace rondo::data

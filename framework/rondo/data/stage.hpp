#pragma once

#include <c10/core/Device.h>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <range/v3/range/access.hpp>
#include <range/v3/range/concepts.hpp>
#include <range/v3/range/primitives.hpp>
#include <range/v3/range/traits.hpp>
#include <range/v3/view/facade.hpp>
#include <range/v3/view/ref.hpp>
#include <range/v3/view/view.hpp>
#include <span>
#include <type_traits>
#include <utility>

#include "rondo/data/position.hpp"
#include "rondo/data/settings.hpp"

/// What the views shuffle, batch, transform and take have in common. Read this header to write a further view.
namespace rondo::data {

namespace detail {

// A cast, because range-v3 counts the elements of an iota of 64-bit integers in a wider type of its own.
template <class Range>
concept sized = requires(const Range& range) {
  static_cast<std::int64_t>(ranges::size(range));
};

/// Ranges whose element at a position is reached in constant time, and whose size is known. `const`, because a view
/// reads them through its own const iterators.
template <class Range>
concept indexable = ranges::random_access_range<const Range> && sized<Range>;

template <class Range>
std::int64_t size_of(const Range& range) {
  return static_cast<std::int64_t>(ranges::size(range));
}

template <class Range>
concept declares_lasting_size = requires { requires Range::size_lasts; };

/// Ranges whose size is the number of elements of a whole pass at any time. A single-pass range may count what is left.
template <class Range>
inline constexpr bool size_lasts =
    sized<Range> && (ranges::forward_range<Range> || addressable<Range> || declares_lasting_size<Range>);

template <class Range>
auto position(const Range& range, std::int64_t index) {
  return ranges::begin(range) + static_cast<ranges::range_difference_t<const Range>>(index);
}

template <class Range>
concept gathers_itself = requires(const Range& range, std::span<const std::int64_t> positions) {
  range.gather(positions);
};

template <class Range>
inline constexpr bool refers_to_gatherer = false;
template <class Range>
inline constexpr bool refers_to_gatherer<ranges::ref_view<Range>> = gathers_itself<Range>;

/// Ranges that make a batch of the elements at given positions at once, by a member `gather(std::span<const
/// std::int64_t>)`.
template <class Range>
concept gatherable = indexable<Range> &&(gathers_itself<Range> || refers_to_gatherer<Range>);

template <gatherable Range>
auto gather(const Range& range, std::span<const std::int64_t> positions) {
  if constexpr (gathers_itself<Range>)
    return range.gather(positions);
  else
    return range.base().gather(positions);
}

/// A container that was given to a pipeline as a temporary: held by every copy of the view together.
template <class Range>
class owned : public ranges::view_interface<owned<Range>> {
 public:
  owned() = default;
  explicit owned(Range&& range) : range_(std::make_shared<Range>(std::move(range))) {}

  [[nodiscard]] auto begin() const { return ranges::begin(*range_); }
  [[nodiscard]] auto end() const { return ranges::end(*range_); }
  [[nodiscard]] std::int64_t size() const requires ranges::sized_range<Range> { return size_of(*range_); }
  [[nodiscard]] auto gather(std::span<const std::int64_t> positions) const requires gathers_itself<Range> {
    return range_->gather(positions);
  }
  void set_epoch(std::int64_t epoch) { rondo::data::set_epoch(*range_, epoch); }
  void set_device(c10::Device device) { rondo::data::set_device(*range_, device); }
  [[nodiscard]] state::value state_dict() const { return rondo::data::state_dict(std::as_const(*range_)); }
  void load_state_dict(const state::value& stored) { rondo::data::load_state_dict(*range_, stored); }

  static constexpr std::size_t position_fields = seekable<Range> ? detail::position_fields<Range> : 0;
  [[nodiscard]] position_t<Range> tell() const requires seekable<Range> { return detail::tell(std::as_const(*range_)); }
  void seek(const position_t<Range>& position) requires seekable<Range> { detail::seek(*range_, position); }

 private:
  std::shared_ptr<Range> range_;
};

/// Makes a view of any range: a view is copied, a container that lives elsewhere is referred to, a temporary container
/// is taken over.
template <ranges::range Range>
auto all(Range&& range) {
  using bare = std::remove_cvref_t<Range>;
  if constexpr (ranges::view_<bare>)
    return bare(std::forward<Range>(range));
  else if constexpr (std::is_lvalue_reference_v<Range>)
    return ranges::ref_view<std::remove_reference_t<Range>>(range);
  else
    return owned<bare>(std::move(range));
}

template <class Range>
using all_t = decltype(detail::all(std::declval<Range>()));

/// First one function, then the other.
template <class First, class Second>
struct joined_function {
  First first;
  Second second;

  template <class Range>
    requires std::invocable<const First&, Range> &&
        std::invocable<const Second&, std::invoke_result_t<const First&, Range>>
  auto operator()(Range&& range) const { return second(first(std::forward<Range>(range))); }
};

/// What `data::batch(64)` returns: a function from a range to a view, applied by `|`, and joined to another one by `|`.
template <class Function>
struct closure : ranges::views::view_closure<Function> {
  explicit closure(Function function) : ranges::views::view_closure<Function>(std::move(function)) {}

  /// Range-v3 takes lvalues and views; this also takes temporary containers.
  template <class Range>
    requires(ranges::range<Range> && !ranges::viewable_range<Range>)
  friend auto operator|(Range&& range, closure self) { return self(std::forward<Range>(range)); }

  /// `First` may be one of range-v3's closures.
  template <std::derived_from<ranges::views::view_closure_base> First>
  friend auto operator|(First first, closure self) {
    using joined = joined_function<First, closure>;
    return closure<joined>(joined{std::move(first), std::move(self)});
  }
};

template <class Function>
closure<Function> make_closure(Function function) {
  return closure<Function>(std::move(function));
}

/// The position of an iterator over an indexable view, whose member `element(index)` gives the elements.
template <class View>
class index_cursor {
 public:
  index_cursor() = default;
  index_cursor(const View* view, std::int64_t index) : view_(view), index_(index) {}

  [[nodiscard]] decltype(auto) read() const { return view_->element(index_); }
  [[nodiscard]] bool equal(const index_cursor& other) const { return index_ == other.index_; }
  void next() { ++index_; }
  void prev() { --index_; }
  void advance(std::ptrdiff_t n) { index_ += n; }
  [[nodiscard]] std::ptrdiff_t distance_to(const index_cursor& other) const { return other.index_ - index_; }

 private:
  const View* view_ = nullptr;
  std::int64_t index_ = 0;
};

/// Base of a view over an indexable range: `Derived` has `std::int64_t size() const`, `element(std::int64_t) const`,
/// and the settings that `save_settings` describes. Iterating never changes it.
template <class Derived, indexable Base>
class indexed_stage : public ranges::view_facade<Derived, ranges::finite> {
 public:
  indexed_stage() = default;
  explicit indexed_stage(Base base) : base_(std::move(base)) {}

  void set_epoch(std::int64_t epoch) { rondo::data::set_epoch(base_, epoch); }
  void set_device(c10::Device device) { rondo::data::set_device(base_, device); }
  [[nodiscard]] state::dict state_dict() const { return save_settings(static_cast<const Derived&>(*this), base_); }
  void load_state_dict(const state::value& stored) { load_settings(static_cast<Derived&>(*this), base_, stored); }

 protected:
  [[nodiscard]] const Base& below() const noexcept { return base_; }
  [[nodiscard]] decltype(auto) below(std::int64_t index) const { return *position(base_, index); }

 private:
  friend ranges::range_access;
  [[nodiscard]] auto begin_cursor() const { return index_cursor<Derived>(static_cast<const Derived*>(this), 0); }
  [[nodiscard]] auto end_cursor() const {
    const auto* self = static_cast<const Derived*>(this);
    return index_cursor<Derived>(self, self->size());
  }

  Base base_;
};

/// A value that a copy or move of its owner does not take along, because it refers into the owner.
template <class T>
class left_behind {
 public:
  left_behind() = default;
  left_behind(const left_behind&) noexcept {}
  left_behind& operator=(const left_behind&) noexcept {
    value_.reset();
    return *this;
  }
  ~left_behind() = default;

  std::optional<T>& operator*() noexcept { return value_; }
  std::optional<T>* operator->() noexcept { return &value_; }
  const std::optional<T>* operator->() const noexcept { return &value_; }

 private:
  std::optional<T> value_;
};

/// The position of the one iterator over a stream.
template <class View>
class stream_cursor {
 public:
  using single_pass = std::true_type;

  stream_cursor() = default;
  explicit stream_cursor(View* view) : view_(view) {}

  [[nodiscard]] auto& read() const { return view_->current(); }
  [[nodiscard]] bool equal(ranges::default_sentinel_t) const { return view_->exhausted(); }
  void next() { view_->produce_next(); }

 private:
  View* view_ = nullptr;
};

/// Base of a view over any other input range. `Derived` has `std::optional<Value> produce()`, nothing at the end, and
/// the settings that `save_settings` describes; `void start()` if it has to prepare for a pass. `begin()` begins a new
/// pass over the range below; there is one iterator at a time. Where `produce` throws, there is no current element any
/// more.
///
/// The view is seekable when `Base` is. Its position is that of the first element that was read below for the current
/// one and, if `Indexed`, the index of the current one, for stages whose work depends on it.
template <class Derived, ranges::input_range Base, class Value, ranges::cardinality Cardinality = ranges::unknown,
          bool Indexed = true>
class stream_stage : public ranges::view_facade<Derived, Cardinality> {
  static constexpr std::size_t fields_below = detail::position_fields<Base>;

 public:
  using streamed_value = Value;
  static constexpr bool size_lasts = detail::size_lasts<Base>;
  static constexpr std::size_t position_fields = fields_below == 0 ? 0 : fields_below + (Indexed ? 1 : 0);
  using position_type = fields<position_fields>;

  stream_stage() = default;
  explicit stream_stage(Base base) : base_(std::move(base)) {}

  void set_epoch(std::int64_t epoch) { rondo::data::set_epoch(base_, epoch); }
  void set_device(c10::Device device) { rondo::data::set_device(base_, device); }
  [[nodiscard]] state::dict state_dict() const { return save_settings(static_cast<const Derived&>(*this), base_); }
  void load_state_dict(const state::value& stored) { load_settings(static_cast<Derived&>(*this), base_, stored); }

  [[nodiscard]] position_type tell() const requires(position_fields > 0) {
    return joined(reader_->value().marked(), index_);
  }
  void seek(const position_type& there) requires(position_fields > 0) { sought_ = there; }
  [[nodiscard]] position_type position_at(std::int64_t index) const requires(position_fields > 0 && addressable<Base>) {
    return joined(detail::position_at(base_, static_cast<const Derived*>(this)->first_below(index)), index);
  }

 protected:
  [[nodiscard]] const Base& below() const noexcept { return base_; }
  [[nodiscard]] reader<Base>& reading() { return **reader_; }
  /// Of the element that is being produced, or else of the current one.
  [[nodiscard]] std::int64_t index() const noexcept { return index_; }
  void start() {}
  /// The index of the first element below that is read for element `index`.
  [[nodiscard]] std::int64_t first_below(std::int64_t index) const { return index; }

 private:
  friend ranges::range_access;
  friend stream_cursor<stream_stage>;

  stream_cursor<stream_stage> begin_cursor() {
    begin_below(std::exchange(sought_, std::nullopt));
    static_cast<Derived*>(this)->start();
    make_current();
    return stream_cursor<stream_stage>(this);
  }
  [[nodiscard]] ranges::default_sentinel_t end_cursor() const { return {}; }

  void begin_below(const std::optional<position_type>& from) {
    index_ = 0;
    std::optional<position_t<Base>> from_below;
    if constexpr (position_fields > 0) {
      if (from) {
        std::copy_n(from->begin(), fields_below, from_below.emplace().begin());
        if constexpr (Indexed) index_ = from->back();
      }
    }
    reader_->emplace(base_, from_below);
  }

  [[nodiscard]] Value& current() { return **current_; }
  [[nodiscard]] bool exhausted() { return !current_->has_value(); }
  void produce_next() {
    ++index_;
    make_current();
  }
  void make_current() {
    current_->reset();
    reading().mark_next();
    if (auto value = static_cast<Derived*>(this)->produce()) current_->emplace(*std::move(value));
  }

  [[nodiscard]] static position_type joined(const position_t<Base>& below, std::int64_t index) {
    position_type result{};
    std::copy(below.begin(), below.end(), result.begin());
    if constexpr (Indexed) result.back() = index;
    return result;
  }

  Base base_;
  std::optional<position_type> sought_;
  std::int64_t index_ = 0;
  left_behind<reader<Base>> reader_;
  left_behind<Value> current_;
};

template <class Range>
inline constexpr ranges::cardinality stream_cardinality =
    ranges::is_infinite<Range>::value ? ranges::infinite : ranges::unknown;

/// What iterating over `Range` gives, as this header iterates over it.
template <class Range>
using element_t = ranges::range_reference_t<std::conditional_t<indexable<Range>, const Range, Range>>;

}  // namespace detail

}  // namespace rondo::data

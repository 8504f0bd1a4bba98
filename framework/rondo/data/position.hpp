#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <range/v3/iterator/operations.hpp>
#include <range/v3/range/access.hpp>
#include <range/v3/range/concepts.hpp>
#include <range/v3/range/traits.hpp>
#include <range/v3/view/ref.hpp>
#include <type_traits>
#include <utility>

/// Positions in streams, that is, in ranges whose elements have to be read one after the other.
///
/// A stream is *seekable* when it can tell where its current element begins (a byte of a file, say) and can begin there
/// later. It has either `std::int64_t tell() const` and `void seek(std::int64_t)`, or, for a position of several
/// numbers,
///
///     static constexpr std::size_t position_fields;                          // 1 or more
///     std::array<std::int64_t, position_fields> tell() const;
///     void seek(const std::array<std::int64_t, position_fields>& position);
///
/// `tell` is called only while there is a current element, the one at the iterator. After `seek`, the next `begin()`
/// begins with the element there, once; those after it begin at the beginning again. Over a seekable stream, every
/// stage is seekable. Over any other one, a position is the number of elements before it, and going there reads them
/// again.
namespace rondo::data::detail {

template <std::size_t Fields>
using fields = std::array<std::int64_t, Fields>;

template <class Range>
concept tells_fields = requires(const Range& told, Range& sought) {
  requires Range::position_fields >= 1;
  { told.tell() } -> std::same_as<fields<Range::position_fields>>;
  sought.seek(told.tell());
};

template <class Range>
concept tells_number = !requires { Range::position_fields; } && requires(const Range& told, Range& sought) {
  { told.tell() } -> std::integral;
  sought.seek(std::int64_t{0});
};

template <class Range>
struct referred {
  using type = Range;
};
template <class Range>
struct referred<ranges::ref_view<Range>> {
  using type = Range;
};

/// Ranges that tell and seek by themselves, or refer to one that does.
template <class Range>
concept seekable =
    tells_fields<typename referred<Range>::type> || tells_number<typename referred<Range>::type>;

template <class Range>
constexpr std::size_t count_position_fields() {
  using target = typename referred<Range>::type;
  if constexpr (tells_fields<target>)
    return target::position_fields;
  else
    return tells_number<target> || ranges::random_access_range<Range> ? 1 : 0;
}

/// How many numbers a position has. A random access range has its index; 0 means that positions can only be counted.
template <class Range>
inline constexpr std::size_t position_fields = count_position_fields<Range>();

template <class Range>
using position_t = fields<position_fields<Range>>;

/// Where the current element of a seekable range begins.
template <seekable Range>
position_t<Range> tell(const Range& range) {
  if constexpr (tells_fields<Range>)
    return range.tell();
  else if constexpr (tells_number<Range>)
    return {static_cast<std::int64_t>(range.tell())};
  else
    return detail::tell(range.base());
}

/// The next `begin` of a seekable range begins there.
template <seekable Range>
void seek(Range& range, const position_t<Range>& position) {
  if constexpr (tells_fields<Range>)
    range.seek(position);
  else if constexpr (tells_number<Range>)
    range.seek(position[0]);
  else
    detail::seek(range.base(), position);
}

template <class Range>
concept knows_positions = requires(const Range& range, std::int64_t index) {
  { range.position_at(index) } -> std::same_as<position_t<Range>>;
};

/// Ranges whose positions are known without reading: those of random access, and seekable ones with a member
/// `position_t position_at(std::int64_t index) const`.
template <class Range>
concept addressable = knows_positions<Range> || (!seekable<Range> && ranges::random_access_range<Range>);

/// Where element `index` begins.
template <addressable Range>
position_t<Range> position_at(const Range& range, std::int64_t index) {
  if constexpr (knows_positions<Range>)
    return range.position_at(index);
  else
    return {index};
}

/// Reads a range element by element, from its beginning or from a position, and never further than asked, so that a
/// range which waits for its next element is not made to wait too early. Nothing is read before the first call.
template <class Range>
class reader {
 public:
  using position = position_t<Range>;

  explicit reader(Range& range, std::optional<position> from = std::nullopt) : range_(&range), from_(from) {}

  /// Goes on to the next element, at first to the first one; false when there is none, and from then on.
  bool next() {
    if (!at_)
      begin();
    else if (!at_end())
      ++*at_;
    if (at_end()) return false;
    if (!mark_) mark_ = tell();
    return true;
  }

  /// Begins; a range that makes elements ahead starts to do so.
  void begin() {
    if constexpr (seekable<Range>)
      if (from_) detail::seek(*range_, *from_);
    at_.emplace(ranges::begin(*range_));
    if constexpr (!seekable<Range> && position_fields<Range> == 1)
      if (from_) pass_over((*from_)[0]);
  }
  [[nodiscard]] bool at_end() const { return *at_ == ranges::end(*range_); }
  /// Goes on by `count` elements or to the end, and returns how many elements were missing.
  std::int64_t pass_over(std::int64_t count) {
    const auto steps = static_cast<ranges::range_difference_t<Range>>(count);
    if constexpr (ranges::random_access_range<Range> && ranges::is_infinite<Range>::value)
      return *at_ += steps, 0;  // range-v3 would go step by step, in search of an end
    else
      return static_cast<std::int64_t>(ranges::advance(*at_, steps, ranges::end(*range_)));
  }

  [[nodiscard]] decltype(auto) operator*() const { return **at_; }
  /// The element itself where nobody else can see it any more, a copy elsewhere.
  [[nodiscard]] ranges::range_value_t<Range> take() const {
    if constexpr (requires { typename Range::streamed_value; })
      return std::move(**at_);
    else
      return **at_;
  }

  /// Where the current element begins; no numbers for a range that cannot tell.
  [[nodiscard]] position tell() const {
    if constexpr (seekable<Range>)
      return detail::tell(*range_);
    else if constexpr (position_fields<Range> == 1)
      return {static_cast<std::int64_t>(*at_ - ranges::begin(*range_))};
    else
      return {};
  }
  /// Makes the next element that `next` finds the marked one.
  void mark_next() noexcept { mark_.reset(); }
  /// Where the marked element begins.
  [[nodiscard]] position marked() const { return mark_.value_or(position{}); }

 private:
  Range* range_;
  std::optional<position> from_;
  std::optional<position> mark_;
  std::optional<ranges::iterator_t<Range>> at_;
};

}  // namespace rondo::data::detail

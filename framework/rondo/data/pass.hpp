#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <exception>
#include <optional>
#include <range/v3/range/concepts.hpp>
#include <range/v3/range/traits.hpp>
#include <utility>
#include <vector>

#include "rondo/async/task.hpp"
#include "rondo/data/position.hpp"
#include "rondo/data/settings.hpp"
#include "rondo/data/stage.hpp"
#include "rondo/error.hpp"
#include "rondo/state/value.hpp"

namespace rondo::data {

namespace detail {

/// Views that make their elements ahead, such as `prefetch`: going on does not wait, and `ready()` says for how long.
template <class View>
concept works_ahead = requires(View& view) {
  { view.ready() } -> std::same_as<std::optional<task<>>>;
};

/// What the state of a pass says.
struct stored_position {
  std::int64_t epoch = 0;
  std::int64_t index = 0;
  std::vector<std::int64_t> stream;  // index and fields of an element that had been read, or empty
  state::value stages;
};

/// Throws `state_error` for what is not the state of a pass.
[[nodiscard]] stored_position read_position(const state::value& state);

}  // namespace detail

/// One walk over a pipeline, epoch after epoch, that can be interrupted after every element and taken up again there,
/// in this process or in another one: the rest of the epoch and all later ones then have the same elements. One thread.
///
/// An element is made when it is first needed: by `take`, or before by `exhausted` where the number of elements is
/// unknown; the first element of a stream by `begin`. A resumed pass makes its elements at the same moments as an
/// unbroken one, which matters to functions that draw from LibTorch's default random generator. A stream that has
/// thrown gives that error until `begin`; in a random access pipeline, `advance` goes on to the next element.
template <class View>
class pass {
 public:
  using value = ranges::range_value_t<View>;

  explicit pass(View view) : view_(std::move(view)) {}
  /// A pass that was moved has to begin anew.
  pass(pass&&) = default;
  pass& operator=(pass&&) = default;
  ~pass() = default;

  /// The number of elements per epoch, where it is known.
  [[nodiscard]] std::optional<std::int64_t> size() const {
    if constexpr (detail::sized<View>)
      return detail::size_of(view_);
    else
      return std::nullopt;
  }

  /// The same for epoch `epoch`, where a stage's `set_epoch` can change it. `begin` has to follow.
  [[nodiscard]] std::optional<std::int64_t> size_in(std::int64_t epoch) {
    reading_->reset();
    rondo::data::set_epoch(view_, epoch);
    return size();
  }

  /// Where elements will be used (see `data::set_device`). To be called before `begin`.
  void set_device(c10::Device device) { rondo::data::set_device(view_, device); }

  /// Begins epoch `epoch` with element `skip`. Takes constant time where positions are known without reading: in random
  /// access pipelines, prefetched or not. Elsewhere the elements before are made again.
  void begin(std::int64_t epoch, std::int64_t skip = 0) { begin_at(epoch, skip, {}); }

  /// Nothing: the current element, or the end, is there. Otherwise completes when it is. Cancellation throws
  /// `operation_aborted` and leaves the pass as it is. The pass must stay where it is until the task has ended.
  [[nodiscard]] std::optional<task<>> ready() {
    if constexpr (detail::works_ahead<View>) {
      require_begun();
      if (settled_) return std::nullopt;
      if (behind_ > 0) return catch_up();
      return view_.ready();
    }
    return std::nullopt;
  }

  /// Whether `exhausted` needs no element to be made, because the number of elements is known all the time.
  static constexpr bool size_lasts = detail::size_lasts<View>;

  /// Whether there is no current element. Needs no waiting where the size is known, blocks elsewhere unless `ready`. An
  /// element whose making failed is one: `take` throws.
  [[nodiscard]] bool exhausted() {
    require_begun();
    if constexpr (size_lasts) return position_ >= detail::size_of(view_);
    settle();
    return at_end_;
  }

  /// The current element, to be taken once: moved where nobody else can see it, a copy elsewhere. Blocks unless
  /// `ready`. Throws what making it threw: `sample_error` if a function of a `transform` did. Throws `error` when there
  /// is none.
  [[nodiscard]] value take() {
    require_begun();
    if constexpr (detail::indexable<View>) {
      if (exhausted()) throw_no_element();
      return *detail::position(view_, position_);
    } else {
      settle();
      if (failure_) std::rethrow_exception(failure_);
      if (at_end_) throw_no_element();
      try {
        return reading_->value().take();
      } catch (...) {
        failure_ = std::current_exception();
        throw;
      }
    }
  }

  /// Goes to the next element, without making it or waiting for it. There must be a current one.
  void advance() {
    require_begun();
    if (failure_) return;
    ++position_;
    ++behind_;
    if constexpr (detail::works_ahead<View>)
      if (std::exchange(settled_, false) && !at_end_) go_on();
    settled_ = false;
  }

  /// The number of elements before the current one in this epoch.
  [[nodiscard]] std::int64_t position() const noexcept { return position_; }

  /// {"epoch", "position", "stream", "stages"}: what `load_state_dict` needs to go on with the current element. Takes
  /// constant time and waits for nothing. "stages" is `data::state_dict` of the pipeline. "stream" is None where the
  /// position alone is enough or all there is; for other streams it is [index, fields…], the last element that was read
  /// and where it begins.
  [[nodiscard]] state::dict state_dict() const {
    state::value stream;
    if (known_.is_there()) {
      state::list fields{known_.index};
      for (const auto place : known_.where) fields.emplace_back(place);
      stream = std::move(fields);
    }
    return {{"epoch", epoch_},
            {"position", position_},
            {"stream", std::move(stream)},
            {"stages", rondo::data::state_dict(view_)}};
  }

  /// Gives the pipeline its settings (see `data::load_state_dict`) and begins where `state` says, in constant time
  /// unless the pipeline is a stream that cannot seek, or whose positions are of another kind than the stored one:
  /// there, the elements before are made again. Throws `state_error` when the state is of another pipeline; nothing has
  /// changed then.
  void load_state_dict(const state::value& state) {
    const auto stored = detail::read_position(state);
    load_stages(stored.stages);
    begin_at(stored.epoch, stored.index, known_in(stored));
  }

  /// Takes over only the settings of what `state_dict` gave, as `load_state_dict` does; `begin` has to follow.
  void load_settings(const state::value& state) { load_stages(detail::read_position(state).stages); }

 private:
  /// Whether the position in the stream says more than the index of the element.
  static constexpr bool tells_positions = detail::seekable<View> && !detail::addressable<View>;

  /// An element that has been read, and where it begins. No optional, which GCC 12 believes to be read uninitialised.
  struct known_position {
    std::int64_t index = -1;
    detail::position_t<View> where{};

    [[nodiscard]] bool is_there() const noexcept { return index >= 0; }
  };

  /// A pass whose size is known stays with the element before until the current one is taken.
  static constexpr std::int64_t lag = size_lasts ? 1 : 0;

  [[nodiscard]] static known_position known_in(const detail::stored_position& stored) {
    known_position known;
    if (!tells_positions || stored.stream.size() != 1 + detail::position_fields<View>) return known;
    known.index = stored.stream.front();
    std::copy(stored.stream.begin() + 1, stored.stream.end(), known.where.begin());
    return known;
  }

  void load_stages(const state::value& stages) {
    try {
      rondo::data::load_state_dict(view_, stages);
    } catch (const state_error& e) {
      throw e.under("stages");
    }
    reading_->reset();
  }

  void begin_at(std::int64_t epoch, std::int64_t index, const known_position& known) {
    reading_->reset();
    rondo::data::set_epoch(view_, epoch);
    epoch_ = epoch;
    position_ = index;
    known_ = known;
    failure_ = nullptr;
    settled_ = at_end_ = false;
    start_reading();
  }

  /// Begins as near as possible before the current element, and goes there unless that means waiting.
  void start_reading() {
    if constexpr (detail::addressable<View>) {
      const auto first = detail::works_ahead<View> ? position_ : std::max<std::int64_t>(position_ - lag, 0);
      behind_ = position_ - first;
      reading_->emplace(view_, detail::position_at(view_, first));
    } else {
      behind_ = position_ - std::max<std::int64_t>(known_.index, 0);
      reading_->emplace(view_, known_.is_there() ? std::optional(known_.where) : std::nullopt);
    }
    if constexpr (!detail::indexable<View>) {
      attempt([&](auto& reading) {
        reading.begin();
        if (detail::works_ahead<View> || behind_ <= lag) return;
        reading.pass_over(behind_ - lag);
        behind_ = lag;
      });
    }
  }

  /// Makes the element at `position_` the current one, or finds that there is none.
  void settle() {
    if (std::exchange(settled_, true) || failure_) return;
    attempt([&](auto& reading) {
      if (behind_ > 0) reading.pass_over(behind_);
      behind_ = 0;
      at_end_ = reading.at_end();
      if constexpr (tells_positions)
        if (!at_end_) known_ = known_position{position_, reading.tell()};
    });
  }

  template <class Action>
  void attempt(Action action) {
    try {
      action(**reading_);
    } catch (...) {
      failure_ = std::current_exception();
    }
  }

  /// Leaves an element that is there behind; false when there is none, or when that failed.
  bool go_on() {
    const auto before = behind_;
    attempt([&](auto& reading) { behind_ -= 1 - reading.pass_over(1); });
    return behind_ < before;
  }

  /// Waits for the elements that are to be passed over, and for the one after them.
  task<> catch_up() {
    for (bool found = true; found;) {
      found = behind_ > 0;
      std::optional<task<>> waiting = view_.ready();
      if (waiting) {
        task<> wait = *std::move(waiting);
        co_await std::move(wait);
      }
      if (found) found = go_on();
    }
  }

  void require_begun() const {
    if (!reading_->has_value()) throw error("data::pass: call begin before reading, and again after a move");
  }
  [[noreturn]] void throw_no_element() const {
    throw error(
        fmt::format("data::pass: epoch {} has no element {}; ask exhausted() before take()", epoch_, position_));
  }

  View view_;
  std::int64_t epoch_ = 0;
  std::int64_t position_ = 0;
  known_position known_;
  detail::left_behind<detail::reader<View>> reading_;
  std::int64_t behind_ = 0;  // elements between the one that `reading_` is at and the current one
  bool settled_ = false;     // behind_ is 0, and the following two are about the current element
  bool at_end_ = false;
  std::exception_ptr failure_;
};

}  // namespace rondo::data

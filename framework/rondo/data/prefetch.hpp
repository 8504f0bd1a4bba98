#pragma once

#include <c10/core/Device.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <range/v3/range/traits.hpp>
#include <range/v3/view/facade.hpp>
#include <type_traits>
#include <utility>
#include <vector>

#include "rondo/async/task.hpp"
#include "rondo/data/pin_memory.hpp"
#include "rondo/data/position.hpp"
#include "rondo/data/prefetch_queue.hpp"
#include "rondo/data/settings.hpp"
#include "rondo/data/stage.hpp"
#include "rondo/error.hpp"

namespace rondo::data {

struct prefetch_options {
  /// Whether `pin_memory` is applied to every element, on the thread that made it. Without a value it is when
  /// `set_device` named a CUDA device; a loop does that.
  std::optional<bool> pin_memory = std::nullopt;
};

namespace detail {

/// Throw `option_error`.
void check_prefetch(std::int64_t depth, std::int64_t workers, const prefetch_options& options);
void check_stream_workers(std::int64_t workers);

/// Where an element waits to be read.
template <class Base>
struct prefetch_slot {
  using value = std::remove_cvref_t<ranges::range_value_t<std::conditional_t<indexable<Base>, const Base, Base>>>;

  void put(value made, bool pinned) {
    if (pinned)
      element.emplace(rondo::data::pin_memory(std::move(made)));
    else
      element.emplace(std::move(made));
  }

  std::optional<value> element;
  position_t<Base> where{};
};

template <class Base>
class prefetch_ring {
 public:
  explicit prefetch_ring(std::int64_t depth) : slots_(static_cast<std::size_t>(depth)) {}

  [[nodiscard]] prefetch_slot<Base>& operator[](std::int64_t index) {
    return slots_[static_cast<std::size_t>(index) % slots_.size()];
  }

 private:
  std::vector<prefetch_slot<Base>> slots_;
};

/// Makes any elements of a range of its own.
template <indexable Base>
class indexed_maker final : public element_maker {
 public:
  indexed_maker(const Base& base, prefetch_ring<Base>& ring, bool pinned) : base_(base), ring_(ring), pinned_(pinned) {}

  bool make(std::int64_t index) override {
    ring_[index].put(*position(base_, index), pinned_);
    return true;
  }

 private:
  const Base base_;
  prefetch_ring<Base>& ring_;
  const bool pinned_;
};

/// Reads a stream, which nobody else does in the meantime.
template <ranges::input_range Base>
class streamed_maker final : public element_maker {
 public:
  streamed_maker(Base& base, const std::optional<position_t<Base>>& from, prefetch_ring<Base>& ring, bool pinned)
      : reader_(base, from), ring_(ring), pinned_(pinned) {}

  bool make(std::int64_t index) override {
    const std::lock_guard lock(reading_);
    if (!reader_.next()) return false;
    ring_[index].where = reader_.tell();
    ring_[index].put(reader_.take(), pinned_);
    return true;
  }

  /// While the lock is held, the stream rests.
  [[nodiscard]] std::unique_lock<std::mutex> pause() { return std::unique_lock(reading_); }

 private:
  std::mutex reading_;
  reader<Base> reader_;
  prefetch_ring<Base>& ring_;
  const bool pinned_;
};

/// What a view remembers beside the range below.
template <class Base>
struct prefetch_plan {
  std::int64_t depth = 1;
  std::int64_t workers = 0;
  prefetch_options options;
  std::int64_t epoch = 0;
  c10::Device device = c10::kCPU;
  std::optional<position_t<Base>> from = std::nullopt;

  [[nodiscard]] bool pins() const { return options.pin_memory.value_or(device.is_cuda()); }
};

/// One pass over a range, whose elements are made ahead. Over a stream, it uses `base` itself, until it is destroyed.
template <ranges::input_range Base>
class prefetch_pass {
  using slot = prefetch_slot<Base>;

 public:
  prefetch_pass(Base& base, const prefetch_plan<Base>& plan)
      : index_(first(plan)),
        ring_(depth(base, plan)),
        queue_(std::make_shared<prefetch_queue>(depth(base, plan), index_, end(base), plan.epoch)),
        settings_(rondo::data::state_dict(std::as_const(base))) {
    if constexpr (sized<Base>) size_ = size_of(base);
    prefetch_queue::makers makers;
    if constexpr (indexable<Base>) {
      for (std::int64_t i = 0; i < std::max<std::int64_t>(plan.workers, 1); ++i)
        makers.push_back(std::make_unique<indexed_maker<Base>>(base, ring_, plan.pins()));
    } else {
      auto maker = std::make_unique<streamed_maker<Base>>(base, plan.from, ring_, plan.pins());
      stream_ = maker.get();
      makers.push_back(std::move(maker));
    }
    queue_->start(std::move(makers), plan.workers > 0);
  }
  prefetch_pass(const prefetch_pass&) = delete;
  prefetch_pass& operator=(const prefetch_pass&) = delete;
  ~prefetch_pass() { queue_->stop(); }

  [[nodiscard]] bool arrived() { return element_ || failed_ || queue_->arrived(index_); }
  [[nodiscard]] task<> arrival() { return prefetch_queue::arrival(queue_, index_); }

  [[nodiscard]] bool exhausted() { return failed_ || !(element_ || queue_->find(index_)); }

  [[nodiscard]] typename slot::value& current() {
    if (!element_) fetch();
    return *element_;
  }

  void next() {
    if (exhausted()) return;
    if (!element_) fetch();
    element_.reset();
    ++index_;
  }

  [[nodiscard]] position_t<Base> tell() {
    if constexpr (indexable<Base>)
      return {index_};
    else
      return element_ || exhausted() ? where_ : ring_[index_].where;
  }

  /// As they were at the beginning: nobody may ask a stream that is being read.
  [[nodiscard]] const state::value& settings() const noexcept { return settings_; }
  [[nodiscard]] std::int64_t size() const noexcept { return size_; }

  /// While the lock is held, the range below can be copied.
  [[nodiscard]] std::unique_lock<std::mutex> pause() const {
    if constexpr (!indexable<Base>)
      return stream_->pause();
    else
      return {};
  }

 private:
  static std::int64_t first(const prefetch_plan<Base>& plan) {
    if constexpr (ranges::random_access_range<Base>)
      return plan.from ? plan.from->front() : 0;
    else
      return 0;
  }
  static std::int64_t end(const Base& base) {
    if constexpr (indexable<Base>)
      return size_of(base);
    else
      return std::numeric_limits<std::int64_t>::max();
  }
  /// No more places than there are elements.
  static std::int64_t depth(const Base& base, const prefetch_plan<Base>& plan) {
    return plan.workers == 0 ? 1 : std::clamp<std::int64_t>(end(base) - first(plan), 1, plan.depth);
  }

  void fetch() {
    if (failed_ || !queue_->find(index_)) throw error("data::prefetch: there is no element here; begin anew");
    try {
      queue_->check(index_);
      slot& from = ring_[index_];
      element_.emplace(*std::move(from.element));
      from.element.reset();
      where_ = from.where;
    } catch (...) {
      failed_ = true;
      throw;
    }
    queue_->release(index_);
  }

  std::int64_t index_;
  bool failed_ = false;
  std::optional<typename slot::value> element_;
  position_t<Base> where_{};
  prefetch_ring<Base> ring_;
  std::shared_ptr<prefetch_queue> queue_;
  streamed_maker<Base>* stream_ = nullptr;
  state::value settings_;
  std::int64_t size_ = 0;
};

/// A pass belongs to one view: a copy of the view has none, and where the view is moved it ends, because it uses the
/// range that moves. Declared before that range.
template <class Base>
class own_pass {
 public:
  own_pass() = default;
  own_pass(const own_pass&) noexcept {}
  own_pass(own_pass&& other) noexcept { other.end(); }
  own_pass& operator=(const own_pass&) noexcept {
    end();
    return *this;
  }
  own_pass& operator=(own_pass&& other) noexcept {
    end();
    other.end();
    return *this;
  }
  ~own_pass() = default;

  void begin(Base& base, const prefetch_plan<Base>& plan) { pass_ = std::make_unique<prefetch_pass<Base>>(base, plan); }
  void end() noexcept { pass_.reset(); }

  explicit operator bool() const noexcept { return pass_ != nullptr; }
  prefetch_pass<Base>* operator->() const noexcept { return pass_.get(); }

 private:
  std::unique_ptr<prefetch_pass<Base>> pass_;
};

template <class View>
class prefetch_cursor {
 public:
  using single_pass = std::true_type;

  prefetch_cursor() = default;
  explicit prefetch_cursor(View* view) : view_(view) {}

  [[nodiscard]] auto& read() const { return view_->current(); }
  [[nodiscard]] bool equal(ranges::default_sentinel_t) const { return view_->exhausted(); }
  void next() { view_->next(); }

 private:
  View* view_ = nullptr;
};

template <ranges::input_range Base>
class prefetched : public ranges::view_facade<prefetched<Base>, stream_cardinality<Base>> {
  static constexpr bool tells = detail::position_fields<Base> > 0;

 public:
  using streamed_value = typename prefetch_slot<Base>::value;
  static constexpr bool size_lasts = detail::size_lasts<Base>;
  static constexpr std::size_t position_fields = detail::position_fields<Base>;
  using position_type = position_t<Base>;

  prefetched() = default;
  prefetched(Base base, std::int64_t depth, std::int64_t workers, prefetch_options options)
      : base_(std::move(base)), plan_{.depth = depth, .workers = workers, .options = options} {}
  prefetched(const prefetched& other) : prefetched(other, other.pause()) {}
  prefetched(prefetched&&) = default;
  prefetched& operator=(const prefetched& other) { return *this = prefetched(other); }
  prefetched& operator=(prefetched&&) = default;
  ~prefetched() { pass_.end(); }

  void set_epoch(std::int64_t epoch) {
    pass_.end();
    rondo::data::set_epoch(base_, epoch);
    plan_.epoch = epoch;
  }
  void set_device(c10::Device device) {
    pass_.end();
    rondo::data::set_device(base_, device);
    plan_.device = device;
  }

  [[nodiscard]] state::value state_dict() const {
    return pass_ ? pass_->settings() : rondo::data::state_dict(std::as_const(base_));
  }
  void load_state_dict(const state::value& stored) {
    pass_.end();
    rondo::data::load_state_dict(base_, stored);
  }

  [[nodiscard]] std::int64_t size() const requires sized<Base> { return pass_ ? pass_->size() : size_of(base_); }

  [[nodiscard]] position_type tell() const requires(tells) { return pass_->tell(); }
  void seek(const position_type& position) requires(tells) { plan_.from = position; }
  [[nodiscard]] position_type position_at(std::int64_t index) const requires(addressable<Base>) {
    return detail::position_at(base_, index);
  }

  [[nodiscard]] std::optional<task<>> ready() {
    if (!pass_ || pass_->arrived()) return std::nullopt;
    return pass_->arrival();
  }

 private:
  friend ranges::range_access;
  friend prefetch_cursor<prefetched>;

  using pause_lock = std::unique_lock<std::mutex>;
  prefetched(const prefetched& other, const pause_lock&) : base_(other.base_), plan_(other.plan_) {}
  [[nodiscard]] pause_lock pause() const { return pass_ ? pass_->pause() : pause_lock(); }

  prefetch_cursor<prefetched> begin_cursor() {
    pass_.end();
    pass_.begin(base_, plan_);
    plan_.from.reset();
    return prefetch_cursor<prefetched>(this);
  }
  [[nodiscard]] ranges::default_sentinel_t end_cursor() const { return {}; }

  [[nodiscard]] streamed_value& current() {
    if (!pass_) throw error("data::prefetch: the pass has ended; begin anew");
    return pass_->current();
  }
  [[nodiscard]] bool exhausted() { return !pass_ || pass_->exhausted(); }
  void next() {
    if (pass_) pass_->next();
  }

  own_pass<Base> pass_;
  Base base_;
  prefetch_plan<Base> plan_;
};

struct prefetch_function {
  std::int64_t depth;
  std::int64_t workers;
  prefetch_options options;

  template <ranges::input_range Range>
  auto operator()(Range&& range) const {
    using base = all_t<Range>;
    if constexpr (!indexable<base>) check_stream_workers(workers);
    return prefetched<base>(detail::all(std::forward<Range>(range)), depth, workers, options);
  }
};

}  // namespace detail

/// `range | prefetch(depth, workers)`: the same elements in the same order, made ahead by `workers` threads while the
/// program does something else. Never more than `depth` elements are being made or wait to be read; the one that is
/// being used is not among them. Results do not depend on `depth`, `workers` and timing, as long as the functions in
/// the pipeline depend on their arguments only (see `transform`).
///
/// * **Threads.** Over a random access range, each of them has its own copy of the pipeline, with a copy of every
///   function in it; what copies share (a tensor, a pointer, a file) must bear to be used by several threads. A stream
///   is read by one thread, and by nobody else until the pass has ended. No signal handler of the program runs on these
///   threads, LibTorch records no gradients there, and its operations do not split their work among further threads
///   (matrix products through OpenBLAS are not concerned by that); the training thread keeps its own setting. They do
///   not take the processor away from a thread that is running. `workers` = 0 makes each element when it is read, under
///   the same conditions for LibTorch, and therefore the same elements.
/// * **Reading.** A stream: one pass and one iterator at a time, `begin()` begins a new pass and starts the threads. It
///   is sized if the range is. Going on does not wait; reading an element, or asking whether there is one, blocks until
///   it is there. A coroutine awaits `ready()` first: nothing when the element (or the end) is there already, or else a
///   task that completes when it is, and which cancellation ends with `operation_aborted`, after which the pass is as
///   it was. The view must stay where it is until the task has ended.
/// * **Errors.** What making an element threw is thrown where that element would be read, as `sample_error` with the
///   epoch and the index of the element (counted from where the pass began, in streams that began in the middle), after
///   all elements before it. Then the pass is over.
/// * **Ending.** `begin()`, `set_epoch`, `set_device`, `load_state_dict`, destroying and moving the view end the pass:
///   the elements that are being made are waited for, then thrown away. A copy of a view that is being read begins
///   anew; copying one over a stream waits until the element that is being made has been made.
/// * **Resuming.** Positions and states are those of the range below (the index, if it is random access), so elements
///   that were made but not read are neither lost nor repeated, and depth and workers can be others the next time.
///
/// Throws `option_error` when `depth` is below 1, `workers` below 0, or above 1 over a stream, or when memory is to be
/// pinned and there is no CUDA. `begin()` throws std::system_error when there can be no thread, and what copying a
/// function throws.
[[nodiscard]] inline auto prefetch(std::int64_t depth, std::int64_t workers = 1, prefetch_options options = {}) {
  detail::check_prefetch(depth, workers, options);
  return detail::make_closure(detail::prefetch_function{depth, workers, options});
}

}  // namespace rondo::data

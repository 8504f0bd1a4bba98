#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

#include "rondo/async/mailbox.hpp"
#include "rondo/async/task.hpp"
#include "rondo/async/trace.hpp"
#include "rondo/event/acknowledgement.hpp"
#include "rondo/event/priority.hpp"

namespace rondo {

/// An event that ends something and says how: it has a member `std::exception_ptr error`.
template <class E>
concept closing_event = requires(const E& e) {
  { e.error } -> std::convertible_to<std::exception_ptr>;
};

/// A callable that can subscribe to `E`: it takes the event or nothing, and returns nothing or a `task<>`.
template <class F, class E>
concept handler_of = (std::invocable<F&, const E&> && (std::is_void_v<std::invoke_result_t<F&, const E&>> ||
                                                       std::same_as<std::invoke_result_t<F&, const E&>, task<>>)) ||
                     (std::invocable<F&> && (std::is_void_v<std::invoke_result_t<F&>> ||
                                             std::same_as<std::invoke_result_t<F&>, task<>>));

/// What lets an event through to a subscriber; asked once per emission, on the training thread.
class gate {
 public:
  virtual ~gate() = default;
  virtual bool open() = 0;
  /// The gate has let this very event through before, in an earlier run: the next `open` says so again without asking.
  virtual void reopen() {}
};

/// One listener coroutine's subscription to `E` (the other end of `context::next`). Must live as long as the bus.
template <class E>
struct listener {
  mailbox<const E*> box;
  acknowledgement* ack = nullptr;  ///< the extension's, shared by all the event types that it listens to
};

/// How a subscriber wants an event.
struct subscription {
  int priority = priority::reader;
  std::shared_ptr<gate> only_if = nullptr;  ///< none: always
  bool hears_failure = false;               ///< also closing events that carry an error; those pass no gate
  std::string owner = {};                   ///< whose it is, by which it is found again in a later run
};

/// Which handler of an event it is, in words that hold in a later run as well.
struct handler_place {
  std::string owner;
  std::int64_t nth = 0;  ///< among the owner's subscriptions to that event, from 0
  int priority = 0;
};

namespace detail {

/// What an event type is called in a trace: "iteration_completed".
[[nodiscard]] std::string event_name(const std::type_info& type);

class channel_base {
 public:
  virtual ~channel_base() = default;
  virtual void close() = 0;
};

/// All subscribers of one event type, by descending priority, then in the order of registration.
///
///     run_above            run_settled
///     [300 a][300 b][100 c] │ [-100 d][-100 e]
///     gates asked one by one  gates asked together (settle), before d runs
///
/// As long as everything finishes inline, emitting makes no coroutine frame. At the first coroutine handler that is
/// due, or at the end of a priority in which a listener is still at work, the rest is handed to a coroutine (`finish`).
/// Coroutine handlers of one priority run one after the other; listeners side by side.
template <class E>
class channel final : public channel_base {
 public:
  template <handler_of<E> F>
  void add_handler(subscription how, F handler) {
    constexpr bool takes_event = std::invocable<F&, const E&>;
    using result = typename std::conditional_t<takes_event, std::invoke_result<F&, const E&>, std::invoke_result<F&>>::type;
    const auto call = [](void* self, [[maybe_unused]] const E& e) -> result {
      if constexpr (takes_event)
        return std::invoke(*static_cast<F*>(self), e);
      else
        return std::invoke(*static_cast<F*>(self));
    };
    auto owned = std::make_shared<F>(std::move(handler));
    entry added;
    added.self = owned.get();
    added.owner = std::move(owned);
    if constexpr (std::is_void_v<result>)
      added.call = call;
    else
      added.start = call;
    add(std::move(how), std::move(added));
  }

  void add_listener(subscription how, listener<E>& who) {
    if (closed_) who.box.close();
    entry added;
    added.who = &who;
    add(std::move(how), std::move(added));
  }

  [[nodiscard]] bool empty() const noexcept { return entries_.empty(); }

  /// Runs the entries above the snapshot priority. `e` must outlive the returned task.
  [[nodiscard]] std::optional<task<>> run_above(const E& e) {
    if (boundary_ == 0) return std::nullopt;
    return run(e, part::above, held());
  }
  /// The same from the handler `first` on, whose gate is not asked again. If nobody is called like that any more, from
  /// the next priority on.
  [[nodiscard]] std::optional<task<>> run_above_from(const handler_place& first, const E& e) {
    const auto found = find(first);
    if (found && entries_[*found].only_if != nullptr) entries_[*found].only_if->reopen();
    const std::size_t from = found ? *found : end_of(first.priority);
    if (from == boundary_) return std::nullopt;
    return run(e, part::above, held(), from);
  }
  /// The coroutine handler that `run_above` is waiting for now, if any.
  [[nodiscard]] std::optional<handler_place> at_work() const {
    if (!at_work_) return std::nullopt;
    return place_of(*at_work_);
  }
  /// The handler that threw last.
  [[nodiscard]] const std::optional<handler_place>& thrower() const noexcept { return thrower_; }
  /// Asks the gates of all the other entries.
  void settle(const E& e) {
    for (std::size_t i = boundary_; i != entries_.size(); ++i) entries_[i].due = wants(entries_[i], e);
  }
  /// Runs the entries that `settle` found due.
  [[nodiscard]] std::optional<task<>> run_settled(const E& e) {
    if (boundary_ == entries_.size()) return std::nullopt;
    return run(e, part::settled, held());
  }
  /// All three.
  [[nodiscard]] std::optional<task<>> run_all(const E& e) {
    if (entries_.empty()) return std::nullopt;
    return run(e, part::all, held());
  }

  /// Tells everybody in order, whatever the others throw: `thrown` gets each exception. For endings that nobody may
  /// miss.
  task<> tell_all(const E& e, std::function<void(std::exception_ptr)> thrown) {
    emitting guard(*this);
    busy_listeners busy;
    for (std::size_t i = 0; i != entries_.size(); ++i) {
      entry& x = entries_[i];
      if (i != 0 && x.priority != entries_[i - 1].priority) {
        for (listener<E>* who : busy) co_await who->ack->settled();
        busy.clear();
      }
      try {
        if (!wants(x, e)) continue;
        const trace::span at_work(*x.label);
        if (x.start != nullptr)
          co_await x.start(x.self, e);
        else
          tell(x, e, busy);
      } catch (...) {
        thrown(std::current_exception());
      }
    }
    for (listener<E>* who : busy) co_await who->ack->settled();
  }

  /// Listeners get nullptr from now on.
  void close() override {
    closed_ = true;
    for (auto& x : entries_)
      if (x.who != nullptr) x.who->box.close();
  }

  /// A place where an event lives while it is being emitted; used again by the next emission.
  struct slot {
    alignas(E) std::byte bytes[sizeof(E)];
  };

  /// An event built in a slot, or none.
  class held {
   public:
    held() noexcept = default;
    template <class... Args>
    held(std::in_place_t, channel& c, Args&&... args) : channel_(&c), slot_(c.take_slot()) {
      event_ = ::new (static_cast<void*>(slot_->bytes)) E{std::forward<Args>(args)...};
    }
    held(held&& other) noexcept
        : channel_(other.channel_), slot_(std::move(other.slot_)), event_(std::exchange(other.event_, nullptr)) {}
    held& operator=(held&&) = delete;
    ~held() {
      if (event_ == nullptr) return;
      event_->~E();
      channel_->free_slots_.push_back(std::move(slot_));
    }
    const E& operator*() const noexcept { return *event_; }

   private:
    channel* channel_ = nullptr;
    std::unique_ptr<slot> slot_;
    E* event_ = nullptr;
  };

  /// Runs everything with an event that is owned here.
  template <class... Args>
  [[nodiscard]] std::optional<task<>> emit(Args&&... args) {
    if (entries_.empty()) return std::nullopt;
    held event(std::in_place, *this, std::forward<Args>(args)...);
    const E& e = *event;
    return run(e, part::all, std::move(event));
  }

 private:
  struct entry {
    void (*call)(void*, const E&) = nullptr;     // inline handler
    task<> (*start)(void*, const E&) = nullptr;  // coroutine handler
    void* self = nullptr;
    listener<E>* who = nullptr;
    gate* only_if = nullptr;
    int priority = 0;
    bool hears_failure = false;
    bool due = false;
    std::shared_ptr<void> owner;
    std::shared_ptr<gate> gate_owner;
    std::unique_ptr<const std::string> owner_name;  // apart: emitting never looks at it
    const trace::label* label = nullptr;
  };
  enum class part { above, settled, all };
  using busy_listeners = std::vector<listener<E>*>;  // allocates only when one of them suspends

  /// Where and why a walk over the entries came to a halt.
  struct halt {
    enum reason { at_end, at_handler, at_next_priority } why = at_end;
    std::size_t index = 0;
    std::exception_ptr error = nullptr;
  };

  /// Marks an emission in progress: subscriptions made meanwhile join when the outermost one is over.
  class emitting {
   public:
    explicit emitting(channel& c) noexcept : channel_(&c) { ++c.depth_; }
    emitting(emitting&& other) noexcept : channel_(std::exchange(other.channel_, nullptr)) {}
    emitting& operator=(emitting&&) = delete;
    ~emitting() {
      if (channel_ != nullptr && --channel_->depth_ == 0 && !channel_->joining_.empty()) channel_->admit();
    }

   private:
    channel* channel_;
  };

  void add(subscription how, entry added) {
    added.priority = how.priority;
    added.hears_failure = how.hears_failure;
    added.only_if = how.only_if.get();
    added.gate_owner = std::move(how.only_if);
    added.label = &trace::intern(how.owner, "extension", emission_.name);
    added.owner_name = std::make_unique<const std::string>(std::move(how.owner));
    joining_.push_back(std::move(added));
    if (depth_ == 0) admit();
  }

  void admit() {
    for (auto& added : joining_) {
      const auto at = std::upper_bound(entries_.begin(), entries_.end(), added,
                                       [](const entry& a, const entry& b) { return a.priority > b.priority; });
      entries_.insert(at, std::move(added));
    }
    joining_.clear();
    const auto below = std::find_if(entries_.begin(), entries_.end(),
                                    [](const entry& x) { return x.priority <= priority::snapshot; });
    boundary_ = static_cast<std::size_t>(below - entries_.begin());
  }

  std::unique_ptr<slot> take_slot() {
    if (free_slots_.empty()) return std::make_unique<slot>();
    auto free = std::move(free_slots_.back());
    free_slots_.pop_back();
    return free;
  }

  static bool wants(entry& x, [[maybe_unused]] const E& e) {
    if constexpr (closing_event<E>)
      if (e.error) return x.hears_failure;
    return x.only_if == nullptr || x.only_if->open();
  }

  [[nodiscard]] handler_place place_of(std::size_t index) const {
    return {*entries_[index].owner_name, nth(index), entries_[index].priority};
  }

  [[nodiscard]] std::int64_t nth(std::size_t index) const {
    const auto here = entries_.begin() + static_cast<std::ptrdiff_t>(index);
    return std::count_if(entries_.begin(), here, [&](const entry& x) { return *x.owner_name == *here->owner_name; });
  }

  [[nodiscard]] std::optional<std::size_t> find(const handler_place& place) const {
    for (std::size_t i = 0; i != boundary_; ++i)
      if (*entries_[i].owner_name == place.owner && nth(i) == place.nth) return i;
    return std::nullopt;
  }

  /// The first entry below `priority`, but no further than the boundary.
  [[nodiscard]] std::size_t end_of(int priority) const {
    std::size_t i = 0;
    while (i != boundary_ && entries_[i].priority >= priority) ++i;
    return i;
  }

  /// `owned` is the event, if it is to be kept until the end.
  std::optional<task<>> run(const E& e, part what, held owned, std::size_t from = 0) {
    emitting guard(*this);
    trace::span emission(emission_);
    busy_listeners busy;
    halt stop = advance(e, what == part::settled ? boundary_ : from, what, busy);
    while (stop.why == halt::at_end && busy.empty()) {
      if (what != part::all) return std::nullopt;
      stop = enter_settled(e, what, busy);
    }
    return finish(std::move(guard), e, std::move(stop), what, std::move(busy), std::move(owned),
                  std::move(emission));
  }

  /// Begins the second half of `part::all`.
  halt enter_settled(const E& e, part& what, busy_listeners& busy) {
    settle(e);
    what = part::settled;
    return advance(e, boundary_, what, busy);
  }

  /// Runs what can run inline, from `i` on, to the end of the half that it is in. An exception ends the walk at once,
  /// but is kept back in `halt::error` while listeners still hold the event.
  halt advance(const E& e, std::size_t i, part what, busy_listeners& busy) {
    const std::size_t end = what == part::settled ? entries_.size() : boundary_;
    const bool traced = trace::on();
    try {
      for (; i != end; ++i) {
        entry& x = entries_[i];
        if (!busy.empty() && x.priority != entries_[i - 1].priority) return {halt::at_next_priority, i};
        const bool due = what == part::settled ? x.due : wants(x, e);
        if (!due) continue;
        if (x.start != nullptr) return {halt::at_handler, i};
        if (traced) [[unlikely]]
          tell_traced(x, e, busy);
        else
          tell(x, e, busy);
      }
      return {halt::at_end, end};
    } catch (...) {
      if (i != end) thrower_ = place_of(i);
      if (busy.empty()) throw;
      return {halt::at_end, end, std::current_exception()};
    }
  }

  /// An inline handler or a listener.
  static void tell(entry& x, const E& e, busy_listeners& busy) {
    if (x.call != nullptr) {
      x.call(x.self, e);
    } else if (x.who->box.waiting()) {
      x.who->ack->owe();
      x.who->box.deliver(&e);
      if (x.who->ack->owed()) busy.push_back(x.who);
    }
  }

  [[gnu::noinline]] static void tell_traced(entry& x, const E& e, busy_listeners& busy) {
    const trace::span at_work(*x.label);
    tell(x, e, busy);
  }

  task<> finish([[maybe_unused]] emitting guard, const E& e, halt stop, part what, busy_listeners busy,
                [[maybe_unused]] held owned, [[maybe_unused]] trace::span emission) {
    for (;;) {
      if (stop.why == halt::at_handler) {
        const auto outer = std::exchange(at_work_, what == part::above ? std::optional(stop.index) : std::nullopt);
        try {
          const trace::span at_work(*entries_[stop.index].label);
          co_await entries_[stop.index].start(entries_[stop.index].self, e);
        } catch (...) {
          thrower_ = place_of(stop.index);
          stop.error = std::current_exception();
        }
        at_work_ = outer;
        if (!stop.error) {
          stop = advance(e, stop.index + 1, what, busy);
          continue;
        }
        stop.why = halt::at_end;
      }
      for (listener<E>* who : busy) co_await who->ack->settled();
      busy.clear();
      if (stop.error) std::rethrow_exception(stop.error);
      if (stop.why == halt::at_next_priority)
        stop = advance(e, stop.index, what, busy);
      else if (what == part::all)
        stop = enter_settled(e, what, busy);
      else
        co_return;
    }
  }

  std::vector<entry> entries_;
  std::vector<entry> joining_;
  std::vector<std::unique_ptr<slot>> free_slots_;
  std::size_t boundary_ = 0;  // first entry at or below the snapshot priority
  std::optional<std::size_t> at_work_;
  std::optional<handler_place> thrower_;
  int depth_ = 0;
  bool closed_ = false;
  const trace::label& emission_ = trace::intern(event_name(typeid(E)), "event");
};

}  // namespace detail

/// Routes events from emitters to subscribers by type, on one thread. Subscribers run by descending priority, then in
/// the order of registration; the next priority begins when everybody in this one has acknowledged. Gates at and below
/// the snapshot priority are all asked before the first of those subscribers runs, so that a snapshot contains what all
/// of them remember. Subscribing from within a handler is allowed and takes effect with the next emission.
class bus {
 public:
  bus() = default;
  bus(const bus&) = delete;
  bus& operator=(const bus&) = delete;

  /// Subscribes a handler; `f` may be called with the event or with nothing, and may be a coroutine.
  template <class E, handler_of<E> F>
  void on(subscription how, F f) {
    channel<E>().add_handler(std::move(how), std::move(f));
  }

  /// Subscribes a listener coroutine, which gets an event only while it waits for one.
  template <class E>
  void listen(subscription how, listener<E>& who) {
    channel<E>().add_listener(std::move(how), who);
  }

  /// Builds an `E` from `args` and delivers it now. Returns nothing if every subscriber finished inline, else a task
  /// that must be awaited: `auto rest = bus.emit<E>(…); if (rest) co_await std::move(*rest);`. Throws what a handler
  /// throws; subscribers after it are not called then.
  template <class E, class... Args>
  [[nodiscard]] std::optional<task<>> emit(Args&&... args) {
    return channel<E>().emit(std::forward<Args>(args)...);
  }

  /// Builds an `E` from `args` and delivers it at the next `drain`. For handlers that cannot wait.
  template <class E, class... Args>
  void post(Args&&... args) {
    posted_.push_back(std::make_unique<posted<E>>(std::forward<Args>(args)...));
  }

  /// Delivers what has been posted, in order, including what is posted meanwhile. To be awaited as with `emit`.
  [[nodiscard]] std::optional<task<>> drain() {
    while (!posted_.empty()) {
      auto next = take_posted();
      auto rest = next->deliver(*this);
      if (rest) return drain_rest(std::move(next), std::move(*rest));
    }
    return std::nullopt;
  }

  /// Ends every listener: `context::next` returns nullptr from now on.
  void close() {
    for (auto& c : channels_)
      if (c) c->close();
  }

  /// The subscribers of one event type, for an emitter that interleaves several events.
  template <class E>
  detail::channel<E>& channel() {
    static const std::size_t id = next_id();
    if (channels_.size() <= id) channels_.resize(id + 1);
    if (!channels_[id]) channels_[id] = std::make_unique<detail::channel<E>>();
    return static_cast<detail::channel<E>&>(*channels_[id]);
  }

 private:
  struct posted_base {
    virtual ~posted_base() = default;
    virtual std::optional<task<>> deliver(bus&) = 0;
  };
  template <class E>
  struct posted final : posted_base {
    template <class... Args>
    explicit posted(Args&&... args) : event{std::forward<Args>(args)...} {}
    std::optional<task<>> deliver(bus& b) override { return b.channel<E>().run_all(event); }
    E event;
  };

  std::unique_ptr<posted_base> take_posted() {
    auto next = std::move(posted_.front());
    posted_.pop_front();
    return next;
  }

  task<> drain_rest(std::unique_ptr<posted_base> current, task<> rest) {
    for (;;) {
      co_await std::move(rest);
      std::optional<task<>> more;
      while (!more && !posted_.empty()) {
        current = take_posted();
        more = current->deliver(*this);
      }
      if (!more) co_return;
      rest = std::move(*more);
    }
  }

  static std::size_t next_id() noexcept;

  std::vector<std::unique_ptr<detail::channel_base>> channels_;
  std::deque<std::unique_ptr<posted_base>> posted_;
};

}  // namespace rondo

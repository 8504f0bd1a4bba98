#pragma once

#include <memory>
#include <string>

#include "rondo/async/task.hpp"
#include "rondo/error.hpp"

namespace rondo {

namespace detail {
class session;
struct unfinished_iteration;
}  // namespace detail

/// Thrown by `interruptible_work::point` when a signal has asked for the end of training. Let it pass: it is no failure,
/// and what it breaks off is done again when the run is resumed.
class interrupted : public error {
 public:
  interrupted() : error("a signal has asked for the end of training; this work is done again after a resume") {}
};

/// Long work of an extension, in a coroutine handler of `iteration_completed` or `epoch_completed` above the snapshot
/// priority, that can be broken off and done again from its beginning:
///
///     ctx.on<event::epoch_completed>([this, &ctx]() -> task<> {
///       auto work = ctx.interruptible_work();
///       for (auto& piece : pieces_) {
///         result += look_at(piece);
///         if (work.due()) co_await work.point();
///       }
///       ctx.report("result", result);
///     });
///
/// When SIGTERM or SIGINT arrives meanwhile and the run is saved by a `snapshot`, `point` throws `interrupted`, and the
/// run ends at once with a snapshot. A resumed run calls this handler again, with the same observations and the same
/// states of the random generators, and after it those that had not seen the event yet. A signal that asks for a
/// snapshot only (SIGUSR1) gets it at the point. So whatever the work changes before a point must be what it may change
/// again: it is best to change things, and to report, at the end. Elsewhere `point` only lets others run.
///
/// A snapshot in the middle of the work holds everything as it was when the work began, except for what the work itself
/// has changed. It belongs into the handler itself: in a coroutine beside it (`context::spawn`) of another extension,
/// `point` only lets others run. Training thread only.
class interruptible_work {
 public:
  interruptible_work(detail::session& s, const std::string& owner);
  interruptible_work(interruptible_work&&) noexcept;
  interruptible_work& operator=(interruptible_work&&) = delete;
  ~interruptible_work();

  /// Whether it is time for a `point`: the event loop has not run for 10 ms. Costs nanoseconds.
  [[nodiscard]] bool due() const noexcept;

  /// Lets the event loop run: signals, timers, writers of snapshots, other coroutines. Nothing of the thread's settings
  /// (gradient mode) and no module's mode may differ from what others expect meanwhile. Throws `interrupted`, what a
  /// snapshot on demand threw, and the failure of a coroutine beside training. Cancellation throws `operation_aborted`.
  [[nodiscard]] task<> point();

  /// Awaits something that may take long, such as data, and is a `point` as well: a signal that breaks the work off
  /// cancels `other`.
  [[nodiscard]] task<> wait(task<> other);

 private:
  detail::session& session_;
  std::unique_ptr<const detail::unfinished_iteration> begun_;  // null outside of such a handler
};

}  // namespace rondo

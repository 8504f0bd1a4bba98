#pragma once

#include <asio/steady_timer.hpp>
#include <asio/this_coro.hpp>
#include <chrono>
#include <exception>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

#include "rondo/async/detail/homecoming.hpp"
#include "rondo/async/offload.hpp"
#include "rondo/async/task.hpp"

namespace rondo {
namespace detail {

// A piece of work on its way to a thread and back.
class errand {
 public:
  using time_point = std::chrono::steady_clock::time_point;

  errand(std::shared_ptr<homecoming> way, std::optional<time_point> deadline)
      : way_(std::move(way)), deadline_(deadline) {}
  errand(const errand&) = delete;
  errand& operator=(const errand&) = delete;
  virtual ~errand() = default;

  /// Does the work, and destroys the callable.
  virtual void perform() noexcept = 0;
  /// Instead of perform.
  virtual void refuse(std::exception_ptr reason) noexcept = 0;

  void come_home() { way_->call(); }
  [[nodiscard]] const std::optional<time_point>& deadline() const noexcept { return deadline_; }

 private:
  std::shared_ptr<homecoming> way_;
  std::optional<time_point> deadline_;
};

template <class F, class R>
class errand_model final : public errand {
 public:
  errand_model(F&& f, std::shared_ptr<homecoming> way, std::optional<time_point> deadline)
      : errand(std::move(way), deadline), f_(std::move(f)) {}

  void perform() noexcept override {
    result_.run(*f_);
    f_.reset();
  }
  void refuse(std::exception_ptr reason) noexcept override {
    result_.fail(std::move(reason));
    f_.reset();
  }
  [[nodiscard]] outcome<R>& result() noexcept { return result_; }

 private:
  std::optional<F> f_;
  outcome<R> result_;
};

// The thread of a worker and what it shares with it; outlives the worker when the thread was given up.
class worker_thread;

[[nodiscard]] std::shared_ptr<worker_thread> make_worker_thread();
/// Throws rondo::error when the thread was given up, std::system_error when there can be no thread.
void make_ready(worker_thread& thread);
/// `node` holds the one piece of work that is handed over.
void hand_over(worker_thread& thread, std::list<std::shared_ptr<errand>>& node) noexcept;
void give_up(worker_thread& thread) noexcept;

template <class F>
struct handed_over {
  using callable = std::remove_cvref_t<F>;
  using result = std::invoke_result_t<callable&>;

  static_assert(std::is_lvalue_reference_v<F> || std::is_trivially_destructible_v<F>,
                "name the closure before the co_await expression and pass the name: GCC 12 destroys a temporary "
                "closure in a co_await expression twice");
  static_assert(!std::is_reference_v<result>, "a worker yields objects: return a value or a pointer");

  static std::unique_ptr<callable> take(F& work) {
    if constexpr (std::is_copy_constructible_v<callable>) {
      return std::make_unique<callable>(std::as_const(work));
    } else {
      return std::make_unique<callable>(std::move(work));
    }
  }
};

using work_limit = std::optional<std::chrono::steady_clock::duration>;

// Yields the errand when it has been run, or nothing when its time was over before.
template <class F, class R>
task<std::shared_ptr<errand_model<F, R>>> run_errand(std::shared_ptr<worker_thread> thread, std::unique_ptr<F> work,
                                                     work_limit limit) {
  const executor home = co_await asio::this_coro::executor;
  make_ready(*thread);
  absence away(home);
  asio::steady_timer clock(home);
  std::optional<errand::time_point> deadline;
  if (limit) {
    clock.expires_after(*limit);
    deadline = clock.expiry();
  }
  const auto job = std::make_shared<errand_model<F, R>>(std::move(*work), away.way(), deadline);
  work.reset();
  std::list<std::shared_ptr<errand>> node{job};
  bool late = false;
  auto start = [&]() noexcept {
    hand_over(*thread, node);
    if (!limit) return;
    clock.async_wait([&, way = away.way()](const asio::error_code& cancelled) {
      // The coroutine and what is in its frame are there exactly as long as the way home is open.
      if (cancelled || !way->forget()) return;
      late = true;
      away.rest()();
    });
  };
  co_await away.after(start);
  if (late) {
    give_up(*thread);
    co_return nullptr;
  }
  co_return job;
}

template <class F, class R>
task<R> run_to_its_end(std::shared_ptr<worker_thread> thread, std::unique_ptr<F> work) {
  const auto job = co_await run_errand<F, R>(std::move(thread), std::move(work), work_limit());
  if constexpr (std::is_void_v<R>) {
    job->result().take();
  } else {
    co_return job->result().take();
  }
}

template <class F, class R>
task<std::conditional_t<std::is_void_v<R>, bool, std::optional<R>>> run_in_time(std::shared_ptr<worker_thread> thread,
                                                                                std::unique_ptr<F> work,
                                                                                work_limit limit) {
  const auto job = co_await run_errand<F, R>(std::move(thread), std::move(work), limit);
  if constexpr (std::is_void_v<R>) {
    if (job) job->result().take();
    co_return job != nullptr;
  } else {
    std::optional<R> result;
    if (job) result.emplace(job->result().take());
    co_return result;
  }
}

}  // namespace detail

/// A thread of its own for work that may take long or hang. Made when first used; one piece of work after the other, in
/// the order of the calls. No signal handler of the program runs on it.
///
/// Belongs to one event loop at a time: that of the coroutine that uses it. An event loop that is destroyed before the
/// work has come home only drops the result: it does not wait for the work, which goes on and touches nothing of the
/// event loop any more. What such work refers to must then live on, so it is best owned by it.
class worker {
 public:
  worker() : thread_(detail::make_worker_thread()) {}
  /// Waits for work that was handed over; for work with a time limit no longer than that. Not for a thread that was
  /// given up.
  ~worker();
  worker(const worker&) = delete;
  worker& operator=(const worker&) = delete;

  /// Runs `work()` on the thread while the event loop goes on, and comes home with its result.
  ///
  /// Completes on the caller's own thread when `work` has returned. Yields what it returned (nothing, or any object
  /// that can be moved) or throws what it threw. Cancellation does not interrupt `work`: the await goes on until it has
  /// returned, so that whatever it refers to stays valid, and the next await of the cancelled coroutine throws.
  ///
  /// `work` is a named callable, or one that is trivially destructible. The thread gets a copy of it, or, when it
  /// cannot be copied, the callable itself by a move; that is destroyed on the thread before the result comes home.
  /// Throws rondo::error when the worker was given up, std::system_error when there can be no thread.
  template <class F>
  [[nodiscard]] auto run(F&& work) {
    using job = detail::handed_over<F>;
    return detail::run_to_its_end<typename job::callable, typename job::result>(thread_, job::take(work));
  }

  /// The same with a limit of time, counted from the call: yields a `std::optional` with what `work` returned, or true
  /// when it returns nothing; an empty one, or false, when `limit` is over.
  ///
  /// Then the worker is given up: the thread goes on with this work and ends after it, work that waits behind it fails,
  /// as does every later call. Nobody waits for that thread, not even the end of the program, therefore `work` must own
  /// all that it uses (shared pointers, copies; no references).
  template <class F>
  [[nodiscard]] auto run_within(std::chrono::steady_clock::duration limit, F&& work) {
    using job = detail::handed_over<F>;
    return detail::run_in_time<typename job::callable, typename job::result>(thread_, job::take(work), limit);
  }

  /// Whether a time limit was over, and the worker will do no more work.
  [[nodiscard]] bool abandoned() const noexcept;

  /// Whether nothing is under way, so that destroying the worker takes no time.
  [[nodiscard]] bool idle() const noexcept;

 private:
  std::shared_ptr<detail::worker_thread> thread_;
};

}  // namespace rondo

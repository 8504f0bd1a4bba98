#pragma once

#include <asio/associated_executor.hpp>
#include <asio/async_result.hpp>
#include <asio/execution/outstanding_work.hpp>
#include <asio/post.hpp>
#include <asio/prefer.hpp>
#include <asio/use_awaitable.hpp>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "rondo/async/continuation.hpp"
#include "rondo/async/detail/parked.hpp"
#include "rondo/async/task.hpp"

namespace rondo::detail {

/// The way back to a suspended coroutine for threads that the coroutine's event loop does not wait for.
///
/// The coroutine, with the handler that resumes it, belongs to its event loop alone: other threads hold this object and
/// nothing else, so that they neither touch nor destroy anything of an event loop that is gone. The mutex decides
/// whether a call still finds the event loop or comes too late.
class homecoming : public std::enable_shared_from_this<homecoming> {
 public:
  /// The event loop keeps running while its coroutine is away.
  explicit homecoming(const executor& home) : home_(asio::prefer(home, asio::execution::outstanding_work.tracked)) {}

  /// Any thread: resumes the coroutine from its event loop. False: it was called before, or nobody waits any more.
  bool call() {
    const std::lock_guard lock(mutex_);
    if (!home_) return false;
    asio::post(*home_, [self = shared_from_this()] { self->resume(); });
    home_.reset();
    return true;
  }

  /// The coroutine's own thread: nobody waits any more. False: it was called before.
  bool forget() noexcept {
    const std::lock_guard lock(mutex_);
    const bool away = home_.has_value();
    home_.reset();
    return away;
  }

 private:
  friend class absence;
  void resume() {
    if (rest_ != nullptr && *rest_) (*rest_)();
  }

  std::mutex mutex_;
  std::optional<executor> home_;
  // Touched by the coroutine's own thread only.
  continuation<>* rest_ = nullptr;
};

/// Lives in the frame of the coroutine that is away, and ends with it, or when its event loop begins to shut down: Asio
/// destroys the frames of coroutines by way of the loop's queue, which it then empties without the loop's mutex, so
/// that no other thread may post to it any more.
class absence final : private parked {
 public:
  explicit absence(const executor& home) : way_(std::make_shared<homecoming>(home)) {
    way_->rest_ = &rest_;
    registry_of(home)->add(*this);
  }
  absence(const absence&) = delete;
  absence& operator=(const absence&) = delete;
  ~absence() {
    unlink();
    way_->forget();
    way_->rest_ = nullptr;
  }

  [[nodiscard]] const std::shared_ptr<homecoming>& way() const noexcept { return way_; }

  /// Where a coroutine that can be cancelled is parked.
  [[nodiscard]] continuation<>& rest() noexcept { return rest_; }

  /// Suspends the coroutine, then calls `start()`, which must not throw. Cancellation does not interrupt the wait; a
  /// coroutine that was cancelled before starts nothing.
  template <class Start>
  [[nodiscard]] task<> after(Start& start) {
    return asio::async_initiate<const asio::use_awaitable_t<>, void(std::exception_ptr)>(
        [this, &start](auto handler) {
          const auto home = asio::get_associated_executor(handler);
          rest_ = continuation<>(std::move(handler), registry_of(home).get());
          start();
        },
        asio::use_awaitable);
  }

 private:
  void abandon() noexcept override { way_->forget(); }

  std::shared_ptr<homecoming> way_;
  continuation<> rest_;
};

}  // namespace rondo::detail

#pragma once

#include <cstddef>
#include <list>
#include <memory>
#include <utility>

#include "rondo/async/continuation.hpp"
#include "rondo/async/park.hpp"
#include "rondo/async/task.hpp"

namespace rondo {

/// Bounds how many coroutines do something at the same time. First come, first served. Belongs to one event loop and
/// its thread; permits may outlive it.
class async_semaphore {
  class state;

 public:
  /// The right to do it, given back on destruction.
  class permit;

  /// `permits` may be zero: then nobody enters before `release`.
  explicit async_semaphore(std::size_t permits);
  async_semaphore(const async_semaphore&) = delete;
  async_semaphore& operator=(const async_semaphore&) = delete;

  /// Completes with a permit, without suspending if one is free, otherwise from the event loop in the order of the
  /// calls. Cancellation while waiting leaves the line and throws `operation_aborted`; a permit that was already on
  /// its way comes back through the permit's destructor.
  [[nodiscard]] task<permit> acquire();

  /// A permit, or an empty one when none is free.
  [[nodiscard]] permit try_acquire();

  /// Adds one permit, beyond those that are given back by themselves.
  void release();

  /// The number of permits that are free now.
  [[nodiscard]] std::size_t available() const noexcept;

 private:
  std::shared_ptr<state> state_;
};

// Shared with the permits and the waiting coroutines: when an event loop is destroyed half-way, the frame that holds
// the semaphore may be destroyed before those that hold its permits.
class async_semaphore::state {
 public:
  explicit state(std::size_t permits) : available_(permits) {}

  [[nodiscard]] bool try_take() noexcept {
    if (available_ == 0) return false;
    --available_;
    return true;
  }

  [[nodiscard]] continuation<>& join_line() { return line_.emplace_back(); }

  void give() {
    while (!line_.empty()) {
      continuation<> first = std::move(line_.front());
      line_.pop_front();
      if (first) {
        first.post();
        return;
      }
    }
    ++available_;
  }

  [[nodiscard]] std::size_t available() const noexcept { return available_; }

 private:
  std::list<continuation<>> line_;
  std::size_t available_;
};

class async_semaphore::permit {
 public:
  permit() = default;
  permit(permit&&) noexcept = default;
  permit& operator=(permit&& other) {
    permit old(std::exchange(state_, std::exchange(other.state_, nullptr)));
    return *this;
  }
  ~permit() { release(); }

  /// True while the permit is held.
  explicit operator bool() const noexcept { return state_ != nullptr; }

  /// Gives it back early.
  void release() {
    if (const auto state = std::exchange(state_, nullptr)) state->give();
  }

 private:
  friend class async_semaphore;
  explicit permit(std::shared_ptr<state> taken) noexcept : state_(std::move(taken)) {}

  std::shared_ptr<state> state_;
};

inline async_semaphore::async_semaphore(std::size_t permits) : state_(std::make_shared<state>(permits)) {}

inline auto async_semaphore::acquire() -> task<permit> {
  const std::shared_ptr<state> state = state_;
  const bool free = state->try_take();
  if (!free) co_await park(state->join_line());
  co_return permit(state);
}

inline auto async_semaphore::try_acquire() -> permit { return state_->try_take() ? permit(state_) : permit(); }

inline void async_semaphore::release() { state_->give(); }

inline std::size_t async_semaphore::available() const noexcept { return state_->available(); }

}  // namespace rondo

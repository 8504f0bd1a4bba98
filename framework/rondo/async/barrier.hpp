#pragma once

#include <algorithm>
#include <cstddef>
#include <exception>
#include <list>
#include <stdexcept>
#include <utility>

#include "rondo/async/continuation.hpp"
#include "rondo/async/park.hpp"
#include "rondo/async/task.hpp"

namespace rondo {

/// Where a fixed number of coroutines wait for each other, again and again. Belongs to one event loop and its thread.
class async_barrier {
 public:
  /// `participants` is the number of arrivals that completes a generation. Throws std::invalid_argument for zero.
  explicit async_barrier(std::size_t participants) : participants_(participants) {
    if (participants == 0) throw std::invalid_argument("async_barrier: needs at least one participant, got 0");
  }
  async_barrier(const async_barrier&) = delete;
  async_barrier& operator=(const async_barrier&) = delete;

  /// Completes when all participants have arrived: for the last one without suspending, for the others from the event
  /// loop, in the order of their arrival. Throws what `abort` was called with. Cancellation takes the arrival back and
  /// throws `operation_aborted`.
  [[nodiscard]] task<> arrive_and_wait() {
    if (failure_) std::rethrow_exception(failure_);
    const bool last = waiting() + 1 >= participants_;
    if (last) {
      release();
      co_return;
    }
    co_await park(line_.emplace_back());
  }

  /// One participant leaves for good. Completes the generation when all others are waiting.
  void drop() {
    if (participants_ > 0) --participants_;
    if (waiting() >= participants_) release();
  }

  /// Throws `failure` from every wait, present (from the event loop) and future. The first call counts.
  void abort(std::exception_ptr failure) {
    if (failure_) return;
    failure_ = std::move(failure);
    for (auto& waiter : std::exchange(line_, {})) {
      if (waiter) waiter.post_failure(failure_);
    }
  }

  /// The number of coroutines that wait in the present generation.
  [[nodiscard]] std::size_t waiting() const noexcept {
    const auto present = [](const auto& waiter) { return static_cast<bool>(waiter); };
    return static_cast<std::size_t>(std::count_if(line_.begin(), line_.end(), present));
  }

  [[nodiscard]] std::size_t participants() const noexcept { return participants_; }

 private:
  void release() {
    for (auto& waiter : std::exchange(line_, {})) {
      if (waiter) waiter.post();
    }
  }

  std::list<continuation<>> line_;
  std::exception_ptr failure_;
  std::size_t participants_;
};

}  // namespace rondo

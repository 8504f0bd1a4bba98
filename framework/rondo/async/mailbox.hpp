#pragma once

#include <asio/associated_cancellation_slot.hpp>
#include <asio/associated_executor.hpp>
#include <asio/async_result.hpp>
#include <asio/cancellation_type.hpp>
#include <asio/post.hpp>
#include <asio/use_awaitable.hpp>
#include <concepts>
#include <exception>
#include <memory>
#include <stdexcept>
#include <utility>

#include "rondo/async/continuation.hpp"
#include "rondo/async/task.hpp"

namespace rondo {

/// Hands values to one waiting coroutine, without a queue: a value is delivered to a coroutine that waits, and the
/// coroutine runs inside `deliver` until it waits for something again. One await costs one recycled frame.
///
/// Belongs to one event loop and its thread. When it is destroyed, a coroutine that waits in it is destroyed as well.
template <std::copyable T>
class mailbox {
 public:
  /// `final` is what waits yield after `close()` and when they are cancelled.
  explicit mailbox(T final = T()) : final_(std::move(final)) {}
  mailbox(const mailbox&) = delete;
  mailbox& operator=(const mailbox&) = delete;

  /// Completes inside the next `deliver` with its value; from the event loop with the final value when the mailbox is
  /// closed, now or later.
  ///
  /// Cancellation while waiting completes it with the final value, from the event loop. As everywhere in Asio, a
  /// coroutine that was cancelled before it gets here throws `operation_aborted` instead.
  /// Throws std::logic_error when another coroutine waits already.
  [[nodiscard]] task<T> next() {
    if (waiter_) throw std::logic_error("mailbox: a second coroutine waits for the next value; there can be one only");
    return asio::async_initiate<const asio::use_awaitable_t<>, void(std::exception_ptr, T)>(
        [this](auto handler) { this->wait(std::move(handler)); }, asio::use_awaitable);
  }

  /// True while a coroutine is suspended in `next()`.
  [[nodiscard]] bool waiting() const noexcept { return static_cast<bool>(waiter_); }

  [[nodiscard]] bool closed() const noexcept { return closed_; }

  /// Resumes the waiting coroutine with `value`, on this stack, and returns true when it is suspended again or
  /// finished. Returns false, and drops the value, when nobody waits.
  bool deliver(T value) {
    if (!waiter_) return false;
    waiter_(std::move(value));
    return true;
  }

  /// From now on every wait yields the final value, the present one from the event loop. Nothing can reopen it.
  void close() {
    closed_ = true;
    if (waiter_) waiter_.post(final_);
  }

  /// The same, with another final value.
  void close(T final) {
    final_ = std::move(final);
    close();
  }

 private:
  template <class Handler>
  void wait(Handler handler) {
    const auto home = asio::get_associated_executor(handler);
    if (closed_) {
      // Never complete inside the initiation: a loop over a closed mailbox would pile up stack frames.
      asio::post(home, [handler = std::move(handler), value = final_]() mutable {
        std::move(handler)(std::exception_ptr(), std::move(value));
      });
      return;
    }
    auto slot = asio::get_associated_cancellation_slot(handler);
    if (!registry_ || registry_->closed()) registry_ = detail::registry_of(home);
    waiter_ = continuation<T>(std::move(handler), registry_.get());
    if (!slot.is_connected()) return;
    slot.assign([this, waiting = waiter_.observe()](asio::cancellation_type_t) mutable {
      if (waiting) waiting.post(final_);
    });
  }

  continuation<T> waiter_;
  std::shared_ptr<detail::parked_registry> registry_;
  T final_;
  bool closed_ = false;
};

}  // namespace rondo

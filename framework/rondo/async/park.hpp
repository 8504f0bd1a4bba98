#pragma once

#include <asio/associated_cancellation_slot.hpp>
#include <asio/associated_executor.hpp>
#include <asio/async_result.hpp>
#include <asio/cancellation_type.hpp>
#include <asio/error.hpp>
#include <asio/system_error.hpp>
#include <asio/use_awaitable.hpp>
#include <exception>
#include <utility>

#include "rondo/async/continuation.hpp"
#include "rondo/async/task.hpp"

namespace rondo {

/// The exception of a cancelled await: `asio::system_error` with `asio::error::operation_aborted`.
[[nodiscard]] inline std::exception_ptr operation_aborted() {
  return std::make_exception_ptr(asio::system_error(asio::error::operation_aborted));
}

/// True for the exception that a cancelled await throws.
[[nodiscard]] inline bool is_operation_aborted(const std::exception_ptr& failure) {
  try {
    if (failure) std::rethrow_exception(failure);
  } catch (const asio::system_error& e) {
    return e.code() == asio::error::operation_aborted;
  } catch (...) {
  }
  return false;
}

/// Suspends the calling coroutine and stores the rest of it in `where`, which must be empty and must exist until the
/// coroutine is suspended.
///
/// Completes when somebody calls `where`. Throws what `where` is failed with. Cancellation empties `where` at once and
/// throws `operation_aborted` from the event loop. Runs on the coroutine's own thread, as everything does.
[[nodiscard]] inline task<> park(continuation<>& where) {
  return asio::async_initiate<const asio::use_awaitable_t<>, void(std::exception_ptr)>(
      [&where](auto handler) {
        auto slot = asio::get_associated_cancellation_slot(handler);
        const auto executor = asio::get_associated_executor(handler);
        auto& registry = detail::registry_of(executor);
        where = continuation<>(std::move(handler), registry.get());
        if (!slot.is_connected()) return;
        // By post: resuming inside emit() would destroy the slot's handler while it runs.
        slot.assign([waiting = where.observe()](asio::cancellation_type_t) mutable {
          if (waiting) waiting.post_failure(operation_aborted());
        });
      },
      asio::use_awaitable);
}

}  // namespace rondo

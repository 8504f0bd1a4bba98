#pragma once

#include <asio/any_io_executor.hpp>
#include <asio/awaitable.hpp>
#include <asio/this_coro.hpp>

namespace rondo {

/// Where a coroutine runs. In Rondo that is one event loop on one thread, see docs/coroutines.md.
using executor = asio::any_io_executor;

/// A coroutine that yields a `T` when awaited. It starts when it is awaited (or spawned in a `scope`), and throws from
/// the `co_await` what left its body.
///
/// Rules for everybody who writes one:
///
/// * It runs on the thread of its event loop, always. Slow work goes through `offload`.
/// * Reference parameters, and the captures of a lambda coroutine, must outlive it. `scope::spawn` keeps the callable
///   alive; for anything else give the lambda a name that lives longer than the coroutine.
/// * Cancelling throws `asio::system_error` with `asio::error::operation_aborted` from the await that is in progress
///   or, when none is, from the next one. Let it pass.
/// * Hold no lock and no thread-local guard across a `co_await`.
///
/// GCC 12.1 and 12.2 compile some coroutines into wrong programs without a warning. Never write a `co_await` in the
/// condition of an `if`, `while`, `switch` or `for` (a declaration there, `while (auto* e = co_await next())`, is
/// safe); never beside `?:`; never together with a temporary aggregate, braced list or capturing lambda in one
/// expression. Await into a named local, name the closure or aggregate first, and the code is right everywhere.
/// `tools/check_coroutines` finds these shapes.
template <class T = void>
using task = asio::awaitable<T>;

}  // namespace rondo

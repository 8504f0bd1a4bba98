#pragma once

#include <asio/steady_timer.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>
#include <chrono>

#include "rondo/async/scope.hpp"
#include "rondo/async/task.hpp"

namespace rondo {

/// Completes when the steady clock has reached `deadline`; from the event loop, even if that has passed already.
/// Cancellation throws `operation_aborted` at once.
[[nodiscard]] inline task<> sleep_until(std::chrono::steady_clock::time_point deadline) {
  const executor home = co_await asio::this_coro::executor;
  asio::steady_timer timer(home, deadline);
  co_await timer.async_wait(asio::use_awaitable);
}

/// The same, `duration` from now.
[[nodiscard]] inline task<> sleep_for(std::chrono::steady_clock::duration duration) {
  return sleep_until(std::chrono::steady_clock::now() + duration);
}

/// Runs `work()`, which returns a `task<>`, and cancels it when it takes longer than `limit`.
///
/// Completes when `work` has finished, in any case: with true if it finished by itself, with false if it was cancelled
/// for its time. Throws what it threw. Cancellation reaches it. `work` is kept alive by the caller.
template <class F>
[[nodiscard]] task<bool> completes_within(std::chrono::steady_clock::duration limit, F& work) {
  bool completed = false;
  auto race = [&](scope& racers) -> task<> {
    racers.spawn([&]() -> task<> {
      co_await sleep_for(limit);
      racers.cancel();
    });
    co_await work();
    completed = true;
    racers.cancel();
  };
  co_await with_scope(race);
  co_return completed;
}

}  // namespace rondo

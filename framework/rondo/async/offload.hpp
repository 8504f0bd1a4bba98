#pragma once

#include <asio/associated_executor.hpp>
#include <asio/async_result.hpp>
#include <asio/execution/outstanding_work.hpp>
#include <asio/post.hpp>
#include <asio/prefer.hpp>
#include <asio/thread_pool.hpp>
#include <asio/use_awaitable.hpp>
#include <exception>
#include <functional>
#include <optional>
#include <type_traits>
#include <utility>

#include "rondo/async/task.hpp"

namespace rondo {
namespace detail {

// What a function did: its value or its exception. Written by the pool's thread, read at home; the post between the two
// orders them.
template <class R>
class outcome {
 public:
  template <class F>
  void run(F& f) noexcept {
    try {
      if constexpr (std::is_void_v<R>) {
        std::invoke(f);
      } else {
        value_.emplace(std::invoke(f));
      }
    } catch (...) {
      failure_ = std::current_exception();
    }
  }

  void fail(std::exception_ptr reason) noexcept { failure_ = std::move(reason); }

  R take() {
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
    if constexpr (!std::is_void_v<R>) return std::move(*value_);
  }

 private:
  using stored = std::conditional_t<std::is_void_v<R>, bool, R>;
  std::optional<stored> value_;
  std::exception_ptr failure_;
};

template <class F, class R>
task<> run_on(asio::thread_pool& pool, F& f, outcome<R>& result) {
  return asio::async_initiate<const asio::use_awaitable_t<>, void()>(
      [&pool, &f, &result](auto handler) {
        // The event loop keeps running while its coroutine is away.
        auto home = asio::prefer(asio::get_associated_executor(handler), asio::execution::outstanding_work.tracked);
        asio::post(pool, [&f, &result, home = std::move(home), handler = std::move(handler)]() mutable {
          result.run(f);
          asio::post(home, [handler = std::move(handler)]() mutable { std::move(handler)(); });
        });
      },
      asio::use_awaitable);
}

template <class F, class R>
task<R> offloaded(asio::thread_pool& pool, F f) {
  outcome<R> result;
  co_await run_on(pool, f, result);
  co_return result.take();
}

template <class F>
task<> offloaded_void(asio::thread_pool& pool, F f) {
  outcome<void> result;
  co_await run_on(pool, f, result);
  result.take();
}

}  // namespace detail

/// Runs `f()` on a thread of `pool` while the event loop goes on, and comes home with its result.
///
/// Completes on the caller's own thread when `f` has returned. Yields what `f` returned (nothing, or any object that
/// can be moved) or throws what it threw. Cancellation does not interrupt `f`: the await goes on until `f` has
/// returned, so that whatever `f` refers to stays valid, and the next await of the cancelled coroutine throws.
///
/// `f` is a named closure, or one whose captures are trivially destructible (`[&]`, numbers, pointers). It runs on
/// another thread: it may touch only what nobody else touches meanwhile.
///
/// `pool` must be destroyed before the caller's execution context is; its destructor waits for `f`.
template <class F>
[[nodiscard]] auto offload(asio::thread_pool& pool, F&& f) {
  using result = std::invoke_result_t<std::remove_reference_t<F>&>;
  static_assert(std::is_lvalue_reference_v<F> || std::is_trivially_destructible_v<F>,
                "name the closure before the co_await expression and pass the name: GCC 12 destroys a temporary "
                "closure in a co_await expression twice");
  static_assert(!std::is_reference_v<result>, "offload yields objects: return a value or a pointer");
  if constexpr (std::is_void_v<result>) {
    return detail::offloaded_void<F>(pool, std::forward<F>(f));
  } else {
    return detail::offloaded<F, result>(pool, std::forward<F>(f));
  }
}

}  // namespace rondo

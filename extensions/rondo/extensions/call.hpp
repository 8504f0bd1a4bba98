#pragma once

#include <concepts>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>

#include "rondo/async/task.hpp"
#include "rondo/event/trigger.hpp"
#include "rondo/loop/context.hpp"
#include "rondo/loop/extension.hpp"

namespace rondo {

namespace extensions {

template <class F, class... Args>
concept returns_nothing_or_task = std::invocable<F&, Args...> &&
    (std::is_void_v<std::invoke_result_t<F&, Args...>> || std::same_as<std::invoke_result_t<F&, Args...>, task<>>);

/// What `call` can call: `f(context&)` or `f()`, returning nothing or a `task<>`.
template <class F>
concept callback = returns_nothing_or_task<F, context&> || returns_nothing_or_task<F>;

}  // namespace extensions

/// Calls `f` after each iteration at which `t` fires: `loop | call(every(100_iterations), [](context& ctx) { … })`.
/// If `f` returns a `task<>`, training goes on when that has completed. What `f` throws ends the training.
///
/// On the training thread, with priority `reader`. The memory of `t` is saved in snapshots under `name`, which must
/// differ between extensions: give names where a loop has several calls.
template <extensions::callback F>
[[nodiscard]] extension call(std::string name, trigger t, F f) {
  auto subscribe = [f = std::move(f)](context& ctx) {
    if constexpr (extensions::returns_nothing_or_task<F, context&>)
      ctx.when_due([f, &ctx]() mutable { return std::invoke(f, ctx); });
    else
      ctx.when_due(f);
  };
  return make_extension(std::move(name), std::move(subscribe)).triggered(std::move(t));
}

/// The same under the name "call".
template <extensions::callback F>
[[nodiscard]] extension call(trigger t, F f) {
  return call("call", std::move(t), std::move(f));
}

}  // namespace rondo

#pragma once

#include <concepts>
#include <cstddef>
#include <functional>
#include <string>
#include <utility>

#include "rondo/event/interval.hpp"
#include "rondo/event/priority.hpp"
#include "rondo/loop/context.hpp"
#include "rondo/loop/extension.hpp"

namespace rondo {

/// Reports `f(ctx)`, or `f()`, under `key` when the extension's trigger fires: a number, or a tensor of one element,
/// which is not read before somebody asks for it. On the training thread.
///
/// Default trigger: `every(epochs(1))`. Name "observe_<key>", priority `writer`, no state. What `f` throws ends
/// training.
template <class F>
  requires(std::invocable<F&, context&> || std::invocable<F&>)
[[nodiscard]] extension observe_value(const std::string& key, F f) {
  auto subscribe = [key, f = std::move(f)](context& ctx) {
    ctx.when_due([key, f, &ctx]() mutable {
      if constexpr (std::invocable<F&, context&>)
        ctx.report(key, std::invoke(f, ctx));
      else
        ctx.report(key, std::invoke(f));
    });
  };
  return make_extension("observe_" + key, std::move(subscribe))
      .at_priority(priority::writer)
      .triggered(every(epochs(1)));
}

struct observe_lr_options {
  /// The optimizer, by its name in the loop.
  std::string optimizer = "main";
  /// Which of its groups of parameters.
  std::size_t group = 0;
  std::string key = "lr";
};

/// Reports the learning rate of an optimizer, as `observe_value` does. (`lr_scheduler` reports those that it sets by
/// itself.) Throws `option_error` before training when there is no such optimizer or group.
[[nodiscard]] extension observe_lr(observe_lr_options options = {});

}  // namespace rondo

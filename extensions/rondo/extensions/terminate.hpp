#pragma once

#include <chrono>
#include <concepts>
#include <functional>
#include <string>
#include <utility>

#include "rondo/loop/context.hpp"
#include "rondo/loop/extension.hpp"

namespace rondo {

struct time_limit_options {
  /// Whether only the present run counts, and not those that it goes on from.
  bool this_run_only = false;
};

/// Ends training after the iteration in which it has taken this long; snapshots, evaluations and the rest of the loop's
/// time count. With several ranks, the first one for which it is over ends it for all.
///
/// Default trigger: every iteration. Name "time_limit", priority `reader`, no state: the loop saves the time. Throws
/// `option_error` unless `limit` is positive.
[[nodiscard]] extension time_limit(std::chrono::duration<double> limit, time_limit_options options = {});

/// Ends training after the iteration in which `predicate(ctx)` is true; `reason` is what `run_result::stop_reason`
/// says. On the training thread, with priority `reader`, so that it sees what was reported. With several ranks, one
/// that says so ends it for all.
///
/// Default trigger: every iteration. Name "terminate_on", no state. What the predicate throws ends training as an
/// error.
template <std::predicate<context&> F>
[[nodiscard]] extension terminate_on(F predicate, std::string reason = "terminate_on") {
  auto subscribe = [predicate = std::move(predicate), reason = std::move(reason)](context& ctx) {
    ctx.when_due([predicate, reason, &ctx]() mutable {
      if (std::invoke(predicate, ctx)) ctx.stop(reason);
    });
  };
  return make_extension("terminate_on", std::move(subscribe));
}

}  // namespace rondo

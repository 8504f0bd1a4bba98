#pragma once

#include <concepts>
#include <functional>

#include "rondo/event/trigger.hpp"

namespace rondo {

/// Fires when `predicate(now)` (or `predicate()`) says so. It is asked exactly once per iteration. Stateless as far as
/// Rondo knows: what the predicate remembers is not saved.
template <class F>
  requires std::predicate<F&, const moment&> || std::predicate<F&>
[[nodiscard]] trigger when(F predicate) {
  struct predicate_trigger {
    F predicate;
    bool due(const moment& now) {
      if constexpr (std::predicate<F&, const moment&>)
        return std::invoke(predicate, now);
      else
        return std::invoke(predicate);
    }
    std::string str() const { return "when a predicate holds"; }
  };
  return predicate_trigger{std::move(predicate)};
}

}  // namespace rondo

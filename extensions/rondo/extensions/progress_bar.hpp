#pragma once

#include <chrono>
#include <functional>
#include <iostream>
#include <optional>

#include "rondo/loop/extension.hpp"

namespace rondo {

struct progress_bar_options {
  /// On a terminal: the least time between two redraws. Positive.
  std::chrono::duration<double> update_interval = std::chrono::milliseconds(100);
  /// Characters between the brackets. At least 1.
  int bar_length = 50;
  /// Where the bar goes. Must outlive the run.
  std::ostream* out = &std::cerr;
  /// Elsewhere than on a terminal: the least time between two lines. Positive.
  std::chrono::duration<double> plain_interval = std::chrono::seconds(10);
  /// Whether `out` is a terminal. Default: find out.
  std::optional<bool> terminal = std::nullopt;
  /// Seconds from any beginning. Default: `context::elapsed_time`, which the loop reads from the system once per
  /// iteration.
  std::function<double()> clock = {};
};

/// Shows how far training is, how fast, and how long it will take: on a terminal as bars that move, elsewhere as plain
/// lines; at the end one line that stays. The bars are of the whole training (if it is known how long that is) and of
/// the epoch (if its length is known); whichever of `max_epochs` and `max_iterations` is reached first counts.
///
/// With several ranks, rank 0 shows it.
///
/// Name "progress_bar", priority `reader`, no state. Throws `option_error` for the options.
[[nodiscard]] extension progress_bar(progress_bar_options options = {});

}  // namespace rondo

#pragma once

#include <chrono>
#include <functional>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "rondo/loop/extension.hpp"

namespace rondo {

struct dashboard_options {
  /// The observations that are drawn, in this order. Default (empty): all, as many as there is room for. Those whose
  /// names end alike ("train/loss", "validation/loss") share a chart.
  std::vector<std::string> curves = {};
  /// On a terminal: the least time between two redraws. Positive.
  std::chrono::duration<double> update_interval = std::chrono::milliseconds(100);
  /// Lines of the terminal that stay free above the picture, for messages. At least 1.
  int log_lines = 5;
  /// How many of the last snapshots are listed. At least 0.
  int snapshots = 3;
  /// Where it goes: `&std::cerr` or `&std::cout`, or any other stream for plain lines. Must outlive the run.
  std::ostream* out = &std::cerr;
  /// Elsewhere than on a terminal: the least time between two lines. Positive.
  std::chrono::duration<double> plain_interval = std::chrono::seconds(10);
  /// Whether curves are drawn with braille and block characters. Default: if the locale's encoding is UTF-8.
  std::optional<bool> unicode = std::nullopt;
  /// Whether curves have colours. Default: unless the environment variable NO_COLOR is set.
  std::optional<bool> colours = std::nullopt;
  /// Seconds from any beginning. Default: `context::elapsed_time`.
  std::function<double()> clock = {};
};

/// Shows a training on the terminal while it runs: progress, rate and remaining time; curves of what is reported; the
/// last, mean and best values; the last snapshots. What anybody prints in the meantime, Rondo's messages among it,
/// appears above and scrolls away as usual (`extensions::terminal_capture`). The last picture stays. Elsewhere than on
/// a terminal: plain lines.
///
/// With several ranks, rank 0 shows what it sees. Name "dashboard", priority `reader`, no state. Throws `option_error`
/// for the options, at once.
[[nodiscard]] extension dashboard(dashboard_options options = {});

}  // namespace rondo

#pragma once

#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "rondo/loop/extension.hpp"

namespace rondo {

struct print_report_options {
  /// Where the table goes. Must outlive the run.
  std::ostream* out = &std::cout;
  /// Prints the entries of the log extension of this name only. Default (empty): of every one.
  std::string log_report = {};
  /// Whether `out` is a terminal, on which a progress bar may be in the way. Default: find out.
  std::optional<bool> terminal = std::nullopt;
};

/// Prints a line of a table for every entry that a `log_report` writes. `entries` are the columns; default: those of
/// the first entry. Numbers have up to 6 significant digits; what an entry does not have stays blank. The header comes
/// before the first line.
///
/// With several ranks, rank 0 prints.
///
/// Name "print_report", priority `reader`. State: the columns, and what entries have had so far; a resumed run prints
/// its own lines, in the same columns, under a header of their own. Warns at the end of training when there was nothing
/// to print, or nothing in a column, over all resumes. Throws `option_error` when `out` is null.
[[nodiscard]] extension print_report(std::vector<std::string> entries = {}, print_report_options options = {});

}  // namespace rondo

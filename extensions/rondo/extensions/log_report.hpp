#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "rondo/event/interval.hpp"
#include "rondo/event/trigger.hpp"
#include "rondo/extensions/report_writer.hpp"
#include "rondo/loop/extension.hpp"
#include "rondo/state/value.hpp"

namespace rondo {

namespace extensions {

/// An event: a log has written a line. Emitted after the iteration (and, at an epoch's end, after
/// `event::epoch_completed`), before the snapshot.
struct log_entry {
  std::string source;  ///< name of the log extension
  state::dict values;  ///< what the line says, in its order; NaN and infinities are still themselves here
};

}  // namespace extensions

struct log_report_options {
  /// A name in the loop's `out` directory, without a directory in it; or a template over `iteration` and `epoch`
  /// ("log_{epoch}"), by which each line goes into the file that its numbers name. A file begins anew when the lines
  /// come to it.
  std::string filename = "log";
  /// When a line is written. Asked every iteration; its memory is saved in snapshots.
  rondo::trigger trigger = every(epochs(1));
  /// The observations to log, in this order. Default (empty): all, in the order in which they were first seen.
  std::vector<std::string> keys = {};
  /// Changes an entry before it is written and emitted: numbers, strings, bools, lists and dicts may go in.
  std::function<void(state::dict& entry)> postprocess = {};
  /// Also gets the numbers of every line: `writers::tensorboard()`, or one of your own. Those of `entry` after
  /// `postprocess`, without `iteration`, which they belong to; other values and nested ones are left out; NaN and
  /// infinities are themselves. Default: none.
  std::shared_ptr<report_writer> writer = nullptr;
  /// Whether a run that starts afresh keeps the lines that are in the file and adds its own behind them. A last line
  /// without an end, of a run that was killed, goes. Default: the file is replaced.
  bool append = false;
  /// Whether the iterations after the last line are a line of their own when training ends, with what `final`
  /// evaluators report then. Not when a signal has ended it: the resumed run goes on with them.
  bool final = false;
};

/// Averages every observation, weighted, over the iterations since the last line, and writes the means, `epoch`,
/// `iteration` and `elapsed_time` (seconds) as one JSON object per line whenever its trigger fires. NaN and infinities
/// become null. Emits `extensions::log_entry`.
///
/// A run that starts afresh replaces the file, or keeps its lines with `append`. A run that goes on from a snapshot
/// cuts the file off where it was when the snapshot was taken, so that the log of a killed and resumed training equals
/// that of an unbroken one (except for `elapsed_time`).
///
/// With several ranks, the means are over what all of them have reported, and rank 0 writes; the entries are the same
/// on every rank (`elapsed_time` is rank 0's), if `postprocess` does the same on each.
///
/// Name "log_report", priority `reader`. At the end of an epoch it also sees what is reported at `epoch_completed`, by
/// extensions that run before it. Throws `option_error` for a bad file name at once; `io_error` before training when
/// the file cannot be opened, and later when a line cannot be written, which ends training; so does what the writer
/// throws.
[[nodiscard]] extension log_report(log_report_options options = {});

}  // namespace rondo

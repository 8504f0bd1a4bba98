#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "rondo/event/interval.hpp"
#include "rondo/event/trigger.hpp"
#include "rondo/loop/extension.hpp"

namespace rondo {

struct profile_report_options {
  /// What is measured, by names such as "loop/step" or whole kinds such as "extension". Default (empty): everything.
  std::vector<std::string> store_keys = {};
  /// What of that is written and printed, in the same words. Default (empty): everything.
  std::vector<std::string> report_keys = {};
  /// When a line is written. Asked every iteration; its memory is saved in snapshots.
  rondo::trigger trigger = every(epochs(1));
  /// A name in the loop's `out` directory, without a directory in it.
  std::string filename = "profile.jsonl";
  /// Whether a run that starts afresh adds to a file that is there, instead of replacing it.
  bool append = false;
  /// Also prints each report as a table here, longest first. Must outlive the run. Default: none.
  std::ostream* out = nullptr;
};

/// Measures how long everything takes: the loop's phases ("loop/iteration", "loop/data_wait", "loop/batch",
/// "loop/step", "loop/update"), every event with all its subscribers ("event/…"), every extension ("extension/…", by
/// its name, over all its handlers), snapshots ("snapshot/…"), the writing of files ("writer/…"), data workers
/// ("data/…") and spans of yours ("user/…", see `trace::span`). Whenever its trigger fires, one JSON object per line is
/// written:
///
///
/// {"epoch":1,"iteration":938,"elapsed_time":12.4,"spans_lost":0,"loop/step":{"count":937,"total":9.1,"mean":0.0097,
///      "std":0.0011,"min":0.0088,"max":0.021,"percent":73.4}, …}
///
/// in seconds, over what has ended since the last line; `percent` is `total` in relation to the time of training
/// meanwhile, and may be above 100 where several threads work. Spans lie inside of each other, so that their sums are
/// no whole.
///
/// Files are written in the background. With several ranks, rank 0 measures itself. Saved in snapshots: the trigger's
/// memory, what has been measured since the last line, and the file's position, at which a resumed run cuts it off.
///
/// Name "profile_report", priority `reader`. Throws `option_error` for a bad file name at once, `io_error` before
/// training when the file cannot be opened, and ends training with it when a line cannot be written.
[[nodiscard]] extension profile_report(profile_report_options options = {});

}  // namespace rondo

#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "rondo/event/interval.hpp"
#include "rondo/event/trigger.hpp"
#include "rondo/loop/extension.hpp"

namespace rondo {

struct timeline_trace_options {
  /// When the file is brought up to date; also at the end of training. Asked every iteration, as are the following;
  /// their memory is saved in snapshots.
  rondo::trigger trigger = every(epochs(1));
  /// A name in the loop's `out` directory, without a directory in it. Rank 1 of several writes "trace.rank1.json", etc.
  std::string filename = "trace.json";
  /// When recording begins. Default: at once.
  std::optional<rondo::trigger> enable = std::nullopt;
  /// When recording ends (until `enable` fires again). Default: never.
  std::optional<rondo::trigger> disable = std::nullopt;
  /// After so many spans, recording ends with a warning. About 120 bytes of file, and of memory, each. At least 1.
  std::int64_t max_events = 200'000;
};

/// Writes what every thread does when, as a trace that ui.perfetto.dev and chrome://tracing show: iterations and their
/// phases, events and the extensions that handle them, snapshots from their capture to their commit, the threads that
/// write, data workers, and spans of yours (`trace::span`). The names are those of `profile_report`. A process of the
/// trace is a rank; times are microseconds of training, over all resumes.
///
/// The file is always whole and valid: each time, it is replaced by a new one, in the background. A resumed run (on
/// rank 0) goes on with the file as it was when the snapshot was taken; one that starts afresh replaces it.
///
/// Name "timeline_trace", priority `reader`. Throws `option_error` for the options; `io_error` ends training when the
/// file cannot be written.
[[nodiscard]] extension timeline_trace(timeline_trace_options options = {});

}  // namespace rondo

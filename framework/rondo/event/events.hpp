#pragma once

#include <cstdint>
#include <exception>
#include <filesystem>
#include <string>
#include <string_view>

#include "rondo/state/value.hpp"

/// The events that the loop and the ready-made extensions emit. Any other type can be an event as well: it needs no
/// registration and no base class.
///
/// Events come in pairs: what was announced by `…_started` is followed by its `…_completed`, once. An event type with a
/// member `std::exception_ptr error` is a closing event: if `error` is set, the thing ended by an exception, and only
/// subscribers that asked for it (`context::on_end`) get the event; `context::on` and `context::next` see successes
/// only. When a subscriber of a closing event throws, those after it do not get that event; they hear of `failed`.
///
/// All are emitted on the training thread, and the emitter waits until every subscriber has acknowledged.
namespace rondo::event {

/// Once per run, after every extension has been attached and before any coroutine extension starts: the moment to bring
/// back an earlier state (`context::load_state_dict`). Nothing has been trained yet in this run.
struct restoring {};

/// Once per run, after the state has been restored and every coroutine extension has reached its first suspension.
struct training_started {
  std::int64_t iteration;  ///< iterations done in earlier runs; 0 for a fresh start
  std::int64_t epoch;      ///< epochs completed in earlier runs
};

/// Once per run, the last event of all (only `failed` can follow, when one of its own subscribers threw), also when
/// training failed. Everybody gets it, whatever the others throw.
struct training_completed {
  std::int64_t iteration;
  std::int64_t epoch;
  const std::string& stop_reason;  ///< why training ended; empty on failure
  std::exception_ptr error;
};

/// At the beginning of each epoch, and again when a run is resumed inside one.
struct epoch_started {
  std::int64_t epoch;    ///< index of the epoch, from 0
  std::int64_t skipped;  ///< its iterations that an earlier run has done; 0 unless resumed inside the epoch
};

/// At the end of each epoch, after `iteration_completed` of its last iteration has reached everybody above the snapshot
/// priority. When training stops inside an epoch, `error` holds a `rondo::stopped`.
struct epoch_completed {
  std::int64_t epoch;  ///< epochs completed, so 1 for the first
  std::exception_ptr error;
};

/// Before each iteration; observations are empty.
struct iteration_started {
  std::int64_t iteration;  ///< the number that the iteration will have, from 1
};

/// After each iteration. Triggers of extensions are evaluated here.
struct iteration_completed {
  std::int64_t iteration;  ///< iterations done, so 1 for the first
  std::exception_ptr error;
};

/// Before each optimizer step, after gradients have been clipped. 0 to n times per iteration: n optimizers, or none
/// while gradients are being accumulated.
struct update_started {
  const std::string& optimizer;  ///< its name in the loop, "main" if there is only one
};

/// After each optimizer step: parameters and optimizer state rest until the next `update_started`.
struct update_completed {
  const std::string& optimizer;
  std::exception_ptr error;
};

/// Before an evaluator reads its first batch.
struct evaluation_started {
  const std::string& name;  ///< of the evaluator, "validation" by default
};

/// When an evaluator has reported its results.
struct evaluation_completed {
  const std::string& name;
  double seconds;
  std::exception_ptr error;
};

/// Once per run when training fails: the error that `run()` is going to throw. Before `training_completed`, unless
/// ending the training is what failed. What a subscriber throws here is logged and otherwise ignored: it never takes
/// the place of the first error.
struct failed {
  std::exception_ptr cause;
};

/// When a signal has arrived that the loop listens to, at the end of the iteration. SIGINT and SIGTERM have requested a
/// stop already.
struct signal_received {
  int number;
};

/// Before a snapshot is captured.
struct snapshot_started {
  const std::filesystem::path& path;
  std::int64_t iteration;
  bool alone = false;  ///< one of several ranks takes it without the others, after an error
};

/// When a snapshot is durable, or has failed. With a writer that works in the background that may be many iterations
/// after `snapshot_started`.
struct snapshot_completed {
  const std::filesystem::path& path;
  std::int64_t iteration;   ///< of the state that was saved
  std::string_view writer;  ///< the kind of writer
  std::uint64_t bytes;      ///< size of the file
  double capture_seconds;   ///< describing the state and copying it, where the writer needs a copy
  double write_seconds;     ///< writing with checksums
  double commit_seconds;    ///< sync, rename, sync of the directory
  double stall_seconds;     ///< how long training waited
  double total_seconds;     ///< from `snapshot_started` on
  std::uint64_t memory;     ///< bytes of staging memory held by the writer, its peak
  std::exception_ptr error;

  /// Bytes per second from `snapshot_started` to the end.
  [[nodiscard]] double throughput() const noexcept {
    return total_seconds > 0.0 ? static_cast<double>(bytes) / total_seconds : 0.0;
  }
};

/// When a snapshot was due and is not going to be: the writer had no room (`when_full::skip`), or a newer one took its
/// place before it was begun (`when_full::replace`).
struct snapshot_skipped {
  const std::filesystem::path& path;
  std::int64_t iteration;
  const std::string& reason;
};

/// When somebody awaits `context::snapshot`. Extensions that save the run answer it.
struct snapshot_requested {
  std::int64_t iteration;
};

/// When training is stopped where the rest of an iteration can be left to a later run. Whoever saves the state at the
/// end of this one sets `answer`.
struct end_to_be_saved {
  bool by_signal;  ///< whether a signal stops it
  bool* answer;
};

/// Before the state of a snapshot is loaded, and after it has been read and verified: for whoever has to change the
/// program's objects before, such as adding the groups of parameters that an earlier run has added to an optimizer.
struct state_found {
  const std::filesystem::path& path;
  const state::value& state;  ///< as `context::state_dict` gives it
};

/// For each file that autoload passed over because it is damaged or unreadable.
struct snapshot_rejected {
  const std::filesystem::path& path;
  const std::string& reason;
};

}  // namespace rondo::event

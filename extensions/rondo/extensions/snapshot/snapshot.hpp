#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "rondo/extensions/snapshot/retention.hpp"
#include "rondo/loop/context.hpp"
#include "rondo/loop/extension.hpp"
#include "rondo/state/load_options.hpp"
#include "rondo/state/stateful.hpp"
#include "rondo/writing/process_writer.hpp"
#include "rondo/writing/simple_writer.hpp"
#include "rondo/writing/thread_writer.hpp"
#include "rondo/writing/writer.hpp"

namespace rondo {

/// No snapshot could be resumed from although there are some, the chosen file holds another kind of state, or a
/// snapshot would replace one of another extension.
class snapshot_error : public error {
 public:
  using error::error;
};

/// The name of a snapshot's file inside the loop's output directory: a template over the fields `iteration`, `epoch`,
/// `execution`, `epoch_detail` and `elapsed_time` with fmt's format specifiers ("snapshot_iter_{iteration:08}"; ppe's
/// "{.iteration}" is understood too), and over observations whose keys have a '/' in them
/// ("best_{validation/loss:.3f}": the value reported last, "nan" before the first); or a callable that gives a plain
/// name, which is also called once before training.
using snapshot_filename = std::variant<std::string, std::function<std::string(const context&)>>;

/// What is saved: the whole loop (default), one object, or several under keys of their own.
using snapshot_target =
    std::variant<std::monostate, state::stateful_ref, std::vector<std::pair<std::string, state::stateful_ref>>>;

/// What happens when a snapshot cannot be written.
enum class snapshot_failure {
  fail,  ///< training ends with the error
  warn,  ///< the error is logged, and training goes on; the next snapshot is tried as usual
};

/// What a snapshot is where several ranks train together (`loop_options::group`).
enum class snapshot_mode {
  standard,     ///< that of a single process
  distributed,  ///< one file for all ranks, which `saver_rank` writes and from which all resume
  sharded,      ///< a directory in which every rank writes a part, and which `saver_rank` completes
};

/// Options of `snapshot`; those of pytorch-pfn-extras, with its names and defaults, and more.
struct snapshot_options {
  /// A format of the user's own: short for `writer = writers::simple({.savefun = …})`, so training waits for it. A
  /// `writer` is given it itself.
  writing::savefun savefun = nullptr;
  /// The inverse of the savefun, this one or that of the writer: needed for `autoload`, unless the savefun knows it
  /// itself (those of `formats` do).
  writing::loadfun loadfun = nullptr;
  snapshot_filename filename = std::string("snapshot_iter_{iteration}");
  snapshot_target target = {};
  /// Asked after the trigger has fired; false skips this snapshot.
  std::function<bool()> condition = nullptr;
  /// Whether a training that fails leaves a last snapshot behind, under "<name>.error": taken in the middle of an
  /// iteration, marked as such, never resumed from by autoload and never in the place of a regular one.
  bool snapshot_on_error = false;
  /// How many snapshots to keep, newest by recorded iteration first; -1 keeps all. The same as `retain::last(n)`.
  std::int64_t n_retains = -1;
  /// Which snapshots to keep, for example `retain::last(3) | retain::best(1, "validation/accuracy")`; instead of
  /// `n_retains`. The others are removed when a newer one is durable. Only files that this extension's `filename` makes
  /// count, and only those up to the present iteration: later ones belong to an earlier run.
  std::optional<retention> retain = std::nullopt;
  /// Whether to go on from the newest sound snapshot in the output directory, if there is one.
  bool autoload = false;
  /// Go on from this very file, wherever it is: a snapshot of this or another extension, also one that was taken on an
  /// error, or a file of pytorch-pfn-extras. Training does not start if it is not sound.
  std::optional<std::filesystem::path> resume_from = std::nullopt;
  /// What to do about a state that does not fit the loop: fail (default), or take what fits; and which names in the
  /// file mean which ones of the model.
  state::load_options load = {};
  /// Asked with every state before it is loaded; what it throws makes autoload pass over the file, as a damaged one.
  std::function<void(const std::filesystem::path& file, const state::value& state)> validator = nullptr;
  /// Who writes. Default: `writers::simple()`.
  std::shared_ptr<writing::writer> writer = nullptr;
  /// Default: `distributed` where several ranks train together, else `standard`, which several ranks cannot use.
  std::optional<snapshot_mode> mode = std::nullopt;
  /// The rank that writes, or that completes a sharded snapshot; below the number of ranks, in every mode. All ranks
  /// must see the same directory `loop_options::out`, to resume and, in the mode `sharded`, to write.
  int saver_rank = 0;
  /// What happens when a snapshot cannot be written.
  snapshot_failure on_failure = snapshot_failure::fail;
  /// Whether training ends with a snapshot even if the trigger did not fire there.
  bool final = false;
  /// Whether training that a signal ends (`loop_options::stop_signals`) ends with a snapshot, so that nothing is lost.
  bool on_signal = true;
  /// Whether every file is read back and verified, in the background, before it counts as written and older ones are
  /// removed: finds disks that do not store what they were given.
  bool verify = false;
  /// Whether to report what the last finished snapshot has cost, for `log_report` and others, in the iteration after
  /// its end: "<name>/bytes", "<name>/stall_seconds", "<name>/total_seconds" and "<name>/memory".
  bool report = false;
};

/// Saves the state of the training (ppe: `extensions.snapshot`). Default trigger: every epoch; priority -100; name
/// "snapshot".
///
/// A snapshot is one instant, and complete, verified and durable under its name, or it does not exist. Files are those
/// of docs/file_format.md, which Python's `torch.load` reads as a dict. With a writer that works in the background,
/// parameters and optimizer state are copied while training goes on, at the latest before the next update; everything
/// else is copied at once. Training ends when all snapshots are durable.
///
/// With `autoload`, before training starts: the files whose names fit `filename` are verified from the newest recorded
/// iteration on; damaged ones are passed over with a warning and a `snapshot_rejected` event; the first sound one is
/// loaded, after `event::state_found`. A file that cannot be read for want of rights, memory or descriptors, or because
/// a device does not answer, is not damaged: that ends the start. Of several extensions with autoload, the newest
/// snapshot of all counts, and a `resume_from` before them. No file at all is a fresh start. If there are files but
/// none is sound, `snapshot_error` lists why. Files that a process writer of an earlier run is still writing are waited
/// for.
///
/// With several ranks, all take every snapshot together: they wait for each other before it is captured, the saver rank
/// writes it, with the random generators of all, and all learn whether it is durable. An error of the saver, a full
/// disk say, is an error on every rank, with the saver's reason, and `on_failure` means the same on all. `condition` is
/// the saver's. Autoload takes the newest file that every rank can read and verify. A rank that is gone makes the
/// snapshots that are on their way fail with a `distributed::rank_error` that names it (on the others; a file that the
/// saver has begun is whole, or does not exist). A snapshot on an error is taken by the saver alone.
///
/// In the mode `sharded` every rank writes its part with a writer of its own, and the saver gives the directory its
/// name when all parts are durable: it is there as a whole or not at all. Parameters and the state of optimizers are
/// spread over the ranks by size, sharded tensors (`state::sharded_tensor`) are written by those who have them, and of
/// all else the saver's is kept. Any number of ranks can resume from it, in any mode, and each reads only what it
/// needs; `rondo consolidate` makes one file of it. In the mode `distributed`, sharded tensors are gathered before the
/// file is written, on all ranks. A snapshot on an error has only the saver's parts of sharded tensors.
///
/// Answers `context::snapshot` and `context::request_snapshot`, if it saves the loop.
///
/// Errors: `option_error` before training starts for options that make no sense; when a snapshot cannot be written,
/// `io_error` ends the training at the end of the iteration (see `on_failure`; older ones are not touched then),
/// `snapshot_error` when it would replace one of another extension of this loop, `state_error` when parameters were
/// changed while they were being copied.
[[nodiscard]] extension snapshot(snapshot_options options = {});

/// Saves one object instead of the loop (ppe: `extensions.snapshot_object`). Default name "snapshot_object".
[[nodiscard]] extension snapshot_object(state::stateful_ref target, snapshot_filename filename,
                                        snapshot_options options = {});

}  // namespace rondo

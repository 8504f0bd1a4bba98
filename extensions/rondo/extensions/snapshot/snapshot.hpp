#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "rondo/loop/context.hpp"
#include "rondo/loop/extension.hpp"
#include "rondo/state/stateful.hpp"
#include "rondo/writing/simple_writer.hpp"
#include "rondo/writing/writer.hpp"

namespace rondo {

/// No snapshot could be resumed from although there are some, or the chosen file holds another kind of state.
class snapshot_error : public error {
 public:
  using error::error;
};

/// The name of a snapshot's file inside the loop's output directory: a template over the fields `iteration`, `epoch`,
/// `execution`, `epoch_detail` and `elapsed_time` with fmt's format specifiers ("snapshot_iter_{iteration:08}"; ppe's
/// "{.iteration}" is understood too), or a callable that gives a plain name.
using snapshot_filename = std::variant<std::string, std::function<std::string(const context&)>>;

/// What is saved: the whole loop (default), one object, or several under keys of their own.
using snapshot_target =
    std::variant<std::monostate, state::stateful_ref, std::vector<std::pair<std::string, state::stateful_ref>>>;

/// Options of `snapshot`; those of pytorch-pfn-extras, with its names and defaults.
struct snapshot_options {
  /// The user's own serialization: it is given a temporary path at which nothing exists, and the state. Committed
  /// atomically and durably like any other snapshot. Cannot be combined with `writer`.
  std::function<void(const std::filesystem::path& temporary, const state::value& state)> savefun = nullptr;
  /// The inverse of `savefun`, needed for `autoload` with it.
  std::function<state::value(const std::filesystem::path& file)> loadfun = nullptr;
  snapshot_filename filename = std::string("snapshot_iter_{iteration}");
  snapshot_target target = {};
  /// Asked after the trigger has fired; false skips this snapshot.
  std::function<bool()> condition = nullptr;
  /// Whether a training that fails leaves a last snapshot behind, under "<name>.error": taken in the middle of an
  /// iteration, marked as such, never resumed from by autoload and never in the place of a regular one.
  bool snapshot_on_error = false;
  /// How many snapshots to keep, newest by recorded iteration first; -1 keeps all. The others are removed when a newer
  /// one is durable. Only files that this extension's `filename` makes count.
  std::int64_t n_retains = -1;
  /// Whether to go on from the newest sound snapshot in the output directory, if there is one.
  bool autoload = false;
  /// Who writes. Default: `writers::simple()`.
  std::shared_ptr<writing::writer> writer = nullptr;
};

/// Saves the state of the training (ppe: `extensions.snapshot`). Default trigger: every epoch; priority -100; name
/// "snapshot".
///
/// A snapshot is one instant, and complete, verified and durable under its name, or it does not exist. Files are those
/// of docs/file_format.md, which Python's `torch.load` reads as a dict.
///
/// With `autoload`, before training starts: the files whose names fit `filename` are verified from the newest recorded
/// iteration on; damaged ones are passed over with a warning and a `snapshot_rejected` event; the first sound one is
/// loaded. No file at all is a fresh start. If there are files but none is sound, `snapshot_error` lists why.
///
/// `n_retains` counts and removes only snapshots up to the present iteration: later ones belong to an earlier run.
///
/// Errors: `option_error` before training starts for options that make no sense; `io_error` ends the training when a
/// snapshot cannot be written (older ones are not touched then), `snapshot_error` when it would replace one of another
/// extension of this loop.
[[nodiscard]] extension snapshot(snapshot_options options = {});

/// Saves one object instead of the loop (ppe: `extensions.snapshot_object`). Default name "snapshot_object".
[[nodiscard]] extension snapshot_object(state::stateful_ref target, snapshot_filename filename,
                                        snapshot_options options = {});

}  // namespace rondo

#pragma once

#include <string>
#include <utility>
#include <vector>

namespace rondo::state {

/// What happens when a stored state and the objects that load it differ.
enum class mismatch {
  /// Nothing is loaded: one `state_error` lists every difference.
  strict,
  /// What fits is loaded, the rest keeps what it has; one warning lists the differences.
  warn,
  /// The same without the warning.
  ignore,
};

/// How a state is loaded: into modules, optimizers and whole loops. By default everything must fit.
struct load_options {
  mismatch on_mismatch = mismatch::strict;

  /// Pairs of a stored name and the present one, for what was renamed since. A name is a whole dotted name
  /// ("encoder.0.weight") or the beginning of several up to a dot ("encoder"); "" is the beginning of all, so that
  /// {"backbone", ""} takes a prefix away and {"", "backbone"} adds one. The first pair that fits a stored name is
  /// applied to it, once. In the state of a loop a name is that of a tensor within its model, or a path from the root
  /// within one object ("models.generator.encoder"), or that of an object ("extensions.log_report", "models.main",
  /// "optimizers.main", "state_objects.average"), which cannot move to another part.
  ///
  /// A pair that fits nothing is a difference like any other. Two stored names that become the same are a
  /// `state_error` whatever `on_mismatch` says.
  std::vector<std::pair<std::string, std::string>> rename = {};

  /// Whether the memory of an extension or a trigger that does not fit is a difference like any other. By default it
  /// is let go: what remembers something else than before (another stop trigger, another schedule, another trigger of a
  /// snapshot) begins anew, with a warning that names it. For the state of a loop.
  bool strict_memory = false;

  /// Whether tensors of a module may be stored in another dtype; they are converted then. Optimizers always convert.
  bool convert_dtype = false;
};

}  // namespace rondo::state

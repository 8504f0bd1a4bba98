#pragma once

#include <string>

#include "rondo/event/better.hpp"
#include "rondo/event/interval.hpp"
#include "rondo/event/trigger.hpp"

namespace rondo {

struct early_stopping_options {
  /// The observation to watch. Its mean between two checks counts.
  std::string monitor = "validation/loss";
  /// Stop at this many checks in a row without improvement. At least 1.
  std::int64_t patience = 3;
  /// An improvement is a change by more than this. At least 0.
  double min_delta = 0.0;
  /// `automatic`: higher if the key contains "accuracy" or "auc", else lower (ppe: mode).
  better direction = better::automatic;
  /// When to look.
  trigger check = every(epochs(1));
  /// Stop here at the latest (ppe: max_trigger).
  trigger limit = never();
};

/// As a stop trigger: fires when `monitor` has not improved for `patience` checks, or when `limit` fires. A NaN is no
/// improvement. State: saved, so that a resumed training stops where the unbroken one would have (ppe's forgets).
/// Throws `option_error` for a patience below 1 or a negative min_delta.
[[nodiscard]] trigger early_stopping(early_stopping_options options = {});

}  // namespace rondo

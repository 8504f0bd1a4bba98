#pragma once

#include "rondo/event/trigger.hpp"

namespace rondo {

/// Fires after the first iteration of a training, and not again when that training is resumed, unless
/// `on_resume` (ppe: `OnceTrigger(call_on_resume)`), which makes it fire after the first iteration of every run. State:
/// saved.
[[nodiscard]] trigger once(bool on_resume = false);

}  // namespace rondo

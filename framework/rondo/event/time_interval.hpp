#pragma once

#include <chrono>

#include "rondo/event/trigger.hpp"

namespace rondo {

/// Fires at the first iteration that ends after each multiple of `period` of training time (cumulative over resumes). A
/// stall of several periods makes it fire once, not several times. State: saved. Throws `option_error` unless `period`
/// > 0.
[[nodiscard]] trigger time_interval(std::chrono::duration<double> period);

}  // namespace rondo

#pragma once

#include <functional>
#include <string>

#include "rondo/event/interval.hpp"
#include "rondo/event/trigger.hpp"

namespace rondo {

/// Every time `check` fires, the mean of the observation `key` since the last time is compared with the best one so
/// far (with several ranks: the mean over all of them); fires when `better(mean, best)` or when there was no best one
/// yet. A NaN is never better. State: saved.
///
/// When `check` fires and `key` was not reported since the last time, `observation_error` lists what was reported.
/// Default `check`: every epoch. (ppe: `BestValueTrigger`.)
[[nodiscard]] trigger best_value(std::string key, std::function<bool(double candidate, double best)> better,
                                 trigger check = every(epochs(1)));
/// `best_value` for the smallest mean.
[[nodiscard]] trigger min_value(std::string key, trigger check = every(epochs(1)));
/// `best_value` for the largest mean.
[[nodiscard]] trigger max_value(std::string key, trigger check = every(epochs(1)));

}  // namespace rondo

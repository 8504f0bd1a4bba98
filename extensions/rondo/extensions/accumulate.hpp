#pragma once

#include <string>

#include "rondo/event/interval.hpp"
#include "rondo/event/trigger.hpp"
#include "rondo/loop/extension.hpp"

namespace rondo {

struct accumulate_options {
  /// The observation to gather, in every iteration in which somebody reports it.
  std::string source;
  /// Under which the result is reported.
  std::string target;
  /// When the result is reported, of what came since the last time. Asked every iteration; its memory is saved.
  rondo::trigger trigger = every(epochs(1));
};

/// Gather an observation over a stretch of iterations and report one number of it (ppe: `AverageAccumulate`, …). With
/// several ranks it is over what all of them have reported; a rank may have nothing.
///
/// Default trigger: every iteration, at which `trigger` is asked. Priority `editor`: they see what evaluators report,
/// and logs see what they report. Named after the target, "average_accumulate/<target>". State: what was gathered, and
/// the trigger's memory. Throw `option_error` at once for an empty name; training ends with `observation_error`, which
/// lists what there is, when the trigger fires and nobody has reported the source since the last time.

/// The mean, weighted as the observations are.
[[nodiscard]] extension average_accumulate(accumulate_options options);
[[nodiscard]] extension max_accumulate(accumulate_options options);
[[nodiscard]] extension min_accumulate(accumulate_options options);
/// The square root of the mean squared distance from the mean; 0 of one number.
[[nodiscard]] extension standard_deviation_accumulate(accumulate_options options);
/// The same with n - 1 in the place of n; NaN of one number.
[[nodiscard]] extension unbiased_standard_deviation_accumulate(accumulate_options options);

struct micro_average_options {
  std::string numerator_key;
  std::string denominator_key;
  /// Under which the ratio is reported.
  std::string result_key;
  rondo::trigger trigger = every(epochs(1));
};

/// The sum of one observation over that of another one, of the iterations in which both are reported: of right answers
/// over samples, say. Otherwise as the others; "micro_average/<result_key>". NaN when the denominators' sum is 0.
[[nodiscard]] extension micro_average(micro_average_options options);

}  // namespace rondo

#pragma once

#include <string>
#include <vector>

#include "rondo/extensions/schedules.hpp"
#include "rondo/loop/extension.hpp"

namespace rondo {

struct lr_scheduler_options {
  /// The optimizers whose learning rates are set, by their names in the loop. Default (empty): all.
  std::vector<std::string> optimizers = {};
  /// Under which key the learning rates are reported; empty: not at all.
  std::string key = "lr";
};

/// Sets the learning rates: before training, and after each iteration for the next one, every group of parameters gets
/// what `s` makes of the group's base learning rate, the one that it had when the training began.
/// `loop | lr_scheduler(schedules::warm_up(500_iterations, schedules::cosine(10_epochs)))`.
///
/// Reports the learning rate that the iteration was trained with: "lr", or "lr/<optimizer>" in a loop with several;
/// that of a second group of parameters under "lr/1", "lr/<optimizer>/1", and so on.
///
/// Name "lr_scheduler", priority `editor`: it sees the results of evaluators, and logs see what it reports. Default
/// trigger: every iteration. With another one, the learning rates change only when it fires:
/// `.triggered(every(1_epochs))` makes steps of what would be a curve. State: the base learning rates, the present
/// ones and when they were set, the schedule's memory. So a resumed training has the learning rates of the unbroken
/// one, also inside an epoch, and whatever the program sets first. With another schedule than before, such as a longer
/// cosine, they are those of the new one from the first iteration on.
///
/// Iterations count, not updates: with `accumulate` several of them share one update. Throws `option_error` before
/// training when the loop has no such optimizer or one has no learning rate; during training when the schedule gives a
/// rate that is negative or not finite, or needs to know the length of an epoch and does not. What a schedule throws
/// ends training.
[[nodiscard]] extension lr_scheduler(schedule s, lr_scheduler_options options = {});

}  // namespace rondo

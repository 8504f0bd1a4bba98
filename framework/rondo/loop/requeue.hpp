#pragma once

#include <functional>

#include "rondo/loop/options.hpp"

namespace rondo {

/// For `loop_options::on_preempted`: asks SLURM to put the job of this process back into its queue, by
/// `scontrol requeue $SLURM_JOB_ID`. Does so when a signal other than SIGINT has ended training; Ctrl-C is not a
/// preemption. Outside of a SLURM job it does nothing but say so in the log. With several tasks in a job, only the first
/// one (`SLURM_PROCID` 0 or not set) asks.
///
/// The callable throws `rondo::error` with scontrol's exit status when it fails; the snapshot is durable in any case.
[[nodiscard]] std::function<void(const run_result&)> slurm_requeue();

}  // namespace rondo

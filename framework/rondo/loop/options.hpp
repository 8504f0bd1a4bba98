#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "rondo/distributed/data_parallel.hpp"
#include "rondo/distributed/rank_group.hpp"
#include "rondo/event/trigger.hpp"

namespace rondo {

/// How a run ended.
struct run_result {
  std::string stop_reason;                            ///< for people: "10 epochs completed"
  std::int64_t iteration = 0;                         ///< iterations done, over all resumes
  std::int64_t epoch = 0;                             ///< epochs completed
  double elapsed_time = 0.0;                          ///< seconds of training, over all resumes
  std::optional<std::filesystem::path> resumed_from;  ///< the snapshot that this run went on from
  std::optional<int> signal;                          ///< that ended it, and nothing else before
};

/// The exit status of a process that `loop_options::grace_period` has ended; the same as that of timeout(1).
inline constexpr int exit_code_too_late = 124;

/// The exit status that a program should end with after a run: 0 when it has reached its goal or an extension has
/// stopped it, 128 + the number of the signal that has ended it before (143 for SIGTERM, 130 for SIGINT), as a shell
/// would say of a process that the signal has killed. Errors are exceptions: there is no result then.
[[nodiscard]] inline int exit_code(const run_result& result) noexcept {
  return result.signal ? 128 + *result.signal : 0;
}

class grad_scaler;

/// For `loop_options::counts`: how many targets are not `ignore_index`, as losses of LibTorch leave them out. Waits for
/// the device.
[[nodiscard]] std::function<double(const at::Tensor& target)> valid_targets(std::int64_t ignore_index = -100);

/// What becomes of an update whose gradients are not all finite.
enum class non_finite_gradients {
  use,   ///< nobody looks
  skip,  ///< it is left out
  fail,  ///< training ends with an error that names the parameter
};

/// Settings of a loop. At least one of `max_epochs`, `max_iterations` and `stop_trigger` must say when training ends.
struct loop_options {
  /// Training ends when this many epochs are complete, over all resumes. At least 1.
  std::optional<std::int64_t> max_epochs = std::nullopt;
  /// Training ends when this many iterations are done, over all resumes. At least 1.
  std::optional<std::int64_t> max_iterations = std::nullopt;
  /// Training ends when it fires. Asked after every iteration; its memory is saved in snapshots.
  std::optional<trigger> stop_trigger = std::nullopt;
  /// Where extensions put their files (`context::out`). Made when somebody asks for it.
  std::filesystem::path out = "result";
  /// Models and batches are moved here. Default: CPU, where nothing is moved.
  c10::Device device = c10::kCPU;
  /// The ranks that train together, each with its share of the data (`data::distributed`). Default: this process alone.
  /// All have the same models, optimizers, extensions and number of batches. Then
  ///
  /// * models are data parallel: all begin with rank 0's parameters, and gradients are averaged over the ranks,
  /// weighted
  ///   by their samples where a step returns its loss, and with equal weights where it calls `ctx.update(optimizer)`; a
  ///   step that does neither uses `distributed::data_parallel` itself;
  /// * what asks for the end of training or for a snapshot on one rank does so for all, at the end of the same
  /// iteration;
  /// * triggers that depend on more than iterations and epochs are decided by rank 0;
  /// * files, tables and progress are those of rank 0;
  /// * an error on one rank ends the others with a `distributed::rank_error` that names it.
  distributed::rank_group group = {};
  distributed::data_parallel_options data_parallel = {};
  /// How much a batch counts in averages ("train/loss", what is reported without a weight, an evaluator's loss), from
  /// its target: `valid_targets()` where a loss leaves some out, the sum of a mask, any weight. At least 0; with
  /// several ranks, whole numbers. A batch of weight 0 adds no gradient. Default: its number of samples. In a
  /// supervised loop whose target is a tensor; elsewhere a step calls `ctx.weigh_batch`.
  std::function<double(const at::Tensor& target)> counts = nullptr;
  /// Gradients of this many iterations are averaged before each update. A shorter rest, at the end of an epoch or when
  /// `max_iterations` are done, is an update of its own, averaged over what there is. At least 1.
  std::int64_t accumulate = 1;
  /// Whether batches count in that average by their weights (see `counts`), as if they were one batch, and not alike.
  bool accumulate_by_weight = false;
  /// Before each managed update, gradients are scaled down to this norm (over all parameters of the optimizer), as by
  /// `torch.nn.utils.clip_grad_norm_`. The norm before that is reported as "train/grad_norm"
  /// ("train/grad_norm/<optimizer>" where the loop has several), without waiting for the device. Positive.
  std::optional<double> clip_grad_norm = std::nullopt;
  /// Which norm that is: of the absolute values to this power; infinity: the largest one. Positive.
  double grad_norm_type = 2.0;
  /// Whether the norm is reported also where nothing is clipped to it.
  bool report_grad_norm = false;
  /// Before each managed update, each gradient element is clamped to ± this. Positive.
  std::optional<double> clip_grad_value = std::nullopt;
  /// What becomes of an update whose gradients are not all finite. To know that, each update waits for the device once.
  /// An update that is left out makes no update events; "train/update_skipped" is 1 then, and else 0.
  non_finite_gradients on_non_finite_gradients = non_finite_gradients::use;
  /// Forward and loss are computed in this dtype where that is good enough (`autocast_scope`), in the training step, if
  /// it returns its loss, and in evaluators: bfloat16 on the CPU, bfloat16 or float16 on CUDA. Parameters stay as they
  /// are.
  std::optional<c10::ScalarType> autocast = std::nullopt;
  /// Scales losses for gradients in float16, and leaves out updates whose gradients are not finite. Saved in snapshots
  /// under the name "grad_scaler". Reports "train/loss_scale" and "train/update_skipped". A custom step that calls
  /// `ctx.update(optimizer)` scales the loss itself, each one after the update before. Default: none.
  std::shared_ptr<grad_scaler> scaler = nullptr;
  /// Whether the loop listens to signals while it runs: those in `stop_signals` and `snapshot_signals`.
  bool handle_signals = true;
  /// End training after the current iteration, or at once while the loop waits for data; an evaluation is broken off if
  /// a snapshot remembers that it has to be done again. An extension `snapshot` saves the run before it ends, unless
  /// told otherwise. A handler that was installed before is called as well, if it takes nothing but the number. The
  /// former dispositions are back after the first of these signals, so that a second one goes to them alone (and ends
  /// the process, as a rule).
  std::vector<int> stop_signals = {SIGINT, SIGTERM};
  /// Ask for a snapshot at the end of the current iteration, after which training goes on; while the loop waits for
  /// data or evaluates, for one right away. Only caught in a loop with an extension that saves it.
  std::vector<int> snapshot_signals = {SIGUSR1};
  /// How long the process may go on after the first of the `stop_signals`; then it ends with status
  /// `exit_code_too_late`, whatever it is doing. Set it a little shorter than the time after which your system kills.
  /// Default: no limit. Positive.
  std::optional<std::chrono::nanoseconds> grace_period = std::nullopt;
  /// Called when one of the `stop_signals` has ended training before its goal, as the very last thing: every snapshot
  /// is durable, every extension has ended. For whoever has to be told to start the program again (`slurm_requeue`).
  /// What it throws, `run()` throws.
  std::function<void(const run_result&)> on_preempted = nullptr;
  /// Whether LibTorch computes in ways that give the same bits every time, and refuses operations that have none
  /// (`at::globalContext().setDeterministicAlgorithms`), while the loop runs. Needed for bit-exact resume on CUDA;
  /// LibTorch's operations on the CPU are deterministic in any case, but for a few that say so. Setting for the whole
  /// process.
  bool deterministic = false;
  /// Threads for `context::offload`. At least 1; started when first needed.
  int background_threads = 2;
};

}  // namespace rondo

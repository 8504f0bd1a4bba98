#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "rondo/event/trigger.hpp"

namespace rondo {

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
  /// Gradients of this many iterations are averaged before each update. A shorter rest at the end of an epoch is an
  /// update of its own, averaged over what there is. At least 1.
  std::int64_t accumulate = 1;
  /// Before each managed update, gradients are scaled down to this 2-norm (over all parameters of the optimizer). The
  /// norm is reported as "train/grad_norm". Positive.
  std::optional<double> clip_grad_norm = std::nullopt;
  /// Before each managed update, each gradient element is clamped to ± this. Positive.
  std::optional<double> clip_grad_value = std::nullopt;
  /// Whether SIGINT and SIGTERM stop training after the current iteration while the loop runs. A handler that was
  /// installed before is called as well, if it takes nothing but the number. The former dispositions are back after the
  /// first signal, so that a second one goes to them alone.
  bool handle_signals = true;
  /// Threads for `context::offload`. At least 1; started when first needed.
  int background_threads = 2;
};

/// How a run ended.
struct run_result {
  std::string stop_reason;                            ///< for people: "10 epochs completed"
  std::int64_t iteration = 0;                         ///< iterations done, over all resumes
  std::int64_t epoch = 0;                             ///< epochs completed
  double elapsed_time = 0.0;                          ///< seconds of training, over all resumes
  std::optional<std::filesystem::path> resumed_from;  ///< the snapshot that this run went on from
};

}  // namespace rondo

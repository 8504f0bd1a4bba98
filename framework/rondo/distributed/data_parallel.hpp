#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <memory>
#include <optional>

#include "rondo/async/task.hpp"
#include "rondo/distributed/rank_group.hpp"

namespace rondo::distributed {

struct data_parallel_options {
  /// How much of the gradients is sent at a time, in MiB. Positive. Smaller ones begin earlier, larger ones cost fewer
  /// messages. The first is at most 1 MiB, because it is waited for by nobody.
  double bucket_mb = 25.0;
  /// Whether gradients are sent while `backward` computes others, or all at its end.
  bool overlap = true;
  /// Whether every rank takes over rank 0's buffers (running means, for example) in `broadcast_buffers`.
  bool broadcast_buffers = true;
};

/// A model of which every rank has a copy and sees its own share of each batch: gradients become those of the whole
/// batch on every rank (after Li et al., "PyTorch Distributed", VLDB 2020; in Python: `DistributedDataParallel`).
/// `loop` does all of it by `loop_options::group`; in a loop of one's own:
///
///     distributed::data_parallel parallel(model.ptr(), group);
///     co_await parallel.broadcast_state();
///     for (auto& [input, target] : batches) {
///       optimizer.zero_grad();
///       co_await parallel.broadcast_buffers();
///       auto loss = criterion(model(input), target);  // the mean over this rank's samples
///       parallel.begin(input.size(0));
///       loss.backward();
///       co_await parallel.finish();
///       optimizer.step();
///     }
///
/// Every rank calls the same functions in the same order. Parameters that no rank has used keep their gradient, or have
/// none, as without ranks; those that only some have used count as zeros on the others. Gradients of half precision
/// are summed in float32. In a group of one nothing is done at all.
///
/// All members throw `rank_error` when a rank is gone or late. Used by the training thread; the model must not get
/// other parameters.
class data_parallel {
 public:
  /// Throws `option_error` for a `bucket_mb` that is not positive.
  data_parallel(std::shared_ptr<torch::nn::Module> model, rank_group group, data_parallel_options options = {});
  ~data_parallel();
  data_parallel(data_parallel&&) noexcept;
  data_parallel& operator=(data_parallel&&) noexcept;

  /// Gives all ranks the parameters and buffers of rank 0, in place. Throws `state_error` naming the first difference
  /// on all ranks when their models differ in names, shapes or dtypes.
  [[nodiscard]] task<> broadcast_state();

  /// Before a `backward` over the mean of `samples` samples (0: this rank has none, and its gradients do not count).
  /// With `last_of_window` false, gradients are only accumulated, and the next `finish` weighs them together. Without
  /// it (a `backward` that was not announced), `finish` sends everything, and ranks have equal weights. Throws
  /// `option_error` for less than 0.
  void begin(std::int64_t samples, bool last_of_window = true);

  /// After the last `backward`: completes when the gradients are the weighted means over all ranks, with the same bits
  /// on each. Throws `option_error` for sparse gradients. Cancellation waits for what has been sent.
  [[nodiscard]] task<> finish();

  /// Gives all ranks the buffers of rank 0, if the options say so and there are any.
  [[nodiscard]] task<> broadcast_buffers();

  /// While the result lives, `begin` only accumulates, whatever it is told.
  class accumulation {
   public:
    accumulation(const accumulation&) = delete;
    accumulation& operator=(const accumulation&) = delete;
    ~accumulation();

   private:
    friend class data_parallel;
    explicit accumulation(int& depth) : depth_(depth) { ++depth_; }
    int& depth_;
  };
  /// For windows of several batches (in Python: `no_sync`). Must not outlive this.
  [[nodiscard]] accumulation no_sync();

  /// Of how many samples this rank has gradients that wait for `finish`; none between windows. For a state.
  [[nodiscard]] std::optional<std::int64_t> samples_of_window() const noexcept;
  /// Goes on with such a window, whose gradients the parameters have.
  void resume_window(std::optional<std::int64_t> samples) noexcept;

  /// How many messages the gradients are sent in.
  [[nodiscard]] std::size_t bucket_count() const;

 private:
  class reducer;
  std::shared_ptr<reducer> reducer_;  // shared with the hooks of the model's parameters
};

}  // namespace rondo::distributed

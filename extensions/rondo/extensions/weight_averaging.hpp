#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "rondo/event/interval.hpp"
#include "rondo/loop/extension.hpp"
#include "rondo/state/stateful.hpp"
#include "rondo/state/value.hpp"

namespace rondo {

struct ema_options {
  /// What the average keeps of itself at each update of it; in (0, 1).
  double decay = 0.999;
  /// Whether early updates keep less: min(decay, (1 + n) / (10 + n)) after n of them.
  bool warm_up = false;
  /// After how many updates of the optimizer the average is updated. At least 1.
  std::int64_t every = 1;
  /// Whose updates count, by name. Default (empty): those of all optimizers.
  std::string optimizer = {};
  /// Which models are averaged, by name. Default (empty): all.
  std::vector<std::string> models = {};
  /// Whether evaluators see the averages.
  bool swap_for_evaluation = true;
};

struct swa_options {
  /// From when on weights count. Default: from the beginning.
  std::optional<period> start = std::nullopt;
  /// How often the weights are added to the average, at the end of an iteration. Positive.
  period every = epochs(1);
  /// Which models are averaged, by name. Default (empty): all.
  std::vector<std::string> models = {};
  /// Whether evaluators see the averages, once there are some.
  bool swap_for_evaluation = true;
};

namespace extensions {
class weight_averaging;
}

/// Averages of a model's parameters and buffers during a training, and the extension that makes them: attach it to a
/// loop, and read it at any time. Copies mean the same averages. Training thread only.
///
///     auto averages = ema({.decay = 0.999});
///     loop | averages | evaluator(test, metrics::accuracy());
///     loop.run();
///     averages.apply_to(model);
///
/// Tensors with floating-point numbers are averaged, those of half precision in float32; others are copied. One that a
/// model has under two names is averaged once.
class averaged_weights {
 public:
  averaged_weights(std::string name, std::shared_ptr<extensions::weight_averaging> self);

  /// The extension, at a priority above that of evaluators.
  operator extension() const;
  /// The same under another name, for a loop with several.
  [[nodiscard]] extension named(std::string name) const;

  /// How often weights have gone into the average.
  [[nodiscard]] std::int64_t count() const;
  /// The averages by the names that `state::module_state` gives the model's tensors; they are live, not copies. Throws
  /// `option_error` when no training has begun, and for a model that is not averaged.
  [[nodiscard]] state::dict weights(std::string_view model = "main") const;
  /// Copies the averages into `model`, which has the same names and shapes. Throws as `weights`, `error` when there is
  /// no average yet, and `state_error` when they do not fit.
  void apply_to(torch::nn::Module& model, std::string_view name = "main") const;
  template <state::module_holder Holder>
  void apply_to(const Holder& model, std::string_view name = "main") const {
    apply_to(*model.ptr(), name);
  }
  /// Updates the average now: for steps that update by hand, of which the loop knows nothing.
  void update() const;

 private:
  std::string name_;
  std::shared_ptr<extensions::weight_averaging> self_;
};

/// The exponential moving average of the weights: after each update, `average = decay * average + (1 - decay) *
/// weights`. The first update copies the weights. As `torch.optim.swa_utils.AveragedModel(use_buffers=True)` with such
/// an `avg_fn`.
///
/// While an evaluator is at work the models have the averages (`swap_for_evaluation`); snapshots have the training's
/// weights in any case, and the averages as this extension's state. No host synchronisation and no allocation per
/// update.
///
/// Name "ema", priority 400, above evaluators. State: the averages, in the layout of Python's `AveragedModel`. Throws
/// `option_error` for impossible options, and before training for models and optimizers that the loop does not have.
[[nodiscard]] averaged_weights ema(ema_options options = {});

/// The mean of the weights at the ends of epochs ("stochastic weight averaging", Izmailov et al., UAI 2018), as
/// `torch.optim.swa_utils.AveragedModel(use_buffers=True)`. Buffers are averaged too; `update_batch_norm` makes better
/// statistics. For the learning rate see `schedules::sequential`. Otherwise as `ema`. Name "swa".
[[nodiscard]] averaged_weights swa(swa_options options = {});

}  // namespace rondo

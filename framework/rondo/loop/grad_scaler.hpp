#pragma once

#include <ATen/core/Tensor.h>
#include <torch/optim/optimizer.h>

#include <cstdint>
#include <map>
#include <optional>

#include "rondo/state/value.hpp"

namespace rondo {

struct grad_scaler_options {
  double initial_scale = 65536.0;  ///< positive
  double growth_factor = 2.0;      ///< above 1
  double backoff_factor = 0.5;     ///< between 0 and 1
  /// Updates without an infinite gradient after which the scale grows. At least 1.
  std::int64_t growth_interval = 2000;
};

/// Scales losses so that small gradients do not vanish in float16, and leaves out steps whose gradients overflow: the
/// algorithm of `torch.cuda.amp.GradScaler`, on every device. `loop_options::scaler` does all of it for updates of the
/// loop. In a step that updates by hand:
///
///     scaler.scale(loss).backward();
///     scaler.step(optimizer);
///     scaler.update();
///
/// The scale is kept on the host. `step` (or whoever asks first whether gradients are finite) waits for the device
/// once; nothing else does. Training thread.
class grad_scaler {
 public:
  /// Throws `option_error`.
  explicit grad_scaler(grad_scaler_options options = {});

  /// `loss` times the scale.
  [[nodiscard]] at::Tensor scale(const at::Tensor& loss) const;

  /// Divides the gradients of `optimizer` by the scale, in place, for whoever wants to look at them or to clip them
  /// before `step`. Once per update and optimizer; throws `error` otherwise, and `option_error` for gradients in
  /// float16: the parameters must be float32.
  void unscale(torch::optim::Optimizer& optimizer);

  /// Whether all gradients of `optimizer` were finite when they were unscaled, which is done now if it was not.
  [[nodiscard]] bool is_finite(torch::optim::Optimizer& optimizer);

  /// `optimizer.step()` with the true gradients, unless they are not finite. Whether it did. Throws `error` the second
  /// time before `update`.
  bool step(torch::optim::Optimizer& optimizer);

  /// Once per iteration, after all steps: the scale shrinks if a gradient of any optimizer was not finite, and grows
  /// after `growth_interval` updates in a row where none was. With `new_scale`: it is that. Throws `error` when no
  /// gradients were unscaled since the last time.
  void update(std::optional<double> new_scale = std::nullopt);

  /// The present scale.
  [[nodiscard]] double factor() const noexcept { return scale_; }

  /// {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}, as Python's.
  [[nodiscard]] state::dict state_dict() const;
  /// Takes all of them over. Throws `state_error`; then nothing has changed.
  void load_state_dict(const state::value& state);

 private:
  struct progress {
    at::Tensor found_non_finite;  ///< 1 element
    std::optional<bool> finite;   ///< once it has been read
    bool stepped = false;
  };

  [[nodiscard]] static bool read(progress& p);

  grad_scaler_options options_;
  double scale_;
  std::int64_t growth_tracker_ = 0;
  std::map<const torch::optim::Optimizer*, progress> under_way_;
};

}  // namespace rondo

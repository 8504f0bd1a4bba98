#pragma once

#include <c10/core/DeviceType.h>
#include <c10/core/ScalarType.h>

#include <optional>

namespace rondo {

/// While it lives, this thread computes in `dtype` what gains from it, and in float32 what needs it: as
/// `torch.autocast`. For a training step of one's own; `loop_options::autocast` does it where a step returns its loss:
///
///     at::Tensor loss;
///     {
///       const autocast_scope precision(at::kCPU, at::kBFloat16);
///       loss = criterion(model->forward(input), target);
///     }
///     loss.backward();
///
/// Scopes nest. At the end, however it comes, the settings from before are back, and at the end of the outermost one
/// the copies of weights in `dtype` are dropped. Belongs to its thread: never keep one over a `co_await`.
class autocast_scope {
 public:
  /// On `device`; nothing happens without a `dtype`. Throws `option_error` for what LibTorch cannot do: it has bfloat16
  /// on the CPU, float16 and bfloat16 on CUDA.
  autocast_scope(c10::DeviceType device, std::optional<c10::ScalarType> dtype);
  ~autocast_scope();
  autocast_scope(const autocast_scope&) = delete;
  autocast_scope& operator=(const autocast_scope&) = delete;

  /// The check of the constructor alone.
  static void require_possible(c10::DeviceType device, c10::ScalarType dtype);

 private:
  c10::DeviceType device_;
  bool active_;
  bool was_enabled_ = false;
  c10::ScalarType dtype_before_ = c10::ScalarType::Float;
};

}  // namespace rondo

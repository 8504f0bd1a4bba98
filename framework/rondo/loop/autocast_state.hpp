#pragma once

#include <ATen/autocast_mode.h>
#include <torch/version.h>

/// LibTorch's settings of the calling thread, by device. Before 2.4 each had a function of its own for the CPU and for
/// CUDA; these are deprecated since.
namespace rondo::detail::autocast_state {

#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 4)

inline bool enabled(c10::DeviceType device) { return at::autocast::is_autocast_enabled(device); }
inline void enable(c10::DeviceType device, bool on) { at::autocast::set_autocast_enabled(device, on); }
inline c10::ScalarType dtype(c10::DeviceType device) { return at::autocast::get_autocast_dtype(device); }
inline void set_dtype(c10::DeviceType device, c10::ScalarType type) { at::autocast::set_autocast_dtype(device, type); }

#else

inline bool enabled(c10::DeviceType device) {
  return device == c10::kCUDA ? at::autocast::is_enabled() : at::autocast::is_cpu_enabled();
}
inline void enable(c10::DeviceType device, bool on) {
  device == c10::kCUDA ? at::autocast::set_enabled(on) : at::autocast::set_cpu_enabled(on);
}
inline c10::ScalarType dtype(c10::DeviceType device) {
  return device == c10::kCUDA ? at::autocast::get_autocast_gpu_dtype() : at::autocast::get_autocast_cpu_dtype();
}
inline void set_dtype(c10::DeviceType device, c10::ScalarType type) {
  device == c10::kCUDA ? at::autocast::set_autocast_gpu_dtype(type) : at::autocast::set_autocast_cpu_dtype(type);
}

#endif

}  // namespace rondo::detail::autocast_state

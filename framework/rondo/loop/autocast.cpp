#include "rondo/loop/autocast.hpp"

#include <ATen/autocast_mode.h>
#include <fmt/format.h>

#include "rondo/error.hpp"

namespace rondo {

namespace autocast = at::autocast;

void autocast_scope::require_possible(c10::DeviceType device, c10::ScalarType dtype) {
  const bool possible = device == c10::kCUDA ? dtype == c10::kHalf || dtype == c10::kBFloat16
                                             : device == c10::kCPU && dtype == c10::kBFloat16;
  if (!possible)
    throw option_error("autocast", fmt::format("{} on {}", c10::toString(dtype), c10::DeviceTypeName(device, true)),
                       "BFloat16 on cpu, Half or BFloat16 on cuda");
}

autocast_scope::autocast_scope(c10::DeviceType device, std::optional<c10::ScalarType> dtype)
    : device_(device), active_(dtype.has_value()) {
  if (!active_) return;
  require_possible(device, *dtype);
  if (device == c10::kCUDA) {
    was_enabled_ = autocast::is_enabled();
    dtype_before_ = autocast::get_autocast_gpu_dtype();
    autocast::set_autocast_gpu_dtype(*dtype);
    autocast::set_enabled(true);
  } else {
    was_enabled_ = autocast::is_cpu_enabled();
    dtype_before_ = autocast::get_autocast_cpu_dtype();
    autocast::set_autocast_cpu_dtype(*dtype);
    autocast::set_cpu_enabled(true);
  }
  autocast::increment_nesting();
}

autocast_scope::~autocast_scope() {
  if (!active_) return;
  if (autocast::decrement_nesting() == 0) autocast::clear_cache();
  if (device_ == c10::kCUDA) {
    autocast::set_enabled(was_enabled_);
    autocast::set_autocast_gpu_dtype(dtype_before_);
  } else {
    autocast::set_cpu_enabled(was_enabled_);
    autocast::set_autocast_cpu_dtype(dtype_before_);
  }
}

}  // namespace rondo

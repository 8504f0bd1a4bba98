#include "rondo/loop/autocast.hpp"

#include <ATen/autocast_mode.h>
#include <fmt/format.h>

#include "rondo/error.hpp"
#include "rondo/loop/autocast_state.hpp"

namespace rondo {

namespace autocast = at::autocast;
namespace settings = detail::autocast_state;

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
  was_enabled_ = settings::enabled(device);
  dtype_before_ = settings::dtype(device);
  settings::set_dtype(device, *dtype);
  settings::enable(device, true);
  autocast::increment_nesting();
}

autocast_scope::~autocast_scope() {
  if (!active_) return;
  if (autocast::decrement_nesting() == 0) autocast::clear_cache();
  settings::enable(device_, was_enabled_);
  settings::set_dtype(device_, dtype_before_);
}

}  // namespace rondo

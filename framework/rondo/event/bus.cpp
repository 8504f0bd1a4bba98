#include "rondo/event/bus.hpp"

#include <atomic>

namespace rondo {

std::size_t bus::next_id() noexcept {
  static std::atomic<std::size_t> next{0};
  return next++;
}

}  // namespace rondo

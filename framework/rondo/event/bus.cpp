#include "rondo/event/bus.hpp"

#include <cxxabi.h>

#include <atomic>
#include <cstdlib>
#include <string_view>

namespace rondo {

std::string detail::event_name(const std::type_info& type) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> readable(abi::__cxa_demangle(type.name(), nullptr, nullptr, &status),
                                                        std::free);
  std::string_view name(status == 0 ? readable.get() : type.name());
  for (const std::string_view ours : {"rondo::event::", "rondo::extensions::"})
    if (name.starts_with(ours)) name.remove_prefix(ours.size());
  return std::string(name);
}

std::size_t bus::next_id() noexcept {
  static std::atomic<std::size_t> next{0};
  return next++;
}

}  // namespace rondo

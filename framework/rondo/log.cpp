#include "rondo/log.hpp"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>

namespace rondo::log {

namespace {

std::shared_ptr<spdlog::logger> logger() {
  if (auto registered = spdlog::get("rondo")) return registered;
  static const auto made = [] {
    auto fresh = spdlog::stderr_color_mt("rondo");
    fresh->set_pattern("[%n] %^%l%$: %v");
    return fresh;
  }();
  return made;
}

}  // namespace

void debug(const std::string& message) { logger()->debug("{}", message); }
void info(const std::string& message) { logger()->info("{}", message); }
void warn(const std::string& message) { logger()->warn("{}", message); }
void error(const std::string& message) { logger()->error("{}", message); }

}  // namespace rondo::log

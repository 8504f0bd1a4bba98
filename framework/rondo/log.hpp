#pragma once

#include <string>

/// What Rondo has to say beside results: one line each, on stderr, through spdlog. The logger is named "rondo";
/// register one of that name with spdlog before the first message to redirect or silence it. Any thread.
namespace rondo::log {

void debug(const std::string& message);  ///< shown when the logger's level says so; not by default
void info(const std::string& message);
void warn(const std::string& message);
void error(const std::string& message);

}  // namespace rondo::log

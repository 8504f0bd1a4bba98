#include "rondo/error.hpp"

#include <fmt/format.h>

#include <utility>

namespace rondo {

namespace {

std::string describe(const std::string& key, const std::string& problem) {
  return key.empty() ? fmt::format("state: {}", problem) : fmt::format("state '{}': {}", key, problem);
}

std::string describe(const std::string& operation, const std::filesystem::path& path, const std::error_code& code,
                     const std::string& advice) {
  auto text = fmt::format("cannot {} '{}': {}", operation, path.string(), code.message());
  if (!advice.empty()) text += "; " + advice;
  return text;
}

}  // namespace

option_error::option_error(std::string option, std::string found, std::string allowed)
    : error(fmt::format("option '{}' = {}: allowed is {}", option, found, allowed)),
      option_(std::move(option)),
      found_(std::move(found)),
      allowed_(std::move(allowed)) {}

state_error::state_error(std::string key, const std::string& problem)
    : error(describe(key, problem)), key_(std::move(key)), problem_(problem) {}

state_error state_error::under(const std::string& prefix) const {
  return {key_.empty() ? prefix : prefix + "." + key_, problem_};
}

io_error::io_error(std::string operation, std::filesystem::path path, std::error_code code, const std::string& advice)
    : error(describe(operation, path, code, advice)),
      operation_(std::move(operation)),
      path_(std::move(path)),
      code_(code) {}

format_error::format_error(std::string where, std::uint64_t offset, const std::string& problem)
    : error(fmt::format("'{}', byte {}: {}", where, offset, problem)), where_(std::move(where)), offset_(offset) {}

std::string message_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "unknown exception";
  }
}

}  // namespace rondo

#pragma once

#include <cstdint>
#include <exception>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <system_error>

namespace rondo {

/// Base of every error that Rondo throws on its own account. Errors thrown by user code or by LibTorch pass through
/// unchanged. `what()` says what happened, where, and what can be done about it.
class error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// An option that makes no sense. Thrown before training starts.
class option_error : public error {
 public:
  /// `option` is the name as the user writes it, `found` the offending value, `allowed` the values that would do.
  option_error(std::string option, std::string found, std::string allowed);

  [[nodiscard]] const std::string& option() const noexcept { return option_; }
  [[nodiscard]] const std::string& found() const noexcept { return found_; }
  [[nodiscard]] const std::string& allowed() const noexcept { return allowed_; }

 private:
  std::string option_;
  std::string found_;
  std::string allowed_;
};

/// A state tree that does not fit what it is loaded into: a missing or unexpected key, a wrong type, shape or dtype.
class state_error : public error {
 public:
  /// `key` is the dotted path inside the tree ("" for the root).
  state_error(std::string key, const std::string& problem);

  [[nodiscard]] const std::string& key() const noexcept { return key_; }

  /// The same error seen from one level further up: `prefix` is put before the key.
  [[nodiscard]] state_error under(const std::string& prefix) const;

 private:
  std::string key_;
  std::string problem_;
};

/// The operating system refused something. `code()` is its reason.
class io_error : public error {
 public:
  io_error(std::string operation, std::filesystem::path path, std::error_code code, const std::string& advice = "");

  [[nodiscard]] const std::string& operation() const noexcept { return operation_; }
  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  [[nodiscard]] const std::error_code& code() const noexcept { return code_; }

 private:
  std::string operation_;
  std::filesystem::path path_;
  std::error_code code_;
};

/// Bytes that are not what they should be: a damaged, truncated, malicious or unknown file.
class format_error : public error {
 public:
  /// `offset` is the position in the file (or in the record that `where` names) at which the problem was seen.
  format_error(std::string where, std::uint64_t offset, const std::string& problem);

  [[nodiscard]] const std::string& where() const noexcept { return where_; }
  [[nodiscard]] std::uint64_t offset() const noexcept { return offset_; }

 private:
  std::string where_;
  std::uint64_t offset_;
};

/// What a caught exception says, whatever it is. `error` must not be null.
[[nodiscard]] std::string message_of(const std::exception_ptr& error);

}  // namespace rondo

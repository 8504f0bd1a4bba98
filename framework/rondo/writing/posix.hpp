#pragma once

#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>

#include "rondo/error.hpp"

/// What the parts of the file system of the operating system share; for parts that talk to it themselves.
namespace rondo::writing::posix {

[[nodiscard]] io_error failure(const std::string& operation, const std::filesystem::path& file, int code,
                               const std::string& advice = "");

/// How many bytes can be written to the file system of `file`; 0 when nobody knows.
[[nodiscard]] std::uint64_t available_bytes(const std::filesystem::path& file);

/// What can be done about `code`, which came up when `needed` more bytes were to be written.
[[nodiscard]] std::string advice_for(int code, const std::filesystem::path& file, std::uint64_t needed);

/// Whether this process has `file` open; false where the system does not tell (it does in /proc).
[[nodiscard]] bool is_open_here(const std::filesystem::path& file);

template <class Call>
auto uninterrupted(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

/// An open file, or none.
class descriptor {
 public:
  explicit descriptor(int value) noexcept : value_(value) {}
  descriptor(descriptor&& other) noexcept : value_(std::exchange(other.value_, -1)) {}
  descriptor& operator=(descriptor&&) = delete;
  ~descriptor();

  [[nodiscard]] int get() const noexcept { return value_; }
  [[nodiscard]] bool valid() const noexcept { return value_ >= 0; }
  int release() noexcept { return std::exchange(value_, -1); }

 private:
  int value_;
};

}  // namespace rondo::writing::posix

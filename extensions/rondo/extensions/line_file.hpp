#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

namespace rondo::extensions {

/// A text file to which whole lines are added, one system call each, so that a killed process leaves at most one torn
/// line behind. Made if it is not there; links are not followed. Nothing is synced. Not for several threads at once.
class line_file {
 public:
  /// Throws `io_error`, also when something else than a regular file has the name or another `line_file` has it open.
  explicit line_file(std::filesystem::path path);
  line_file(const line_file&) = delete;
  line_file& operator=(const line_file&) = delete;
  ~line_file();

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  /// Length of the file in bytes.
  [[nodiscard]] std::int64_t size() const;
  /// The end of the last whole line within the first `limit` bytes.
  [[nodiscard]] std::int64_t whole_lines(std::int64_t limit) const;
  /// Cuts the file off after `size` bytes.
  void truncate(std::int64_t size);
  /// Adds `line`, which ends with a newline, at the end.
  void append(std::string_view line);

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
};

}  // namespace rondo::extensions

#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

struct gzFile_s;  // zlib's

/// Files that data sets are read from. Errors are `io_error` when the system refuses something, `format_error` when the
/// bytes are not what they should be.
namespace rondo::data::detail {

/// A plain or gzip-compressed file (told by its content), read from front to back. Offsets count the bytes that come
/// out, decompressed ones for a compressed file.
class input_file {
 public:
  explicit input_file(std::filesystem::path path);

  /// Reads until `to` is full or the file ends, and returns how many bytes were read.
  std::size_t read(std::span<std::uint8_t> to);
  /// Goes on at `offset`: at once in a plain file, by reading everything before it in a compressed one. Beyond the end,
  /// `read` finds nothing.
  void seek(std::uint64_t offset);

  [[nodiscard]] std::uint64_t offset() const noexcept { return offset_; }
  [[nodiscard]] bool compressed() const;
  /// The path, for messages.
  [[nodiscard]] std::string where() const;
  [[noreturn]] void fail(std::uint64_t offset, const std::string& problem) const;

 private:
  struct close {
    void operator()(gzFile_s* file) const noexcept;
  };

  void check(int reason) const;
  [[noreturn]] void throw_io(const char* operation, int reason) const;

  std::filesystem::path path_;
  std::unique_ptr<gzFile_s, close> file_;
  std::uint64_t offset_ = 0;
};

/// A regular file, read at any place, by several threads at once if need be.
class random_access_file {
 public:
  explicit random_access_file(std::filesystem::path path);
  random_access_file(const random_access_file&) = delete;
  random_access_file& operator=(const random_access_file&) = delete;
  ~random_access_file();

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  /// When it was opened.
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
  /// The bytes from `first` on. Throws `format_error` when the file has become too short for them.
  [[nodiscard]] std::string read(std::uint64_t first, std::uint64_t count) const;

 private:
  std::filesystem::path path_;
  std::uint64_t size_ = 0;  // set while the next one is made
  int descriptor_;
};

}  // namespace rondo::data::detail

#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

namespace rondo::checkpoint {

/// A regular file, open for reading and mapped read-only. All const members may be called from several threads at once.
class mapped_file {
 public:
  /// A symbolic link as last component of the path is not followed; a FIFO, device or directory is refused without
  /// waiting for anything. Throws `io_error` when the system refuses, `format_error` for an empty file or one that is
  /// not regular.
  explicit mapped_file(const std::filesystem::path& path);
  mapped_file(const mapped_file&) = delete;
  mapped_file& operator=(const mapped_file&) = delete;
  ~mapped_file();

  /// The mapping. Touching a page that the disk cannot read, or behind the end of a file that has been shortened
  /// meanwhile, ends the process by a signal (SIGBUS). `require_readable` turns that into an error.
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept {
    return {static_cast<const std::byte*>(start_), size_};
  }

  /// Copies what begins at `offset` into `out` through the system, never through the mapping.
  /// Throws `io_error` for a bad sector or a lost network file, `format_error` when the file has become shorter.
  void read(std::uint64_t offset, std::span<std::byte> out) const;

  /// Reads the bytes from `begin` to `end` once and drops them; to be called before the mapping is touched there.
  /// Throws as `read` does.
  void require_readable(std::uint64_t begin, std::uint64_t end) const;

 private:
  void map();

  std::filesystem::path path_;
  int file_ = -1;
  void* start_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace rondo::checkpoint

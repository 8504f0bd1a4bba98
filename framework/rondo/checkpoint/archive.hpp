#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "rondo/checkpoint/text_table.hpp"

namespace rondo::checkpoint {

/// The table of records of a zip archive in memory, as far as checkpoints use zip: stored entries, with or without
/// zip64 and data descriptors. Nothing may precede, overlap or follow the archive's parts. Names and data are views
/// into the bytes given, which must outlive the archive.
class archive {
 public:
  struct entry {
    std::string_view path;
    std::uint64_t size;
    std::uint64_t header_offset;
    std::uint64_t limit;  ///< where the next entry or the directory begins
    std::uint32_t crc32;  ///< as recorded
  };

  /// Called with the first offset of a part of the file and the one behind it, before that part is touched. What it
  /// throws ends the reading.
  using guard = std::function<void(std::uint64_t begin, std::uint64_t end)>;

  /// Reads only the end records and the directory. `where` names the file in errors. Throws `format_error` for
  /// anything that is not such an archive: compressed or encrypted entries, equal names, overlapping entries, data
  /// outside the file, bytes behind the end.
  archive(std::span<const std::byte> file, std::string where, const guard& before = nullptr);

  [[nodiscard]] std::span<const std::byte> file() const noexcept { return file_; }
  [[nodiscard]] const std::string& where() const noexcept { return where_; }
  /// In the order of the directory.
  [[nodiscard]] const std::vector<entry>& entries() const noexcept { return entries_; }
  /// Pointer to the entry of this name, or nullptr.
  [[nodiscard]] const entry* find(std::string_view path) const;
  /// The entry's bytes, not compared with their checksum. Throws `format_error` when the local header is damaged.
  [[nodiscard]] std::span<const std::byte> data(const entry& which) const;
  /// Whether the writer recorded checksums at all (PyTorch can be told not to).
  [[nodiscard]] bool has_checksums() const noexcept { return has_checksums_; }

 private:
  struct directory {
    std::uint64_t offset;
    std::uint64_t size;
    std::uint64_t count;
  };
  [[noreturn]] void fail(std::uint64_t offset, const std::string& problem) const;
  template <class T>
  [[nodiscard]] T number_at(std::uint64_t offset) const;
  [[nodiscard]] std::string_view text_at(std::uint64_t offset, std::uint64_t size) const;

  [[nodiscard]] directory read_end() const;
  [[nodiscard]] std::optional<directory> read_end64(std::uint64_t end) const;
  void read_directory(const directory& where);
  void read_zip64_field(std::uint64_t offset, std::uint64_t size, std::uint64_t& full_size, std::uint64_t& stored_size,
                        std::uint64_t& header_offset) const;
  void find_limits(std::uint64_t directory_offset);

  std::span<const std::byte> file_;
  std::string where_;
  /// The entries' names, which must outlive a mapped file that becomes shorter.
  std::shared_ptr<const std::string> names_;
  std::vector<entry> entries_;
  text_table paths_;  // numbers them as `entries_` does
  bool has_checksums_ = false;
};

}  // namespace rondo::checkpoint

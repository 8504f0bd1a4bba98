#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "rondo/checkpoint/manifest.hpp"

namespace rondo::checkpoint {

/// The data of a record of this many bytes or more begins at a multiple of this many bytes in the file, so that it can
/// be mapped, and read or written past the page cache.
inline constexpr std::uint64_t record_alignment = 4096;
/// The same for records below that size, of which there may be very many: a cache line.
inline constexpr std::uint64_t small_record_alignment = 64;

/// A record before it has a place: its name without the root, and its size in bytes.
struct record_size {
  std::string name;
  std::uint64_t size = 0;
};

/// Where every byte of a checkpoint file goes. The file is a zip archive of stored (uncompressed) records with data
/// descriptors, in zip64 form where a number needs it. The plan follows from the root and the records alone; together
/// with the records' CRC-32s it gives every byte that is not a record's data, so a verifier can compare them all.
class plan {
 public:
  struct record {
    std::string_view path;  ///< root + "/" + name; the plan and its copies own it
    std::uint64_t size;
    std::uint64_t header_offset;
    std::uint64_t data_offset;

    [[nodiscard]] std::uint64_t descriptor_offset() const noexcept { return data_offset + size; }
  };

  /// Throws `option_error` when root or a name is empty, too long or not UTF-8, when the root holds a '/', when two
  /// names are equal, or when the sizes are impossible. Files of `format_version` 1 align small records as large ones.
  plan(std::string_view root, std::span<const record_size> records, std::int64_t format_version = manifest_version);

  [[nodiscard]] const std::vector<record>& records() const noexcept { return records_; }
  /// Where the central directory begins: behind the last record's data descriptor.
  [[nodiscard]] std::uint64_t directory_offset() const noexcept { return directory_offset_; }
  [[nodiscard]] std::uint64_t file_size() const noexcept { return file_size_; }

  /// Gives a record another size, and with it all that follow another place. Throws `option_error` as the constructor.
  void resize(std::size_t record, std::uint64_t size);

  /// How long the pieces below are.
  [[nodiscard]] static std::uint64_t header_size(const record& which) noexcept {
    return which.data_offset - which.header_offset;
  }
  [[nodiscard]] static std::uint64_t descriptor_size(const record& which) noexcept;
  [[nodiscard]] std::uint64_t directory_size() const noexcept { return file_size_ - directory_offset_; }
  /// Where the CRC-32 stands in a descriptor and in a record's directory entry.
  static constexpr std::uint64_t descriptor_checksum = 4;
  static constexpr std::uint64_t entry_checksum = 16;
  /// How long a record's entry in the directory is.
  [[nodiscard]] static std::uint64_t entry_size(const record& which) noexcept;

  /// Appends what stands between `header_offset` and `data_offset` of a record: header, name and padding.
  void append_header(std::vector<std::byte>& out, const record& which) const;
  /// Appends what follows the data of a record.
  void append_descriptor(std::vector<std::byte>& out, const record& which, std::uint32_t crc32) const;
  /// Appends central directory and end records; `crc32s` in the order of the records.
  void append_directory(std::vector<std::byte>& out, std::span<const std::uint32_t> crc32s) const;

  /// The same into memory that has room for them.
  void write_header(std::byte* to, const record& which) const;
  void write_descriptor(std::byte* to, const record& which, std::uint32_t crc32) const;
  void write_directory(std::byte* to, std::span<const std::uint32_t> crc32s) const;

 private:
  void arrange();

  std::shared_ptr<const std::string> paths_;
  std::int64_t format_version_;
  std::vector<record> records_;
  std::uint64_t directory_offset_ = 0;
  std::uint64_t entries_size_ = 0;
  std::uint64_t file_size_ = 0;
};

}  // namespace rondo::checkpoint

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace rondo::checkpoint {

/// Every record's data begins at a multiple of this many bytes in the file, so that it can be mapped, and read or
/// written past the page cache.
inline constexpr std::uint64_t record_alignment = 4096;

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
    std::string path;  ///< root + "/" + name
    std::uint64_t size;
    std::uint64_t header_offset;
    std::uint64_t data_offset;

    [[nodiscard]] std::uint64_t descriptor_offset() const noexcept { return data_offset + size; }
  };

  /// Throws `option_error` when root or a name is empty, too long or not UTF-8, when the root holds a '/', when two
  /// names are equal, or when the sizes are impossible.
  plan(std::string_view root, std::span<const record_size> records);

  [[nodiscard]] const std::vector<record>& records() const noexcept { return records_; }
  /// Where the central directory begins: behind the last record's data descriptor.
  [[nodiscard]] std::uint64_t directory_offset() const noexcept { return directory_offset_; }
  [[nodiscard]] std::uint64_t file_size() const noexcept { return file_size_; }

  /// Appends what stands between `header_offset` and `data_offset` of a record: header, name and padding.
  void append_header(std::vector<std::byte>& out, const record& which) const;
  /// Appends what follows the data of a record.
  void append_descriptor(std::vector<std::byte>& out, const record& which, std::uint32_t crc32) const;
  /// Appends central directory and end records; `crc32s` in the order of the records.
  void append_directory(std::vector<std::byte>& out, std::span<const std::uint32_t> crc32s) const;

 private:
  std::vector<record> records_;
  std::uint64_t directory_offset_ = 0;
  std::uint64_t directory_size_ = 0;
  std::uint64_t file_size_ = 0;
};

}  // namespace rondo::checkpoint

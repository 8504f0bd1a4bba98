#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "rondo/checkpoint/archive.hpp"
#include "rondo/checkpoint/manifest.hpp"
#include "rondo/checkpoint/mapped_file.hpp"
#include "rondo/checkpoint/tensor_descriptor.hpp"

namespace rondo::checkpoint {

/// One checkpoint file, written by Rondo or by Python's `torch.save`. Opening reads the directory, the pickle and the
/// manifest, whose checksums are compared; the tensors' bytes are only mapped. `verify` (verify.hpp) checks the rest.
/// All const members may be called from several threads at once. Spans are valid as long as the reader lives.
class reader {
 public:
  /// Maps the file read-only. A symbolic link as last component of the path is not followed. The file must not be
  /// shortened while it is mapped; Rondo itself only ever replaces files by renaming. Throws `io_error` when the
  /// system refuses, `format_error` when this is not a sound checkpoint. Opening reads what it needs through the
  /// system. A page of the tensors' bytes that the disk cannot read is a signal (SIGBUS) when it is touched;
  /// `require_readable` finds it before, and `read` reports it as an error.
  [[nodiscard]] static reader open(const std::filesystem::path& path);
  /// The same from memory. `where` names the source in errors.
  [[nodiscard]] static reader from_bytes(std::vector<std::byte> file, std::string where);
  /// The same from memory that the caller keeps alive.
  [[nodiscard]] static reader from_span(std::span<const std::byte> file, std::string where);
  /// The same for an image in memory whose checksums nobody has computed yet (see `seal`), and which nobody compares.
  [[nodiscard]] static reader from_image(std::span<const std::byte> image, std::string where);

  /// The file's name, as in errors.
  [[nodiscard]] const std::string& where() const noexcept { return archive_.where(); }
  /// The folder name inside the archive.
  [[nodiscard]] const std::string& root() const noexcept { return root_; }
  [[nodiscard]] const tree& state() const noexcept { return state_; }
  /// Nothing when the file was not written by Rondo.
  [[nodiscard]] const std::optional<manifest>& info() const noexcept { return manifest_; }

  /// `name` is without the root, as "data/0".
  [[nodiscard]] bool has_record(std::string_view name) const;
  /// The record's bytes. Throws `format_error` when there is none or its header is damaged.
  [[nodiscard]] std::span<const std::byte> record(std::string_view name) const;
  /// The whole storage that the tensor views, little-endian; in Rondo's files it is aligned as `plan` says.
  /// Throws `format_error` when it is missing or too small, or when the view leads outside it.
  [[nodiscard]] std::span<const std::byte> storage(const tensor_descriptor& tensor) const;

  /// Copies what begins at `offset` in the file into `out`: through the system for a file that was opened, so that a
  /// bad sector is an error and not a signal. Throws `io_error` for such a sector, `format_error` when the file ends
  /// before.
  void read(std::uint64_t offset, std::span<std::byte> out) const;
  /// The CRC-32 of that many bytes from `offset` on, read likewise in pieces that fit the CPU's cache.
  [[nodiscard]] std::uint32_t checksum(std::uint64_t offset, std::uint64_t size) const;
  /// Reads the bytes from `begin` to `end` once, after which spans of them can be touched. Throws as `read` does; does
  /// nothing for a file in memory.
  void require_readable(std::uint64_t begin, std::uint64_t end) const;

  /// The archive below, for tools and verification.
  [[nodiscard]] const archive& records() const noexcept { return archive_; }

 private:
  /// What keeps the bytes alive: a file, memory, or nothing.
  struct source {
    std::optional<mapped_file> file;
    std::vector<std::byte> memory;
  };
  enum class checksums { known, unknown };
  reader(std::shared_ptr<const source> owner, std::span<const std::byte> bytes, std::string where,
         checksums state = checksums::known);
  [[nodiscard]] archive open_archive(std::span<const std::byte> bytes, std::string where) const;
  [[nodiscard]] const archive::entry& entry_of(std::string_view name) const;
  [[nodiscard]] std::span<const std::byte> data_of(const archive::entry& place) const;
  [[nodiscard]] std::span<const std::byte> checked_record(std::string_view name) const;

  std::shared_ptr<const source> owner_;
  archive archive_;
  checksums checksums_;
  std::string root_;
  std::optional<manifest> manifest_;
  tree state_;
};

/// Reads a file once from beginning to end. Throws `io_error` for a bad sector or a lost network file, where touching a
/// mapped page would end the process by a signal. To be called before `verify` of a file that matters.
void require_readable(const std::filesystem::path& path);

}  // namespace rondo::checkpoint

#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "rondo/checkpoint/byte_sink.hpp"
#include "rondo/checkpoint/encoder.hpp"
#include "rondo/checkpoint/mapped_file.hpp"
#include "rondo/checkpoint/tensor_descriptor.hpp"

/// The safetensors format (https://huggingface.co/docs/safetensors): eight little-endian bytes with the length of a
/// JSON header, the header, the tensors' bytes. It holds named dense tensors and a table of texts, and no checksums.
namespace rondo::checkpoint {

/// Texts by name, as in the header's `__metadata__`.
using safetensors_metadata = std::map<std::string, std::string>;

/// The metadata under which Rondo keeps what a flat table of tensors cannot say.
inline constexpr std::string_view safetensors_state_key = "rondo";

/// One safetensors file. Opening reads and checks the header; the tensors' bytes are only mapped. All const members may
/// be called from several threads at once. Spans are valid as long as this object or a copy of it lives.
class safetensors_file {
 public:
  /// Maps the file as `mapped_file` does. Throws `io_error` when the system refuses, and `format_error` for a file that
  /// is not as the format has it: a header that is longer than 100,000,000 bytes or than the file, not JSON, of another
  /// shape or with equal names; tensors that overlap, leave gaps, lead outside the file, do not cover it or whose size
  /// is not that of their shape. Also for dtypes that `scalar_type` has not, such as F8_E4M3 or U16.
  [[nodiscard]] static safetensors_file open(const std::filesystem::path& path);
  /// The same from memory. `where` names the source in errors.
  [[nodiscard]] static safetensors_file from_bytes(std::vector<std::byte> file, std::string where);
  /// The same from memory that the caller keeps alive.
  [[nodiscard]] static safetensors_file from_span(std::span<const std::byte> file, std::string where);

  /// The file's name, as in errors.
  [[nodiscard]] const std::string& where() const noexcept { return where_; }
  /// What was saved. In a file of Rondo's this is the tree that was given to `safetensors_encoder`, but for tensors
  /// that shared a storage or were strided: each is contiguous and has a storage of its own. In others it is
  /// `tensors()`; names are not cut at their dots.
  [[nodiscard]] const tree& state() const noexcept { return state_; }
  /// Every tensor by its name in the file, in the order of their bytes. The storage keys are "0", "1", ….
  [[nodiscard]] const tree::dict& tensors() const noexcept { return tensors_; }
  /// The header's texts, `safetensors_state_key` included.
  [[nodiscard]] const safetensors_metadata& metadata() const noexcept { return metadata_; }

  /// The tensor's bytes, little-endian, aligned to nothing. Throws `format_error` for a tensor that is not of this
  /// file.
  [[nodiscard]] std::span<const std::byte> storage(const tensor_descriptor& tensor) const;
  /// All storages, in the form that `encoder` takes together with `state()`.
  [[nodiscard]] std::vector<checkpoint::storage> storages() const;

  /// The whole file. The bytes of tensors point into it.
  [[nodiscard]] std::span<const std::byte> file() const noexcept { return bytes_; }
  /// Copies what begins at `offset` in the file into `out`: through the system for a file that was opened, so that a
  /// bad sector is an error and not a signal. Throws `io_error` for such a sector, `format_error` when the file ends
  /// before.
  void read(std::uint64_t offset, std::span<std::byte> out) const;
  /// Reads the whole file once through the system. Throws `io_error` for a bad sector, where touching a span would end
  /// the process by a signal; does nothing for a file in memory.
  void require_readable() const;

 private:
  struct source {
    std::optional<mapped_file> file;
    std::vector<std::byte> memory;
  };
  safetensors_file(std::shared_ptr<const source> owner, std::span<const std::byte> bytes, std::string where);

  std::shared_ptr<const source> owner_;
  std::span<const std::byte> bytes_;
  std::string where_;
  safetensors_metadata metadata_;
  tree::dict tensors_;
  /// By storage key.
  std::vector<std::span<const std::byte>> data_;
  tree state_;
};

/// Writes one safetensors file. Construction describes it completely; writing is one pass over the bytes. Not tied to a
/// thread; `write` may be called again, and from several threads at once.
///
/// Tensors in nested dicts, lists and tuples get dotted names ("models.main.0.weight"; a tree that is one tensor:
/// "tensor"). Every tensor is written contiguously, so that one that shares its storage with others is there once for
/// each, and comes back on its own. Everything else goes as JSON into the metadata `safetensors_state_key`, from which
/// `safetensors_file` rebuilds the tree; other programs see the flat names only. Tensors with larger elements come
/// first, so that all are aligned to their elements.
class safetensors_encoder {
 public:
  /// Gives the whole storage that a tensor views, as `reader::storage` does. It stays the caller's.
  using storage_source = std::function<std::span<const std::byte>(const tensor_descriptor&)>;

  /// `metadata` is added to the header; "format" is "pt" unless given. Only the sizes of the storages are looked at
  /// here, so the bytes may be filled in between construction and `write`. Throws `state_error` naming the path of
  /// what the format cannot hold: two tensors whose dotted names are equal, one named "__metadata__", complex128, an
  /// impossible tensor or one whose storage is too small, text that is not UTF-8, a tree of more than 2^24 values or
  /// nested deeper than `max_tree_depth`, a header longer than 100,000,000 bytes; `option_error` when `metadata` has
  /// `safetensors_state_key`; and whatever `storages` throws.
  safetensors_encoder(const tree& state, const storage_source& storages, safetensors_metadata metadata = {});
  /// The same with storages by their keys. Throws `state_error` for a tensor whose storage is missing.
  safetensors_encoder(const tree& state, const std::vector<storage>& storages, safetensors_metadata metadata = {});

  /// Exactly how many bytes `write` will give to its sink.
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }

  /// Streams the file from its first byte to its last. Contiguous tensors reach the sink without being copied, others
  /// in pieces of at most 256 KiB. What `sink` throws passes through.
  void write(const byte_sink& sink) const;

 private:
  struct part {
    std::string name;
    tensor_descriptor tensor;
    std::span<const std::byte> storage;
  };
  void encode_header(const safetensors_metadata& metadata);

  std::vector<part> parts_;
  std::vector<std::byte> header_;
  std::uint64_t size_ = 0;
};

}  // namespace rondo::checkpoint

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "rondo/checkpoint/byte_sink.hpp"
#include "rondo/checkpoint/image.hpp"
#include "rondo/checkpoint/layout.hpp"
#include "rondo/checkpoint/manifest.hpp"
#include "rondo/checkpoint/tensor_descriptor.hpp"

namespace rondo::checkpoint {

/// The bytes that the tensors with this storage key view, little-endian. They stay the caller's.
struct storage {
  std::string key;
  std::span<const std::byte> data;
  /// How many bytes there will be, where `data` is empty because they cannot be shown (those of another device). Such a
  /// file can be built as an image, but not be written by `encoder::write`.
  std::uint64_t promised_size = 0;

  [[nodiscard]] std::uint64_t size() const noexcept { return data.empty() ? promised_size : data.size(); }
};

/// Gives bytes of storage `i` (in the order given to `encoder`), from `offset` on, as many as `out` has room for.
using storage_source = std::function<void(std::size_t i, std::uint64_t offset, std::span<std::byte> out)>;

/// Writes one checkpoint file. Construction describes it completely (everything but the storages' bytes is encoded,
/// every offset is known); writing is one pass over the bytes. Not tied to a thread; `write` may be called again, and
/// from several threads at once.
class encoder {
 public:
  /// Encodes `state`, whose tensors view `storages`. `root` is the folder name inside the archive; PyTorch uses the
  /// file's name without its ending. Only the sizes of the storages are looked at here, so the bytes may be filled in
  /// between construction and `write`.
  /// Throws `state_error` for a tree that cannot be encoded, for a tensor whose storage is missing, has another size
  /// or is viewed under another dtype elsewhere; `option_error` for an impossible root, or for storage keys that are
  /// impossible or occur twice.
  encoder(const tree& state, std::vector<storage> storages, snapshot_info info, std::string_view root = "archive");

  /// Exactly how many bytes `write` will give to its sink.
  [[nodiscard]] std::uint64_t size() const noexcept { return plan_.file_size(); }
  [[nodiscard]] const plan& layout() const noexcept { return plan_; }

  /// Streams the file from its first byte to its last, computing checksums on the way. Small pieces reach the sink
  /// joined, storages without being copied, in pieces that fit the CPU's cache. Throws `std::logic_error` when a
  /// storage's bytes are only promised.
  void write(const byte_sink& sink) const;
  /// The same where bytes are only promised: `source` is asked for these, in the order of the file, in pieces. What it
  /// throws passes through.
  void write(const byte_sink& sink, const storage_source& source) const;

  // The other way is to build the file in memory and to write it later: `write_frame` and copies of the storages to
  // their offsets make an image, whose checksums `seal` (image.hpp) computes. It gives the same bytes as `write`.

  /// Fills in every byte of the file that is neither a storage's nor a checksum's; checksums become zeros (in the
  /// manifest '0' digits) until they are known. `image` has `size()` bytes and may hold anything before. Copies of the
  /// storages may already be in it, or be put there from other threads at the same time.
  void write_frame(std::span<std::byte> image) const;
  /// Where in the file the bytes of storage `i` (in the order given to the constructor) begin.
  [[nodiscard]] std::uint64_t storage_offset(std::size_t i) const {
    return plan_.records()[first_storage + i].data_offset;
  }
  /// How many storages there are.
  [[nodiscard]] std::size_t storage_count() const noexcept { return storages_.size(); }
  /// What `seal` must know, one for every record.
  [[nodiscard]] std::vector<checksum_spot> checksum_spots() const;
  /// How many those are.
  [[nodiscard]] std::size_t checksum_count() const noexcept { return plan_.records().size(); }

 private:
  friend class planner;
  /// All that follows from the tree.
  struct description {
    std::vector<std::byte> pickle;
    std::vector<storage> storages;
    std::string tensors;  ///< the manifest's table, see `tensor_table`
  };
  encoder(description about, const snapshot_info& info, std::string_view root);
  [[nodiscard]] static description describe(const tree& state, std::vector<storage> storages);
  /// Takes over other scalars and another info for the same tensors.
  void renew(std::vector<std::byte> pickle, const snapshot_info& info);

  // Storages come behind data.pkl and byteorder.
  static constexpr std::size_t first_storage = 2;

  [[nodiscard]] std::string begin_manifest(const snapshot_info& info);
  [[nodiscard]] std::vector<record_size> lay_out_manifest(const snapshot_info& info, std::string_view tensors);
  [[nodiscard]] std::span<const std::byte> content(std::size_t record) const;
  [[nodiscard]] bool is_storage(std::size_t record) const noexcept {
    return record >= first_storage && record - first_storage < storages_.size();
  }
  [[nodiscard]] std::size_t digits_offset(std::size_t record) const;

  std::vector<std::byte> pickle_;
  std::vector<storage> storages_;
  // The manifest without checksums. Its head tells of the info and of the first record, data.pkl, which may change; the
  // rest does not. Where the checksums of the other records go is counted from the end of the head.
  std::string manifest_;
  std::size_t head_size_ = 0;
  std::size_t pickle_digits_ = 0;
  std::vector<std::size_t> digits_;
  plan plan_;
};

}  // namespace rondo::checkpoint

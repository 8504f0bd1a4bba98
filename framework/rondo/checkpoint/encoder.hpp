#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "rondo/checkpoint/byte_sink.hpp"
#include "rondo/checkpoint/layout.hpp"
#include "rondo/checkpoint/manifest.hpp"
#include "rondo/checkpoint/tensor_descriptor.hpp"

namespace rondo::checkpoint {

/// The bytes that the tensors with this storage key view, little-endian. They stay the caller's.
struct storage {
  std::string key;
  std::span<const std::byte> data;
};

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
  /// joined, storages without being copied, in pieces that fit the CPU's cache.
  void write(const byte_sink& sink) const;

 private:
  struct source {
    std::string name;
    std::span<const std::byte> data;
  };
  [[nodiscard]] std::vector<source> sources() const;
  [[nodiscard]] std::vector<record_size> record_sizes() const;

  std::vector<std::byte> pickle_;
  std::vector<storage> storages_;
  manifest manifest_;
  plan plan_;
};

}  // namespace rondo::checkpoint

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "rondo/checkpoint/byte_sink.hpp"
#include "rondo/checkpoint/encoder.hpp"
#include "rondo/checkpoint/manifest.hpp"
#include "rondo/checkpoint/safetensors.hpp"
#include "rondo/checkpoint/tensor_descriptor.hpp"

namespace rondo::checkpoint {

/// A file in the making, as long as what it is made of lives.
struct encoded_file {
  /// In bytes; 0 when nobody knows before it is written.
  std::uint64_t size = 0;
  /// Hands the file to `sink` from its first byte to its last. What `sink` throws passes through.
  std::function<void(const byte_sink& sink)> write;
};

/// How a state becomes a file, without LibTorch, so that a small helper process can do it. Not tied to a thread; all
/// functions may be called from several threads at once.
class file_format {
 public:
  file_format() = default;
  file_format(const file_format&) = delete;
  file_format& operator=(const file_format&) = delete;
  virtual ~file_format() = default;

  /// The file that holds `state`, whose tensors view `storages`. The bytes of these are read while it is written.
  /// `info` is for formats that say something about the snapshot. Throws `state_error` for what the format cannot hold.
  [[nodiscard]] virtual encoded_file encode(const tree& state, std::vector<storage> storages,
                                            const snapshot_info& info) const = 0;

  /// A text of which `described_format` makes the same format.
  [[nodiscard]] virtual std::string description() const = 0;
};

/// Rondo's own format (docs/file_format.md).
[[nodiscard]] std::shared_ptr<const file_format> checkpoint_format();

/// The same file without what LibTorch's `torch::pickle_load` cannot read: refuses bytes.
[[nodiscard]] std::shared_ptr<const file_format> libtorch_format();

/// See `safetensors_encoder`.
[[nodiscard]] std::shared_ptr<const file_format> safetensors_format(safetensors_metadata metadata = {});

/// Files of another format, see `compressed`. Throws as that does.
[[nodiscard]] std::shared_ptr<const file_format> zstd_format(std::shared_ptr<const file_format> content, int level,
                                                             int threads);

/// Throws `format_error` for what is no description of a format.
[[nodiscard]] std::shared_ptr<const file_format> described_format(std::string_view description);

/// A file as one Zstandard frame with a checksum of the content. `level`: 1 (fast) to 22 (small), or a negative one;
/// `threads` compress beside the calling one if they are more than one. `check_compression` says whether both exist.
[[nodiscard]] encoded_file compressed(encoded_file content, int level, int threads);
/// Throws `option_error` for a level that there is not, and for less than one thread.
void check_compression(int level, int threads);
/// The content of such a frame. `where` names the source in errors. Throws `format_error` for one that is damaged, cut
/// off or followed by something.
[[nodiscard]] std::vector<std::byte> decompressed(std::span<const std::byte> file, const std::string& where);

/// The state in the image of a checkpoint (see image.hpp), whose checksums nobody has computed yet, in another format.
/// Nothing is copied: the image must live and stay as it is until the file has been written. `where` names it in
/// errors. Throws as `reader::from_image` and as the format.
[[nodiscard]] encoded_file encode_image(const file_format& format, std::span<const std::byte> image, std::string where);

}  // namespace rondo::checkpoint

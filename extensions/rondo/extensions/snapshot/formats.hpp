#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "rondo/checkpoint/file_format.hpp"
#include "rondo/checkpoint/safetensors.hpp"
#include "rondo/state/value.hpp"
#include "rondo/writing/savefun.hpp"

/// File formats for snapshots, as values that writers take:
///
///     loop | snapshot({.filename = "snapshot_iter_{iteration}.safetensors",
///                      .autoload = true,
///                      .writer = writers::thread({.savefun = formats::safetensors()})});
namespace rondo::formats {

/// How a state becomes a file, and a file a state. A writer takes it as its `savefun`, and `autoload` then needs no
/// `loadfun`. All functions run on the calling thread, and may be called from several threads at once.
struct format {
  /// The file that holds `state`, as long as that lives. Tensors on the CPU are not copied, others are. Throws
  /// `state_error` for a state that the format cannot hold.
  std::function<checkpoint::encoded_file(const state::value& state)> encode;
  /// The state in a file, with tensors on the CPU that own their memory. Throws `format_error` or `io_error` for a file
  /// that is not sound.
  writing::loadfun load;
  /// The same from memory; `where` names the source in errors.
  std::function<state::value(std::vector<std::byte> file, std::string where)> parse;
  /// What `encode` does, if that is one of Rondo's formats: writers with processes then need no registered function.
  std::shared_ptr<const checkpoint::file_format> built_in = nullptr;
  /// Rondo's own, which writers write by themselves, with all that a snapshot says about itself.
  bool is_rondos_own = false;

  /// Writes a file at a path at which nothing exists; brings nothing to stable storage, which writers do.
  void save(const writing::path& file, const state::value& state) const;

  operator writing::savefun() const;
};

/// Rondo's own (docs/file_format.md): the default of writers, every byte covered by checksums. Wrapped by another one,
/// and written by a simple writer, it says of the snapshot only its iteration, where the state is that of a loop.
[[nodiscard]] format checkpoint();

/// For programs that know LibTorch only: `torch::pickle_load` reads it, and so do Python's `torch.load`, with
/// `weights_only` as well, and Rondo with its checksums. The files of `checkpoint` are of this kind unless the state
/// has bytes in it, which LibTorch has not: these are refused here.
[[nodiscard]] format libtorch();

/// safetensors: named tensors for Python and for serving, and the tree around them as metadata. `metadata` is added to
/// the header of every file. Tied weights are written for each of their names and are separate after loading into
/// nothing; loaded into a module that ties them, they are tied as ever. Tensors of dtype complex128, among others, are
/// refused (see `checkpoint::safetensors_encoder`). What another program wrote is a dict of tensors. There are no
/// checksums, so a changed bit of a tensor's data goes unnoticed.
[[nodiscard]] format safetensors(checkpoint::safetensors_metadata metadata = {});

/// Files of another format, compressed as a whole by Zstandard, which `zstd -d` unpacks. `level`: 1 (fast) to 22
/// (small), or a negative one, faster still; `threads` compress beside the writer's own if they are more than one. The
/// checksum of the content is checked by loading, which takes as much memory as the content beside the state. Throws
/// `option_error` for a level that there is not, and for less than one thread.
[[nodiscard]] format zstd(format content, int level = 3, int threads = 1);

}  // namespace rondo::formats

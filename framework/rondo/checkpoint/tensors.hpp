#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "rondo/checkpoint/encoder.hpp"
#include "rondo/checkpoint/reader.hpp"
#include "rondo/checkpoint/safetensors.hpp"
#include "rondo/state/value.hpp"

/// Between state trees with LibTorch's tensors and the file codec.
namespace rondo::checkpoint {

/// A storage that tensors of a state tree view.
struct described_storage {
  /// As in the tree's descriptors: "0", "1", … in the order of the tree.
  std::string key;
  /// Dotted path of the first tensor that views it.
  std::string name;
  /// That tensor, which keeps the storage alive.
  at::Tensor tensor;
  /// How many bytes of the storage go into the file.
  std::uint64_t size = 0;
  /// The bytes: the live memory for tensors on the CPU, a copy made by `describe` for others.
  std::span<const std::byte> data;
  /// Owns the copy; undefined where `data` is live memory.
  at::Tensor copy;
};

/// A state tree in the terms of the codec.
struct described {
  checkpoint::tree tree;
  std::vector<described_storage> storages;

  /// What `encoder` takes. Valid as long as this object and the sizes of the live tensors do not change.
  [[nodiscard]] std::vector<storage> views() const;
};

/// Describes `state` for `encoder`. No bytes of CPU tensors are copied: `data` shows the live memory, so what is
/// written is what it holds then. A storage that several tensors view (tied weights, slices) is there once and in full,
/// as in Python. Storages on other devices are copied to the CPU; tensors with pending conjugation are carried out
/// first. Undefined tensors become None. Autograd information is not kept. Throws `state_error` with the path of a
/// tensor that a file cannot hold: sparse, quantized, without data, or of a dtype without a storage class in PyTorch.
/// The time is linear in the number of tensors, whatever their sizes.
[[nodiscard]] described describe(const state::value& state);

/// The whole state in `file`. Tensors are on the CPU and own their memory, so the file may go; those that shared a
/// storage share one again. Checksums are not compared (see `verify`). The file is read through the system on up to
/// `at::get_num_threads()` threads. Throws `format_error` for a damaged file, `io_error` for one that cannot be read.
[[nodiscard]] state::value materialize(const reader& file);

/// The same in one pass with `verify`: every byte of the file is read once and checked, and nothing is returned unless
/// all are sound. Throws `format_error` naming the damaged record.
[[nodiscard]] state::value materialize_verified(const reader& file);

/// The whole state in `file`, without copying: tensors refer to the bytes of the file, so they are valid as long as
/// these are, and must not be changed. Checksums are not compared. Throws `format_error` for a damaged file.
[[nodiscard]] state::value view_state(const reader& file);

/// The whole state in a safetensors file, likewise. The format has no checksums; its structure was checked by opening.
[[nodiscard]] state::value materialize(const safetensors_file& file);

/// One tensor, by the dotted path of its keys and list positions, such as "models.main.0.weight". Only its own elements
/// are read; the tensor is contiguous, on the CPU and owns its memory.
/// Throws `state_error` when there is no tensor of that name, `format_error` for a damaged file.
[[nodiscard]] at::Tensor load_tensor(const reader& file, std::string_view name);

/// How much of a file `load_into` checks.
enum class load_checks {
  /// Nothing beyond what opening has checked.
  none,
  /// The checksums of the records from which tensors are loaded. The rest of the file is not read.
  loaded,
  /// Every byte of the file, as `verify` does.
  whole_file,
};

/// Loads tensors of a file into tensors that exist, without allocating others where it can: `destinations` is a dict,
/// possibly of dicts, of tensors; their dotted names are looked up in the file as `load_tensor` does. Each byte is read
/// once and its checksum computed on the way, on up to `at::get_num_threads()` threads. Tensors that are contiguous in
/// the file and here, on the CPU and of the same dtype are read in place; others go through a temporary and `copy_`,
/// which converts the dtype where none of its values is lost in kind (`c10::canCast`). Autograd does not record it.
///
/// Names, shapes, dtypes and, with `load_checks::whole_file`, everything but the bytes of the tensors themselves is
/// checked before anything is changed: `state_error` lists all tensors that do not fit. If the bytes then turn out to
/// be damaged or unreadable (`format_error` naming the record, `io_error`), the destinations may be partly overwritten
/// and must not be used. Who cannot afford that calls `verify` before, at the price of a second pass, or takes
/// `materialize_verified`, at the price of the memory.
void load_into(const reader& file, const state::dict& destinations, load_checks checks = load_checks::whole_file);

}  // namespace rondo::checkpoint

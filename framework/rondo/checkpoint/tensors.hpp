#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "rondo/checkpoint/encoder.hpp"
#include "rondo/checkpoint/reader.hpp"
#include "rondo/state/value.hpp"

/// Between state trees with LibTorch's tensors and the file codec.
namespace rondo::checkpoint {

/// A storage that tensors of a state tree view.
struct described_storage {
  /// As in the tree's descriptors: "0", "1", … in the order of the tree.
  std::string key;
  /// Dotted path of the first tensor that views it.
  std::string name;
  /// That tensor, which keeps a storage on the CPU alive.
  at::Tensor tensor;
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
/// storage share one again. Checksums are not compared (see `verify`). Throws `format_error` for a damaged file.
[[nodiscard]] state::value materialize(const reader& file);

/// One tensor, by the dotted path of its keys and list positions, such as "models.main.0.weight". Only its own elements
/// are read; the tensor is contiguous, on the CPU and owns its memory.
/// Throws `state_error` when there is no tensor of that name, `format_error` for a damaged file.
[[nodiscard]] at::Tensor load_tensor(const reader& file, std::string_view name);

}  // namespace rondo::checkpoint

#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "rondo/checkpoint/tensor_view.hpp"
#include "rondo/checkpoint/tensors.hpp"
#include "rondo/state/position_index.hpp"

namespace rondo::checkpoint {

/// The storage type of files for tensors of a dtype, or nothing.
[[nodiscard]] std::optional<scalar_type> file_type(at::ScalarType type) noexcept;

/// Whether `t` waits for a conjugation or negation that its bytes do not show yet.
[[nodiscard]] inline bool is_pending(const at::Tensor& t) { return t.is_conj() || t.is_neg(); }
/// `t` with those carried out, in memory of its own.
[[nodiscard]] at::Tensor carried_out(const at::Tensor& t);

/// Shows the memory of `storage.tensor` in `storage.data` if the CPU can read it.
void show_memory(described_storage& storage);

/// The storages of a state tree's tensors, numbered in the order in which they come.
class live_storages {
 public:
  /// A file can show a storage under one dtype only, so each dtype makes a storage of its own.
  struct identity {
    const void* storage;
    at::ScalarType type;
    bool operator==(const identity&) const = default;
  };
  [[nodiscard]] static identity identity_of(const at::Tensor& t) {
    return {t.storage().unsafeGetStorageImpl(), t.scalar_type()};
  }
  [[nodiscard]] static std::size_t hash_of(const identity& id) noexcept;

  /// Takes in a tensor that stands at `path`; it must be defined. The view lives as long as the tensor and, but for the
  /// storage's key, which may move when the next tensor is taken in, this object. Throws `state_error` for one that
  /// files cannot hold.
  tensor_view add(const at::Tensor& given, const std::string& path);

  [[nodiscard]] const std::vector<described_storage>& all() const noexcept { return storages_; }
  [[nodiscard]] std::vector<described_storage> take() && { return std::move(storages_); }

 private:
  void add_storage(const at::Tensor& tensor, const std::string& path);

  std::vector<described_storage> storages_;
  std::vector<identity> identities_;
  state::position_index index_;
};

}  // namespace rondo::checkpoint

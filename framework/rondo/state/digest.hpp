#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "rondo/state/value.hpp"

namespace rondo::state {

/// A 128-bit fingerprint (XXH3) of state trees: equal contents give equal digests on every machine, and different ones
/// practically never do. It guards against accidents, not against forgers.
///
/// Types, keys, numbers, dtypes, shapes and the bytes of tensors count. Strides, devices, shared storages and the order
/// of dict keys do not. An undefined tensor counts as None, which is what a file makes of it.
class digest {
 public:
  /// The digest of nothing. Throws `std::bad_alloc`.
  digest();
  ~digest();
  digest(digest&&) noexcept;
  digest& operator=(digest&&) noexcept;

  /// Adds a tree. Tensors of other devices are copied to the CPU one at a time. Throws `state_error` with the key of a
  /// tensor without plain bytes (sparse, quantized); the digest is then of no use.
  digest& update(const value& v);
  /// Adds raw bytes.
  digest& update(std::span<const std::byte> bytes);

  /// What was added so far, as 32 hexadecimal digits.
  [[nodiscard]] std::string hex() const;

 private:
  class hasher;
  std::unique_ptr<hasher> hasher_;
};

/// The digest of one tree, as 32 hexadecimal digits. Throws as `digest::update` does.
[[nodiscard]] std::string digest_of(const value& v);

}  // namespace rondo::state

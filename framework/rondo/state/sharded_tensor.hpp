#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string_view>
#include <vector>

#include "rondo/state/value.hpp"

namespace rondo::state {

/// A part of a tensor: the box that begins at `offsets` (one for each dimension) and has the sizes of `tensor`.
struct tensor_piece {
  std::vector<std::int64_t> offsets;
  at::Tensor tensor;
};

/// One rank's view of a tensor that is spread over several ranks: what it is as a whole, and the parts that this rank
/// has (none is allowed). In a state tree it stands where the tensor would stand, as a dict with the one key `key`:
///
///     {"rondo.sharded": {"sizes": (1000, 10), "dtype": "float32", "pieces": [{"offsets": (0, 0), "tensor": …}]}}
///
/// Snapshots write the parts of all ranks, and give each rank those parts back that its present state asks for, also
/// when there are other ranks than before. In a state that only says which parts it wants, the tensors may be on the
/// meta device. Every rank lists every sharded tensor, and the parts of all ranks cover it without overlap.
struct sharded_tensor {
  static constexpr std::string_view key = "rondo.sharded";

  std::vector<std::int64_t> sizes;
  at::ScalarType dtype = at::kFloat;
  std::vector<tensor_piece> pieces;

  [[nodiscard]] value to_value() const;
  /// Whether `v` stands for a sharded tensor.
  [[nodiscard]] static bool is(const value& v);
  /// Throws `state_error` for what is none, or whose parts do not fit it: another dtype or number of dimensions, a box
  /// that leads outside.
  [[nodiscard]] static sharded_tensor from(const value& v);
};

}  // namespace rondo::state

#pragma once

#include <ATen/core/Tensor.h>

#include "rondo/state/tree.hpp"

/// The state tree over LibTorch's tensors, which `state_dict()` returns and `load_state_dict()` takes.
namespace rondo::state {

using value = basic_value<at::Tensor>;
using dict = value::dict;
using list = value::list;
using tuple = value::tuple;

/// Whether two trees hold the same: the same kinds, keys in the same order, numbers with the same bits (so NaN equals
/// itself and 0.0 differs from -0.0), and tensors of the same dtype, sizes and bytes. Strides, devices and shared
/// storages make no difference. Undefined tensors equal each other only. Tensors of other devices are copied to the CPU
/// for the comparison. Throws `state_error` for tensors without plain bytes (sparse, quantized).
[[nodiscard]] bool equal(const value& a, const value& b);

/// A copy that shares nothing with `v`: tensors are cloned (detached, same device, dense and contiguous). Tensors that
/// shared a storage no longer share one in the copy.
[[nodiscard]] value clone(const value& v);

}  // namespace rondo::state

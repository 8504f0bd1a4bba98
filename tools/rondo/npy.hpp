#pragma once

#include <string>
#include <string_view>

#include "rondo/checkpoint/tensor_descriptor.hpp"

namespace rondo::tool {

/// What stands before the elements of a tensor in a NumPy file (.npy, format version 1.0): the type, the shape, and
/// padding to a multiple of 64 bytes. Source: NumPy's documentation, `numpy.lib.format`.
///
/// NumPy has no bfloat16: such a tensor becomes uint16, the bits as they are. Throws `unusable_error` for more
/// dimensions than any NumPy has (64).
[[nodiscard]] std::string npy_header(const checkpoint::tensor_descriptor& tensor);

}  // namespace rondo::tool

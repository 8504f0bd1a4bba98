#pragma once

#include <string>

#include "rondo/checkpoint/tensor_descriptor.hpp"

namespace rondo::tool {

/// A leaf of a state tree on one line, as Python would show it and safe for a terminal: None, True, 0.1, 'text'. Long
/// text is cut short; bytes are told by their size, tensors and containers by their type and size.
[[nodiscard]] std::string value_text(const checkpoint::tree& node);

/// "float32 [16, 3]", with what else is worth knowing.
[[nodiscard]] std::string describe(const checkpoint::tensor_descriptor& tensor);

/// "[16, 3]".
[[nodiscard]] std::string shape_text(const checkpoint::tensor_descriptor& tensor);

}  // namespace rondo::tool

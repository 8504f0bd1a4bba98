#pragma once

#include <cstddef>
#include <functional>
#include <span>

namespace rondo::checkpoint {

/// Takes the next bytes of a file, in order and without gaps. The bytes are valid only during the call. What it
/// throws ends the writing and reaches the caller unchanged.
using byte_sink = std::function<void(std::span<const std::byte>)>;

}  // namespace rondo::checkpoint

#pragma once

#include <cstddef>
#include <span>

namespace rondo::writing::helper {

/// The helper program (main.cpp), an executable file, which the build puts into the library.
[[nodiscard]] std::span<const std::byte> program_image() noexcept;

}  // namespace rondo::writing::helper

#pragma once

#include <string_view>

namespace rondo {

/// Version of this library, "major.minor.patch". The build reads it from here.
inline constexpr std::string_view version = "0.1.0";

}  // namespace rondo

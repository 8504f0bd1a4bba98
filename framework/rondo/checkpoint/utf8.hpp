#pragma once

#include <string_view>

namespace rondo::checkpoint {

/// Whether `text` is UTF-8 as Python's "surrogatepass" has it: lone surrogates are allowed, overlong forms and code
/// points above U+10FFFF are not.
[[nodiscard]] bool is_utf8(std::string_view text) noexcept;

}  // namespace rondo::checkpoint

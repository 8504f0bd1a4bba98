#pragma once

#include <iosfwd>
#include <string_view>

/// How extensions share a terminal. Whoever draws something that moves (a progress bar) leaves the cursor at the first
/// column of its first line; whoever prints a line that stays writes `clear_below` before it.
namespace rondo::extensions {

/// Erases from the cursor to the end of the screen (ECMA-48, ED).
inline constexpr std::string_view clear_below = "\x1b[J";

/// Whether `out` is `std::cout`, `std::cerr` or `std::clog`, and that goes to a terminal which understands control
/// sequences (the environment variable TERM is set and not "dumb").
[[nodiscard]] bool is_terminal(const std::ostream& out);

}  // namespace rondo::extensions

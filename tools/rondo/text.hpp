#pragma once

#include <cstdint>
#include <string>
#include <string_view>

/// How things read on a terminal. Whatever comes out of a file goes through `printable` first.
namespace rondo::tool {

/// The text with everything that a terminal would obey instead of show written as Python would: "\n", "\x1b",
/// "\u202e". That is control characters, marks that turn the direction of writing, bytes that are not UTF-8, and the
/// backslash itself.
[[nodiscard]] std::string printable(std::string_view text);

/// `printable`, at most about `limit` bytes of it, then "…".
[[nodiscard]] std::string printable_beginning(std::string_view text, std::size_t limit);

/// "1.2 GB", in powers of 1000; plain below 1000 bytes.
[[nodiscard]] std::string human_size(std::uint64_t bytes);

/// "1,234,567".
[[nodiscard]] std::string grouped(std::uint64_t number);

/// "1 tensor", "2 tensors".
[[nodiscard]] std::string count_of(std::uint64_t number, std::string_view thing);

/// One line on stderr: "rondo: " and the message, made printable.
void complain(std::string_view message);

}  // namespace rondo::tool

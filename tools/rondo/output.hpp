#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>

#include "rondo/checkpoint/byte_sink.hpp"

/// Files that a command makes.
namespace rondo::tool {

/// Gives the content of a file to the sink, piece by piece.
using producer = std::function<void(const checkpoint::byte_sink& sink)>;

/// Throws `unusable_error` when there is something at `target` already and `force` is false.
void require_free(const std::filesystem::path& target, bool force);

/// Writes a file of `size` bytes that `produce` gives, with progress. It gets its name when it is complete and on
/// stable storage; otherwise, also after Ctrl-C and SIGTERM, nothing of it stays behind. These signals end the program
/// as ever, but only after that. Throws `io_error`, and what `produce` throws.
void write_file(const std::filesystem::path& target, std::uint64_t size, const producer& produce);

}  // namespace rondo::tool

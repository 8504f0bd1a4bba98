#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "rondo/checkpoint/manifest.hpp"
#include "rondo/state/value.hpp"

namespace rondo::extensions {

/// What a snapshot of now says about itself.
[[nodiscard]] checkpoint::snapshot_info snapshot_info_of(std::string made_by, std::int64_t iteration,
                                                         std::int64_t epoch, bool mid_iteration);

/// Loads a snapshot, a file or a sharded one, and verifies every byte of a file, and of a sharded one every byte that
/// `wanted`, the present state, asks for (see `load_sharded`). Throws `format_error` or `io_error` for one that is not
/// sound. Warns if it was computed with another number of threads.
[[nodiscard]] state::value read_snapshot(const std::filesystem::path& file, const state::value& wanted);

}  // namespace rondo::extensions

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

/// Verifies every byte of a snapshot and loads it. Throws `format_error` or `io_error` for a file that is not sound.
/// Warns if it was computed with another number of threads.
[[nodiscard]] state::value read_snapshot(const std::filesystem::path& file);

}  // namespace rondo::extensions

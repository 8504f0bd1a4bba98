#pragma once

#include <string_view>

#include "rondo/checkpoint/catalog.hpp"

namespace rondo::tool {

/// Verifies the snapshot. One that is not sound is explained on stderr, after `verdict`, such as "not used".
[[nodiscard]] bool is_sound_snapshot(const checkpoint::cataloged_snapshot& snapshot, std::string_view verdict);

/// Tells on stderr, after `verdict`, which files look like snapshots and cannot be read as such.
void explain_rejected(const checkpoint::catalog& found, std::string_view verdict);

}  // namespace rondo::tool

#pragma once

#include <string>
#include <vector>

#include "rondo/checkpoint/reader.hpp"

namespace rondo::checkpoint {

/// Reads the whole file and throws `format_error` for the first thing that is wrong, naming the record.
///
/// In a file of Rondo's every byte is checked: the records against the three checksums that are kept of each
/// (directory, data descriptor, manifest), everything else against what `plan` rebuilds, so no changed bit goes
/// unnoticed. In other files the records' checksums are checked, unless PyTorch was told to record none. In both,
/// every tensor must lie inside its storage.
void verify(const reader& file);

/// All that `verify` would find, one sentence each; empty for a sound file.
[[nodiscard]] std::vector<std::string> problems(const reader& file);

}  // namespace rondo::checkpoint

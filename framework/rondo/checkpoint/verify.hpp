#pragma once

#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "rondo/checkpoint/reader.hpp"

namespace rondo::checkpoint {

/// Reads the whole file and throws `format_error` for the first thing that is wrong, naming the record.
///
/// In a file of Rondo's every byte is checked: the records against the three checksums that are kept of each
/// (directory, data descriptor, manifest), everything else against what `plan` rebuilds, so no changed bit goes
/// unnoticed. In other files the records' checksums are checked, unless PyTorch was told to record none. In both,
/// every tensor must lie inside its storage. The file is read through the system, once; throws `io_error` for what
/// cannot be read.
void verify(const reader& file);

/// Names of records without the root, as "data/0".
using record_names = std::unordered_set<std::string_view>;

/// The same for who reads some of the records anyway: their data is not read here, and has to be compared with the
/// checksums in the directory (`archive::entry::crc32`), which have been compared with the manifest's.
void verify_except(const reader& file, const record_names& unread);

/// All that `verify` would find, one sentence each; empty for a sound file.
[[nodiscard]] std::vector<std::string> problems(const reader& file);

}  // namespace rondo::checkpoint

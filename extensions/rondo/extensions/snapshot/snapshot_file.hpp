#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "rondo/checkpoint/encoder.hpp"
#include "rondo/checkpoint/tensors.hpp"
#include "rondo/state/value.hpp"
#include "rondo/writing/writer.hpp"

namespace rondo::extensions {

/// A state on its way into a file: described and laid out. The bytes of CPU tensors are still the live ones.
class snapshot_file {
 public:
  /// Throws `state_error` for a state that a file cannot hold.
  snapshot_file(const state::value& state, checkpoint::snapshot_info info);

  /// Asks for the file to be written. Valid as long as this object, and while nobody changes the tensors.
  [[nodiscard]] writing::write_request request(std::filesystem::path target) const;

 private:
  checkpoint::described described_;
  checkpoint::encoder encoder_;
};

/// What a snapshot of now says about itself.
[[nodiscard]] checkpoint::snapshot_info snapshot_info_of(std::string made_by, std::int64_t iteration,
                                                         std::int64_t epoch, bool mid_iteration);

/// Verifies every byte of a snapshot and loads it. Throws `format_error` or `io_error` for a file that is not sound.
/// Warns if it was computed with another number of threads.
[[nodiscard]] state::value read_snapshot(const std::filesystem::path& file);

}  // namespace rondo::extensions

#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

#include "rondo/checkpoint/manifest.hpp"
#include "rondo/state/value.hpp"

/// How the directory of a sharded snapshot comes to its name, and goes. Everything blocks the calling thread, may be
/// called on any, and throws `io_error` when the system refuses.
///
/// Until it is whole it has a hidden name of its own, ".<name>.tmp-<attempt>", so that nobody ever sees a part of it
/// under the snapshot's name, and two attempts at the same snapshot do not meet.
namespace rondo::extensions {

/// Where an attempt at the snapshot `target` is written.
[[nodiscard]] std::filesystem::path attempt_directory(const std::filesystem::path& target, const std::string& attempt);

/// Makes the directory of a new attempt at `target`, and returns the attempt: 16 hexadecimal digits.
[[nodiscard]] std::string begin_attempt(const std::filesystem::path& target);

/// The attempt as the files tell it.
[[nodiscard]] std::int64_t number_of_attempt(const std::string& attempt);

/// Throws `error` if the attempt's directory lacks the file of one of `ranks` ranks: it has written to another place.
void require_parts(const std::filesystem::path& target, const std::string& attempt, std::size_t ranks);

/// Writes the file "complete" into an attempt's directory, durably.
void complete_attempt(const std::filesystem::path& target, const std::string& attempt, const state::value& index,
                      const checkpoint::snapshot_info& info);

/// Gives an attempt that is whole the name `target`, durably and in one step. What had that name before (an earlier
/// attempt at the same snapshot) is removed then. Where the file system cannot swap names in one step, the earlier one
/// is put aside first.
void commit_attempt(const std::filesystem::path& target, const std::string& attempt);

/// Removes an attempt that has failed. Says nothing if it cannot.
void discard_attempt(const std::filesystem::path& target, const std::string& attempt) noexcept;

/// Removes a snapshot: from one moment to the next it has its name no more, whatever happens later.
void remove_sharded(const std::filesystem::path& snapshot);

/// Removes what runs that have died left of attempts and removals in `directory`. Says nothing about what cannot be
/// removed. To be called before this run's first attempt.
void remove_stale_attempts(const std::filesystem::path& directory) noexcept;

}  // namespace rondo::extensions

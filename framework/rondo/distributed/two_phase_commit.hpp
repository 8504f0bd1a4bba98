#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "rondo/async/task.hpp"
#include "rondo/distributed/rank_group.hpp"

namespace rondo::distributed {

/// What has become of a part, or of the whole. A failure counts more than having been left out, and that more than
/// being durable.
enum class commit_state : std::uint8_t { durable, left_out, failed };

/// What a rank says about its part, and what all are told about the whole.
struct commit_report {
  commit_state state = commit_state::durable;
  /// Why there is none; of a durable part, what the coordinator needs to know about it.
  std::string text = {};
  /// Whose part, or work, it was that is missing; of a durable whole that of the coordinator.
  int rank = 0;
};

/// Makes the parts of all ranks one whole, which is there for all of them or for none.
///
/// Each rank calls it when its part is durable, or when there will be none: `mine.state` and `mine.text`. When the
/// parts of all are durable, and then only, rank `coordinator` gets their texts by rank and runs `make_whole`, whose
/// last step brings the whole into being at one moment; if that throws before, there is no whole. The same report
/// completes it on every rank: the whole is durable, or it is not there because of the named rank's part, or because of
/// what `make_whole` has thrown.
///
/// Throws `rank_error` when a rank is gone or does not come within the group's timeout. Then there is no whole unless
/// the coordinator had made it before it, or its message, was lost; the disk is what tells. On the coordinator
/// `make_whole` is never begun after that.
///
/// `channel` is used for nothing else meanwhile. Runs on the caller's thread. Cancellation ends the group's work on it
/// for all: do not cancel one rank alone. The protocol is the classical two-phase commit (Gray 1978) whose decision is
/// the coordinator's, told through one meeting, so that no two ranks are told different things.
[[nodiscard]] task<commit_report> two_phase_commit(rank_group channel, int coordinator, commit_report mine,
                                                   std::function<task<>(std::vector<std::string> texts)> make_whole);

}  // namespace rondo::distributed

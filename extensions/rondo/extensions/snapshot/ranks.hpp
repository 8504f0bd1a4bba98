#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "rondo/async/task.hpp"
#include "rondo/distributed/rank_group.hpp"
#include "rondo/state/value.hpp"

namespace rondo::extensions {

struct snapshot_progress;

/// How ranks take one snapshot together: all meet before it is captured, one of them saves it
/// (`snapshot_mode::distributed`) or each its part (`snapshot_mode::sharded`), and all learn what has become of it.
/// Several snapshots may be on their way. Belongs to one run and the training thread. Whatever it waits for throws
/// `distributed::rank_error` when a rank is gone.
class snapshot_ranks {
 public:
  /// `name`: that of the extension, which is the same on all ranks.
  snapshot_ranks(const distributed::rank_group& group, const std::string& name, int saver_rank, bool sharded);

  [[nodiscard]] const distributed::rank_group& group() const noexcept { return group_; }
  [[nodiscard]] bool sharded() const noexcept { return sharded_; }
  /// Whether this is the saver rank.
  [[nodiscard]] bool saves() const noexcept { return group_.rank() == saver_rank_; }

  /// The saver's answer to a question that ranks may answer differently.
  [[nodiscard]] task<bool> saver_says(bool mine);

  /// Before a snapshot is captured. Completes when all ranks are there; throws `snapshot_error` on all of them when one
  /// has an objection, when they are not at the same iteration, when some have a state in parts and some have not, or
  /// when there can be no directory for their parts. On the saver, `p` gets the states of all ranks' random generators.
  [[nodiscard]] task<> begin(snapshot_progress& p, const std::exception_ptr& objection, bool in_parts);
  /// When this rank's part of a sharded snapshot is durable, or there will be none: all learn in `p` what has become of
  /// the whole, which the saver makes by `make_whole` of all parts' receipts, by rank
  /// (`distributed::two_phase_commit`).
  [[nodiscard]] task<> commit(snapshot_progress& p,
                              std::function<task<>(std::vector<std::string> receipts)> make_whole);
  /// When one file has been saved, or not: the saver tells what has become of it, which the others take over into `p`.
  [[nodiscard]] task<> end(snapshot_progress& p);

  /// The saver's texts, on all ranks.
  [[nodiscard]] task<std::vector<std::string>> share(const std::vector<std::string>& of_saver);
  /// What the ranks have against something, each with its rank; empty if none has anything (`mine` is empty then).
  [[nodiscard]] task<std::string> objections(const std::string& mine);

 private:
  [[nodiscard]] distributed::rank_group channel_of(const snapshot_progress& p) const;
  [[nodiscard]] std::string judge(snapshot_progress& p, const std::vector<std::string>& texts) const;

  distributed::rank_group group_;
  std::string name_;
  int saver_rank_;
  bool sharded_;
  std::int64_t begun_ = 0;
};

/// `state` with the random generators of rank `rank`, if it was saved by as many ranks as there are now. A warning
/// otherwise, and those of the saver.
[[nodiscard]] state::value state_of_rank(state::value state, int rank, int world_size);

}  // namespace rondo::extensions

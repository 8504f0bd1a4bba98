#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "rondo/async/task.hpp"
#include "rondo/distributed/launch.hpp"
#include "rondo/distributed/rank_error.hpp"

namespace rondo::distributed {

class tensor_backend;
class roll_call;
struct meeting;
enum class meeting_kind : std::uint8_t;

/// How ranks work together.
struct group_options {
  /// How long an operation may wait for ranks that have not begun it, unless it is told otherwise. Positive.
  std::chrono::milliseconds timeout = std::chrono::minutes(30);
  /// How long the ranks may take to find each other. Positive.
  std::chrono::milliseconds connect_timeout = std::chrono::minutes(5);
  /// c10d's backend for tensors: "gloo".
  std::string backend = "gloo";
  /// How long a rank may be silent that is connected: stopped by a signal or a debugger, its machine off, the network
  /// gone. A thread of its own answers for it, so that being busy is not being silent. Positive.
  std::chrono::milliseconds heartbeat_timeout = std::chrono::minutes(2);
};

/// How `all_reduce` joins tensors.
enum class reduce_op { sum, min, max };

/// An operation on tensors that has begun. Await it once, and keep the tensors until then.
class pending_operation {
 public:
  class state;
  explicit pending_operation(std::shared_ptr<state> s) : state_(std::move(s)) {}

  /// Completes when the operation has. Throws `rank_error`. Cancellation waits for the end all the same, because the
  /// backend uses the tensors until then.
  [[nodiscard]] task<> wait();

 private:
  std::shared_ptr<state> state_;
};

/// The processes of one training, which meet in collective operations: every rank calls the same operations in the same
/// order, and each completes when all have called it. A cheap handle; copies mean the same group.
///
/// All operations are awaited on, and complete on, the caller's own thread, whose other coroutines go on meanwhile.
/// A rank that is gone (killed, its machine down), that has left with an error, that does not come within the timeout
/// or comes with another operation makes the operation fail on all ranks, no later than a second after the timeout,
/// with a `rank_error` that names it; so do all later operations. Cancelling a wait gives up the answer, not the part
/// of this rank, so that the others get theirs.
///
/// Tensors travel through c10d, everything else through connections of Rondo's own between rank 0 and the others (see
/// docs/distributed.md). One thread uses a group at a time, and one coroutine each of its channels. From `connect` on
/// SIGPIPE, which the death of another rank would raise, is ignored unless the program has a handler for it.
class rank_group {
 public:
  /// A single process: rank 0 of 1. Every operation completes at once.
  rank_group();

  /// Meets the other ranks. Blocks until all are there. Throws `rank_error` when that takes longer than
  /// `connect_timeout` (naming who is missing, on rank 0), `option_error` for impossible options and for a Rondo that
  /// was built without c10d.
  [[nodiscard]] static rank_group connect(const launch& who = environment(), const group_options& options = {});

  /// From parts: for other backends (`over`, c10d.hpp) and tests.
  rank_group(std::shared_ptr<roll_call> roll, std::shared_ptr<tensor_backend> tensors, launch who,
             group_options options);

  [[nodiscard]] int rank() const noexcept { return who_.rank; }
  [[nodiscard]] int world_size() const noexcept { return who_.world_size; }
  [[nodiscard]] int local_rank() const noexcept { return who_.local_rank; }
  [[nodiscard]] const launch& who() const noexcept { return who_; }
  [[nodiscard]] const group_options& options() const noexcept { return options_; }

  /// The same ranks with an order of their own for everything but tensors: operations of one channel are not mixed up
  /// with those of another, so that coroutines side by side need not agree on an order. All ranks use the same names.
  [[nodiscard]] rank_group channel(std::string_view name) const;

  /// A group of the ranks that give the same `color`, numbered from 0 in the order of their ranks here: of one machine,
  /// say, or of one copy of a model. All ranks call it; each gets the group that it belongs to, with orders of its own
  /// for tensors and everything else, beside those of this one. Completes when the parts' backends for tensors have met
  /// as well; throws as the other operations, also after `connect_timeout`. Cancelling it ends the group for all.
  ///
  /// Who fails in one part ends the whole: the groups fail, and a process leaves them, together. Errors number ranks as
  /// the group does that all of them have come from. After MPI_Comm_split.
  [[nodiscard]] task<rank_group> split(std::int64_t color) const;

  /// Completes when all ranks have called it.
  [[nodiscard]] task<> barrier(std::optional<std::chrono::milliseconds> timeout = std::nullopt) const;
  /// Whether all say true.
  [[nodiscard]] task<bool> agree(bool mine) const;
  /// The smallest number that one of them says.
  [[nodiscard]] task<std::int64_t> agree_minimum(std::int64_t mine) const;
  /// What rank `root` has given; the others' is ignored.
  [[nodiscard]] task<std::string> broadcast(std::string mine, int root = 0) const;
  /// What all have given, by rank.
  [[nodiscard]] task<std::vector<std::string>> all_gather(std::string mine) const;
  /// The same for rank `root` alone; empty on the others.
  [[nodiscard]] task<std::vector<std::string>> gather(std::string mine, int root = 0) const;

  /// Makes one text of those of all ranks, by rank.
  using joiner = std::function<std::string(const std::vector<std::string>& all)>;
  /// What `join`, which runs on rank 0, makes of what all have given, on all ranks: for what would be much if every
  /// rank got every other's. Cancelling it on rank 0, without which there is no answer for anybody, ends the group.
  [[nodiscard]] task<std::string> merge(std::string mine, joiner join) const;

  /// Says what this rank is about to do, in words that are the same on all ranks, in the order of the calls of this
  /// channel; returns at once. If another rank says something else, or nothing within the timeout, the group fails.
  void require_same(std::string what) const;

  // These block the thread, for questions that cannot be awaited; they throw as the others.

  /// What rank 0 says.
  [[nodiscard]] bool first_says(bool mine) const;
  /// As `merge`.
  [[nodiscard]] std::string merge_now(std::string mine, const joiner& join) const;

  // For tensors of the same shape and dtype on every rank, contiguous, on the backend's device; in the same order on
  // all ranks, whatever the channel.

  /// Joins the tensors of all ranks into each of them, in place.
  [[nodiscard]] task<> all_reduce(at::Tensor tensor, reduce_op op = reduce_op::sum) const;
  /// Gives all ranks what `root` has, in place.
  [[nodiscard]] task<> broadcast(at::Tensor tensor, int root = 0) const;
  /// The tensors of all ranks, by rank.
  [[nodiscard]] task<std::vector<at::Tensor>> all_gather(at::Tensor tensor) const;
  /// Begins now, also outside of a coroutine; for whoever overlaps it with work.
  [[nodiscard]] pending_operation start_all_reduce(at::Tensor tensor, reduce_op op = reduce_op::sum) const;

  /// Says goodbye: waits, blocking and for at most `timeout`, until the others have done so too, if all went well. With
  /// `error` it goes at once, and what the others wait for fails with that reason. Whoever never calls it says goodbye
  /// without an error when the last handle goes. Afterwards the group cannot be used. Calling it twice is harmless.
  void leave(const std::string& error = "") const noexcept;

 private:
  [[nodiscard]] static task<rank_group> split_off(rank_group whole, std::int64_t color);
  [[nodiscard]] meeting part_of(meeting_kind kind, std::string_view order = {}) const;
  [[nodiscard]] int among_all(int rank) const;
  [[nodiscard]] bool alone() const noexcept { return !roll_ || who_.world_size == 1; }
  template <class Start>
  [[nodiscard]] pending_operation begin(const std::string& what, std::vector<at::Tensor> tensors, Start start) const;

  std::shared_ptr<roll_call> roll_;                // null for a single process
  std::shared_ptr<tensor_backend> tensors_;        // null where there are no others, or no backend
  int circle_ = 0;                                 // of the roll call
  std::shared_ptr<const std::vector<int>> ranks_;  // their numbers among all; null for all
  launch who_;
  group_options options_;
  std::string channel_;
};

}  // namespace rondo::distributed

#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "rondo/async/task.hpp"
#include "rondo/distributed/rank_error.hpp"

namespace rondo::distributed {

/// What the ranks do together at one meeting.
enum class meeting_kind : std::uint8_t { barrier, minimum, broadcast, all_gather, gather, same, split };

/// One rank's part of a meeting.
struct meeting {
  meeting_kind kind = meeting_kind::barrier;
  int circle = 0;            ///< who meets: 0 are all ranks, any other number the ranks of one part of a split
  std::string channel = {};  ///< meetings of one channel, which is of one circle, follow each other; others do not
  int root = 0;              ///< of broadcast and gather, its rank among all
  std::string mine = {};     ///< what this rank brings along; of minimum and split a number
  std::chrono::milliseconds timeout = {};
};

/// How long a rank whose connection is open may be silent, although it is asked again and again by a thread that waits
/// for nothing else.
inline constexpr std::chrono::milliseconds default_silence = std::chrono::minutes(2);

/// Where ranks meet and learn of each other's end: a connection from every rank to rank 0, served by a thread on each
/// side, so that a busy training thread neither delays an answer nor hides a death.
///
/// Rank 0 alone decides how each meeting ends, so that it ends alike for everybody: it is complete, or the first
/// failure (a connection that has broken, a rank that has left, one that is late or does something else) is told to all
/// and ends this and all later meetings.
class roll_call {
 public:
  /// Rank 0: listens on a free port of this machine for ranks that know `token`.
  [[nodiscard]] static std::shared_ptr<roll_call> listen(int world_size, std::string token,
                                                         std::chrono::milliseconds silence = default_silence);
  /// Another rank: connects to `host`:`port`. Blocks. Throws `rank_error` naming rank 0 when it is not reached in time.
  [[nodiscard]] static std::shared_ptr<roll_call> connect(const std::string& host, std::uint16_t port, int rank,
                                                          int world_size, std::string token,
                                                          std::chrono::milliseconds timeout,
                                                          std::chrono::milliseconds silence = default_silence);
  virtual ~roll_call() = default;

  /// Where rank 0 listens.
  [[nodiscard]] virtual std::uint16_t port() const noexcept = 0;

  /// Takes part in the next meeting of its channel. Completes on the caller's thread when all ranks of the circle have:
  /// with the contributions of all by rank (all_gather; gather, for the root), of the root (broadcast), with the
  /// smallest number (minimum), with the number of the circle of those who bring the same number, and their ranks among
  /// all (split), or nothing. Throws `rank_error` within the timeout. Cancellation gives up the answer only.
  [[nodiscard]] virtual task<std::vector<std::string>> meet(meeting part) = 0;

  /// The same for a thread that has no event loop: blocks.
  virtual std::vector<std::string> meet_blocking(meeting part) = 0;

  /// The same for one that does not want the answer: returns at once. A failure is told by later calls.
  virtual void give(meeting part) = 0;

  /// Says what this rank is about to do, in words (`what.mine`) that are the same on all ranks of the circle, in the
  /// order of the calls. Returns at once. Ranks that say something else, or nothing within the timeout, are a failure.
  virtual void announce(meeting what) = 0;

  /// Counts the operations on tensors that have begun here and are not over: a rank within one waits for others itself,
  /// and is not blamed for what it misses meanwhile. Any thread.
  virtual void operation_begins() noexcept = 0;
  virtual void operation_ends() noexcept = 0;

  /// Says that an operation of a circle on tensors has failed here, for a reason that need not tell whose fault it is.
  /// Returns at once. Rank 0 asks who still answers, and a failure follows within a second that names those who do not.
  virtual void report(int circle, std::string why) = 0;

  /// Calls `tell`, on any thread and once, when the ranks cannot meet any more; at once if that is so already. `key`
  /// stands for the caller in `forget`.
  virtual void on_failure(const void* key, std::function<void(std::exception_ptr)> tell) = 0;
  /// Afterwards `tell` is not called any more, and does not run.
  virtual void forget(const void* key) noexcept = 0;

  /// See `rank_group::leave`.
  virtual void leave(const std::string& error, std::chrono::milliseconds timeout) noexcept = 0;
};

}  // namespace rondo::distributed

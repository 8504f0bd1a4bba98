#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "rondo/async/semaphore.hpp"
#include "rondo/async/trace.hpp"
#include "rondo/async/wait_group.hpp"
#include "rondo/checkpoint/planner.hpp"
#include "rondo/extensions/snapshot/capture.hpp"
#include "rondo/extensions/snapshot/ranks.hpp"
#include "rondo/extensions/snapshot/sharding.hpp"
#include "rondo/loop/context.hpp"
#include "rondo/writing/staging.hpp"
#include "rondo/writing/writer.hpp"

namespace rondo::extensions {

/// A snapshot that somebody wants.
struct snapshot_order {
  std::filesystem::path path;
  checkpoint::snapshot_info info;
  /// Whether a full writer is waited for, whatever its policy.
  bool insist = false;
  /// Whether whoever orders it waits until it is durable, and gets its error.
  bool awaited = false;
  /// Whether this rank takes it without the others.
  bool alone = false;
  /// Of which `context::state_version` it is the regular one, if it is one.
  std::optional<std::int64_t> regular_of = {};
  /// Keeps training between two iterations until the state has been captured.
  wait_group::member pause = {};
};

/// Where a snapshot stands, and what it has cost so far.
struct snapshot_progress {
  explicit snapshot_progress(snapshot_order wanted) : order(std::move(wanted)) {}

  snapshot_order order;
  std::chrono::steady_clock::time_point started = std::chrono::steady_clock::now();
  trace::span span;  ///< from the beginning to the end
  double capture_seconds = 0.0;
  double stall_seconds = 0.0;
  double total_seconds = 0.0;
  writing::write_receipt receipt;
  std::optional<std::string> skipped;  ///< why there will be no file
  std::exception_ptr error;
  std::int64_t number = 0;    ///< among those that the ranks take together
  bool begun_by_all = false;  ///< the other ranks wait to learn what becomes of it
  state::list random_states;  ///< of all ranks' generators, by rank, each as in `state::random_state`; on the saver
  std::string attempt;        ///< at a sharded snapshot
  state::value whole;         ///< the state as the ranks have it together, where each has a part only
  state::value outline;       ///< of a sharded snapshot's state, on the saver
  std::string part_receipt;   ///< of this rank's part, for the saver
  std::shared_ptr<const resting_storages> resting;  ///< what of this rank's part nobody changes between two updates
  std::shared_ptr<capture> taken;                   ///< until the writer has it
  bool in_background = false;                       ///< it goes on while training does
  wait_group::member reading;                       ///< keeps updates waiting while the state is being copied
  wait_group::member counted;                       ///< among the taker's unfinished ones
  wait_group::member own;                           ///< of `unfinished`
  wait_group unfinished;                            ///< not empty before this one is durable or has failed
};

/// Takes snapshots: plans, captures and writes them, tells about it, and keeps account of those that are on their way.
/// Belongs to one run and the training thread.
class snapshot_taker {
 public:
  using collector = std::function<state::value()>;

  struct settings {
    std::shared_ptr<writing::writer> writer;
    /// The state to be saved. `whole_loop`: in the layout of `context::state_dict`.
    collector collect;
    bool whole_loop = true;
    bool verify = false;
    /// Those with whom it is taken together; null for a process alone.
    std::shared_ptr<snapshot_ranks> ranks = nullptr;
    /// Before anything is written; may throw.
    std::function<void(const std::filesystem::path&)> check;
    /// Fills in what the present state says about itself.
    std::function<void(checkpoint::snapshot_info&)> describe;
    /// When a snapshot is durable.
    std::function<void(const snapshot_progress&)> durable;
    /// When there will be no file, for whatever reason.
    std::function<void(const snapshot_progress&)> missing;
    /// What becomes of the error of a snapshot that nobody awaits; may throw, which ends training.
    std::function<void(const snapshot_progress&)> failed;
  };

  snapshot_taker(context& ctx, settings s) : ctx_(ctx), settings_(std::move(s)) {}

  /// Takes one. Completes when training may go on: with a writer that works in the background that is when the copying
  /// has begun, unless the order is awaited. Throws the error of an awaited order; that of another one goes to
  /// `failed`.
  [[nodiscard]] task<> take(snapshot_order order);

  /// Has memory for a snapshot of the present size made in the background, and plans ahead.
  void prepare();

  /// Completes when all that was begun is durable, or has failed.
  [[nodiscard]] task<> finish() { return unfinished_.empty(); }

 private:
  using progress = std::shared_ptr<snapshot_progress>;

  task<> begin(progress p);
  task<> come_together(progress p);
  task<> save(progress p);
  void go_on_without_it(progress p);
  task<> tell_ranks(progress p);
  task<> settle(progress p);
  task<> commit(progress p, std::vector<std::string> receipts);
  task<> write_now(progress p);
  task<> write_by_name(progress p);
  task<> start_in_background(progress p, writing::staging& memory);
  task<> go_on(progress p);
  task<> copy(progress p);
  task<> write_copy(progress p);
  task<> verify_written(progress p);
  task<> conclude(progress p);
  task<> announce(progress p);
  task<std::shared_ptr<writing::staging_slot>> room(writing::staging& memory, std::uint64_t bytes, bool insist);
  state::value plan(const progress& p);
  [[nodiscard]] state::value collect(const progress& p);
  [[nodiscard]] state::value part_of(const progress& p, const state::value& state);
  [[nodiscard]] bool is_sharded(const progress& p) const;
  [[nodiscard]] std::filesystem::path file_of(const progress& p) const;
  [[nodiscard]] bool saver_is_elsewhere(const progress& p) const;
  void give_back(const progress& p);
  [[nodiscard]] resting_storages resting(const state::value& state) const;

  context& ctx_;
  settings settings_;
  checkpoint::planner planner_;
  sharer sharer_;
  async_semaphore turn_{1};  // among writes from live memory, which share the plan
  std::uint64_t bytes_ = 0;  // of staging memory, for the state as it was planned last
  bool preparing_failed_ = false;
  wait_group unfinished_;
};

}  // namespace rondo::extensions

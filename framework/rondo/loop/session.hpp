#pragma once

#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>

#include <asio/thread_pool.hpp>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "rondo/async/scope.hpp"
#include "rondo/async/wait_group.hpp"
#include "rondo/event/bus.hpp"
#include "rondo/event/events.hpp"
#include "rondo/event/moment.hpp"
#include "rondo/loop/extension.hpp"
#include "rondo/loop/options.hpp"
#include "rondo/report/observations.hpp"
#include "rondo/state/stateful.hpp"
#include "rondo/writing/directory_lock.hpp"

/// The inside of a run. Extensions see `context` instead.
namespace rondo {

class context;

namespace detail {

struct named_model {
  std::string name;
  std::shared_ptr<torch::nn::Module> module;
};
struct named_optimizer {
  std::string name;
  std::shared_ptr<torch::optim::Optimizer> optimizer;
};
struct named_state {
  std::string name;
  state::stateful_ref object;
};

class session;

/// The batches of an epoch together with what to do with one. Implemented by `typed_source` (source.hpp).
class batch_source {
 public:
  virtual ~batch_source() = default;
  /// Batches per epoch, if known beforehand.
  [[nodiscard]] virtual std::optional<std::int64_t> length() const = 0;
  /// Goes to batch `skip` of epoch `epoch`.
  virtual void begin(std::int64_t epoch, std::int64_t skip) = 0;
  /// Whether the epoch has no further batch.
  [[nodiscard]] virtual bool exhausted() = 0;
  /// Trains on the current batch.
  [[nodiscard]] virtual std::optional<task<>> step(session& s) = 0;
  /// Whether the steps leave every update to the loop (`session::learn`).
  [[nodiscard]] virtual bool updates_are_managed() const noexcept = 0;
  /// Goes to the next batch.
  virtual void advance() = 0;
};

/// What a supervised loop knows about its model; empty functions otherwise.
struct supervision {
  std::function<at::Tensor(const at::Tensor& input)> forward;
  std::function<at::Tensor(const at::Tensor& output, const at::Tensor& target)> loss;
};

/// A trigger as a gate. That of an extension as a whole is asked once per iteration however many subscriptions share
/// it, that of a single subscription at every emission.
class trigger_gate final : public gate {
 public:
  trigger_gate(trigger t, const session& s, bool shared) : trigger_(std::move(t)), session_(s), shared_(shared) {}
  bool open() override;
  [[nodiscard]] trigger& inner() noexcept { return trigger_; }

 private:
  trigger trigger_;
  const session& session_;
  bool shared_;
  std::int64_t asked_at_ = -1;
  bool answer_ = false;
};

/// An extension during a run.
struct attachment {
  attachment(session& s, const extension& e);
  ~attachment();

  extension what;
  std::shared_ptr<trigger_gate> when;  ///< of the extension as a whole; may be null
  bool when_is_used = false;
  acknowledgement ack;
  std::unique_ptr<context> ctx;
  std::unique_ptr<scope> life;  ///< of its coroutine
};

class session {
 public:
  session(loop_options options, std::vector<named_model> models, std::vector<named_optimizer> optimizers,
          std::vector<named_state> state_objects, std::unique_ptr<batch_source> source, supervision supervised);
  ~session();

  /// The whole run. Completes when everything that belongs to it has ended.
  task<run_result> drive(std::vector<extension> extensions);

  // ---- for context ----
  [[nodiscard]] state::dict state_dict() const;
  void load_state_dict(const state::value& state, const state::load_options& options = {});
  void stop(std::string reason);
  /// Remembers the first failure of a coroutine beside the loop, which throws it at the next opportunity. That a
  /// coroutine was cancelled because the run is ending is no failure.
  void fail(std::exception_ptr error) noexcept;
  [[nodiscard]] const std::filesystem::path& out();
  [[nodiscard]] asio::thread_pool& pool();
  [[nodiscard]] std::size_t optimizer_index(const torch::optim::Optimizer& optimizer) const;
  /// Backward, and an update when the accumulation window is full.
  [[nodiscard]] std::optional<task<>> learn(const at::Tensor& loss, std::int64_t samples);
  /// Clip, `update_started`, step, `update_completed`; first of all waits until nobody holds the state.
  [[nodiscard]] task<> update(std::size_t index);
  /// Whether the state is not one between two iterations.
  [[nodiscard]] bool mid_iteration() const noexcept { return iteration_open_ || broken_off_; }
  /// Has every extension that saves the whole run take a snapshot now. Completes when they are durable.
  [[nodiscard]] task<> snapshot();
  [[nodiscard]] double epoch_detail() const;
  [[nodiscard]] bool has_extension(std::string_view name) const;
  void assert_home() const;

  loop_options options;
  std::vector<named_model> models;
  std::vector<named_optimizer> optimizers;
  std::vector<named_state> state_objects;
  supervision supervised;
  bus events;
  observations observed;
  moment now;
  std::int64_t execution = 0;  ///< iterations done in this process, and in earlier ones that counted them (ppe)
  std::optional<std::string> stop_reason;
  std::optional<std::filesystem::path> resumed_from;
  executor home;
  std::unique_ptr<context> step_context;  ///< what a user's step gets
  std::unique_ptr<scope> background;      ///< `context::spawn`
  wait_group state_readers;               ///< who reads parameters and optimizer state in the background
  wait_group pauses;                      ///< who needs the state between two iterations to last
  bool snapshot_wanted = false;           ///< at the end of this iteration, whatever triggers say

 private:
  using clock = std::chrono::steady_clock;

  void validate() const;
  void attach(std::vector<extension> extensions);
  task<> restore();
  task<> start_coroutines();
  task<> train();
  task<> run_epoch();
  task<> run_iteration();
  task<> end_iteration();
  task<> watch_signals();
  task<> conclude(std::exception_ptr error);
  task<> announce_failure(std::exception_ptr error);
  task<> close_epoch(std::exception_ptr reason);
  task<std::exception_ptr> announce_end(std::exception_ptr error);
  [[nodiscard]] state::dict optimizer_types() const;
  [[nodiscard]] state::value gradients() const;
  void load_gradients(const state::value& ours);
  task<> join_everything();
  void decide_stop();
  void load_position(const state::dict& root);
  void begin_clock();
  void restore_random();
  void throw_failure();
  void clip(std::size_t index);
  [[nodiscard]] std::optional<task<>> update_now(std::size_t index);
  [[nodiscard]] task<> update_after(std::size_t index, task<> announced);
  [[nodiscard]] task<> update_when_free(std::size_t index);
  void learn_who_updates();
  [[nodiscard]] bool goal_reached();

  std::unique_ptr<batch_source> source_;
  std::vector<std::unique_ptr<attachment>> attached_;
  class background_pool;
  std::unique_ptr<background_pool> pool_;
  std::exception_ptr failure_;
  std::thread::id home_thread_;
  clock::time_point started_;
  clock::time_point yielded_;
  double elapsed_before_ = 0.0;
  std::optional<writing::directory_lock> out_lock_;
  std::int64_t gradients_of_ = 0;  ///< iterations whose gradients wait for the next update
  bool stop_trigger_fired_ = false;
  bool iteration_open_ = false;
  bool broken_off_ = false;          ///< by an error: the state is none between two iterations any more
  std::vector<bool> updated_;        ///< which optimizers in this iteration, through `update`
  bool updates_are_managed_ = true;  ///< as far as the last iteration tells
  bool epoch_open_ = false;
  std::optional<std::size_t> update_open_;
  bool watching_signals_ = false;
  bool ending_ = false;
  std::optional<state::value> restored_random_;
  bool training_begun_ = false;
};

}  // namespace detail
}  // namespace rondo

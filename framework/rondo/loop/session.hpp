#pragma once

#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>

#include <asio/thread_pool.hpp>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "rondo/async/scope.hpp"
#include "rondo/async/wait_group.hpp"
#include "rondo/distributed/data_parallel.hpp"
#include "rondo/event/bus.hpp"
#include "rondo/event/events.hpp"
#include "rondo/event/moment.hpp"
#include "rondo/loop/extension.hpp"
#include "rondo/loop/grace_period.hpp"
#include "rondo/loop/options.hpp"
#include "rondo/loop/supervised.hpp"
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

/// What a step does with updates.
enum class step_kind {
  gives_loss,    ///< leaves them to the loop (`session::learn`)
  calls_update,  ///< asks for each, by `session::update`
  by_hand,       ///< makes them without a word
};

/// The batches of an epoch together with what to do with one. Implemented by `typed_source` (source.hpp).
class batch_source {
 public:
  virtual ~batch_source() = default;
  /// Batches per epoch, if known beforehand.
  [[nodiscard]] virtual std::optional<std::int64_t> length() const = 0;
  /// The same for one epoch. Not between `begin` and the end of an epoch.
  [[nodiscard]] virtual std::optional<std::int64_t> length_in(std::int64_t epoch) = 0;
  virtual void set_device(at::Device device) = 0;
  /// Goes to batch `skip` of epoch `epoch`.
  virtual void begin(std::int64_t epoch, std::int64_t skip) = 0;
  /// Goes where `state_dict` was when it gave `state`.
  virtual void resume(const state::value& state) = 0;
  /// Takes over what `state` says of the range, but not the position.
  virtual void load_settings(const state::value& state) = 0;
  [[nodiscard]] virtual state::dict state_dict() const = 0;
  /// Nothing if the current batch is there, else a task that waits for it and can be cancelled.
  [[nodiscard]] virtual std::optional<task<>> ready() = 0;
  /// The same for the answer of `exhausted`.
  [[nodiscard]] virtual std::optional<task<>> end_known() = 0;
  /// Whether the epoch has no further batch.
  [[nodiscard]] virtual bool exhausted() = 0;
  /// Trains on the current batch.
  [[nodiscard]] virtual std::optional<task<>> step(session& s) = 0;
  [[nodiscard]] virtual step_kind kind() const noexcept = 0;
  /// Goes to the next batch.
  virtual void advance() = 0;
};

/// A trigger as a gate. That of an extension as a whole is asked once per iteration however many subscriptions share
/// it, that of a single subscription at every emission.
class trigger_gate final : public gate {
 public:
  trigger_gate(trigger t, const session& s, bool shared) : trigger_(std::move(t)), session_(s), shared_(shared) {}
  bool open() override;
  void reopen() override;
  [[nodiscard]] trigger& inner() noexcept { return trigger_; }

 private:
  trigger trigger_;
  const session& session_;
  bool shared_;
  std::int64_t asked_at_ = -1;
  bool answer_ = false;
  bool reopened_ = false;
};

/// What is left to do of an iteration when a signal has broken it off. A later run begins with it.
struct unfinished_iteration {
  enum class stage {
    next_batch,  ///< whether the epoch is over, and everything after that: the iteration is not counted yet
    iteration,   ///< `iteration_completed`, from `handler` on
    epoch,       ///< `epoch_completed`, from `handler` on
  };
  stage where = stage::next_batch;
  handler_place handler = {};
  state::value random = {};  ///< the generators' states from which `handler` begins; null: as they are
};

/// An extension during a run.
struct attachment {
  attachment(session& s, const extension& e);
  ~attachment();

  extension what;
  std::shared_ptr<trigger_gate> when;  ///< of the extension as a whole; may be null
  bool when_is_used = false;
  std::vector<std::shared_ptr<trigger_gate>> handler_gates;  ///< of single handlers (`context::on` with a trigger)
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
  [[nodiscard]] std::optional<task<>> learn(const at::Tensor& loss);
  /// There is a new batch, of so many samples.
  void begin_batch(double samples);
  /// What the present batch counts in averages.
  void weigh_batch(double weight);
  /// Clip, `update_started`, step, `update_completed`; first of all waits until nobody holds the state.
  [[nodiscard]] task<> update(std::size_t index);
  /// Whether the state is not one between two iterations.
  [[nodiscard]] bool mid_iteration() const noexcept { return iteration_open_ || broken_off_; }
  /// Has every extension that saves the whole run take a snapshot now. Completes when they are durable.
  [[nodiscard]] task<> snapshot();
  /// For `interruptible_work`: what is left to do from the handler on that is at work; null if none of `owner` is.
  [[nodiscard]] std::unique_ptr<const unfinished_iteration> work_begins(const std::string& owner);
  /// Lets others run, and gives the work up if a signal has asked for the end.
  [[nodiscard]] task<> interruption_point(const unfinished_iteration* work);
  /// Awaits something that the work needs; cancels it when the work is to be given up.
  [[nodiscard]] task<> wait_in_work(const unfinished_iteration* work, task<> other);
  /// Whether it has been long since the loop last let others run.
  [[nodiscard]] bool interruption_point_due() const noexcept;
  [[nodiscard]] double epoch_detail() const;
  [[nodiscard]] bool has_extension(std::string_view name) const;
  /// Whether a signal has ended the run before its goal, so that another one is to go on with it.
  [[nodiscard]] bool preempted() const;
  /// Whether other ranks train along.
  [[nodiscard]] bool together() const noexcept { return options.group.world_size() > 1; }
  /// Rank 0's answer, on all ranks; blocks until it has come to the same question.
  [[nodiscard]] bool first_says(bool mine) const;
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
  std::int64_t version = 0;    ///< of the state: another one after each step, and after each iteration
  std::optional<std::string> stop_reason;
  std::optional<int> signal;  ///< that has asked for the end
  std::optional<std::filesystem::path> resumed_from;
  executor home;
  std::unique_ptr<context> step_context;         ///< what a user's step gets
  std::unique_ptr<scope> background;             ///< `context::spawn`
  wait_group state_readers;                      ///< who reads parameters and optimizer state in the background
  wait_group pauses;                             ///< who needs the state between two iterations to last
  bool snapshot_wanted = false;                  ///< at the end of this iteration, whatever triggers say
  std::map<std::string, state::dict> stand_ins;  ///< by model: what its state is meanwhile (`context::stand_in`)

 private:
  using clock = std::chrono::steady_clock;

  void validate() const;
  void attach(std::vector<extension> extensions);
  task<> restore();
  task<> begin_together();
  void require_same_place() const;
  task<> agree_on_requests();
  task<> start_coroutines();
  task<> train();
  task<> run_epoch();
  task<> run_iteration();
  task<> complete_iteration();
  task<> complete_earlier_iteration();
  void begin_epoch();
  void require_batch();
  [[nodiscard]] bool wants_update(bool last_of_epoch) const;
  void release();
  void validate_step() const;
  void remember_modes();
  [[nodiscard]] state::dict modes() const;
  void load_modes(const state::value& stored);
  void note_unfinished();
  void update_position(bool last);
  [[nodiscard]] run_result result() const;

  void start_watching(task<> (session::*watch)());
  task<> watch_stop_signals();
  task<> watch_snapshot_signals();
  task<> wait_for_data(task<> ready);
  task<> wait_for_batch(task<> ready);
  task<> wait_for_end(task<> known);
  task<> wait_until_cancelled(task<> other, std::vector<scope*>& waits, bool (session::*over)());
  [[nodiscard]] bool data_wait_is_over() { return stop_reason || failure_; }
  [[nodiscard]] bool work_wait_is_over() { return (signal && can_be_done_again()) || failure_; }
  [[nodiscard]] bool can_be_done_again();
  task<> conclude(std::exception_ptr error);
  task<> announce_failure(std::exception_ptr error);
  [[nodiscard]] std::string whereabouts() const;
  [[nodiscard]] bool should_yield() const;
  task<> yield();
  task<> close_epoch(std::exception_ptr reason);
  task<std::exception_ptr> announce_end(std::exception_ptr error);
  [[nodiscard]] state::dict optimizer_types() const;
  [[nodiscard]] state::value gradients() const;
  [[nodiscard]] state::value random() const;
  void load_gradients(const state::value& ours);
  task<> join_everything();
  void decide_stop();
  void load_position(const state::dict& root);
  [[nodiscard]] state::value unfinished_state() const;
  void load_unfinished(const state::dict& ours);
  void begin_clock();
  void restore_random();
  void throw_failure();
  [[nodiscard]] bool prepare_gradients(std::size_t index);
  [[nodiscard]] bool gradients_are_usable(std::size_t index, const std::vector<at::Tensor>& all,
                                          const at::Tensor& norm);
  [[nodiscard]] std::string parameter_name(std::size_t index, std::size_t nth_gradient) const;
  [[nodiscard]] std::optional<task<>> update_now(std::size_t index);
  [[nodiscard]] task<> update_after(std::size_t index, task<> announced);
  [[nodiscard]] task<> update_when_free(std::size_t index);
  [[nodiscard]] task<> update_together(std::size_t index);
  void backward(const at::Tensor& loss);
  [[nodiscard]] at::Tensor weighed_part(const at::Tensor& loss, double before);
  void look_at_loss(const at::Tensor& loss);
  void learn_who_updates();
  [[nodiscard]] bool goal_reached() const;

  std::unique_ptr<batch_source> source_;
  std::vector<std::unique_ptr<attachment>> attached_;
  class background_pool;
  std::unique_ptr<background_pool> pool_;
  std::exception_ptr failure_;
  std::thread::id home_thread_;
  clock::time_point started_;
  clock::time_point yielded_;
  unsigned signals_seen_ = 0;  ///< `signal_stream::arrivals` when others ran last
  double elapsed_before_ = 0.0;
  std::optional<writing::directory_lock> out_lock_;
  std::int64_t gradients_of_ = 0;  ///< iterations whose gradients wait for the next update
  double window_weight_ = 0.0;     ///< of their batches
  double batch_samples_ = 1.0;
  double batch_weight_ = 1.0;
  bool stop_trigger_fired_ = false;
  bool stopped_by_signal_ = false;
  bool broken_off_by_signal_ = false;
  bool iteration_open_ = false;
  bool broken_off_ = false;          ///< by an error: the state is none between two iterations any more
  bool broken_inside_ = false;       ///< in the middle of an iteration: there are gradients of a part of it
  std::optional<unfinished_iteration::stage> at_stage_;  ///< what an iteration's end is at
  std::vector<bool> updated_;        ///< which optimizers in this iteration, through `update`
  bool updates_are_managed_ = true;  ///< as far as the last iteration tells
  bool epoch_open_ = false;
  bool epoch_begun_ = false;  ///< the range has begun the present epoch
  std::optional<std::size_t> update_open_;
  int watchers_ = 0;                 ///< of signals, that are ready
  bool warned_of_loss_ = false;      ///< that is NaN
  std::vector<scope*> data_waits_;   ///< of the training coroutine, for the next batch: any stop ends them
  std::vector<scope*> work_waits_;   ///< of work that can be done again: a signal ends them
  bool between_iterations_ = false;  ///< while it waits there
  std::optional<unfinished_iteration> unfinished_;
  std::unique_ptr<grace_period> grace_;
  bool ending_ = false;
  std::optional<state::value> restored_random_;
  std::optional<state::value> restored_source_;
  bool training_begun_ = false;
  // With other ranks: what is asked for here, until all have agreed on it.
  struct requests {
    std::optional<std::string> stop;
    std::optional<int> signal;
    bool snapshot = false;
  };
  requests requested_;
  std::unique_ptr<rank_link> rank_link_;                               // null for a process alone
  std::vector<std::unique_ptr<distributed::data_parallel>> parallel_;  ///< one for each model
  std::optional<std::int64_t> restored_samples_;                       ///< of an accumulation window
  bool gradients_joined_ = false;
  // As the program has set them, by model and name; what differs later is a part of the state.
  struct modes_of_model {
    std::vector<std::pair<std::string, bool>> training;
    std::vector<std::pair<std::string, bool>> requires_grad;
  };
  std::map<std::string, modes_of_model> modes_;
  std::optional<state::value> restored_modes_;
  std::optional<state::dict> modes_at_end_;  // before extensions give back what they have switched
};

}  // namespace detail
}  // namespace rondo

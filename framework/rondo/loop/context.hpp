#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <typeindex>
#include <unordered_map>
#include <utility>

#include "rondo/async/offload.hpp"
#include "rondo/async/task.hpp"
#include "rondo/async/wait_group.hpp"
#include "rondo/event/bus.hpp"
#include "rondo/event/events.hpp"
#include "rondo/event/interval.hpp"
#include "rondo/loop/interruption.hpp"
#include "rondo/loop/session.hpp"
#include "rondo/report/observations.hpp"

namespace rondo {

/// Thrown nowhere: the `error` of an `epoch_completed` whose epoch ended early because training was asked to stop.
class stopped : public error {
 public:
  using error::error;
};

/// What an extension, and a user's training step, sees of the run. Valid from `attach` to the end of the run.
/// Everything here belongs to the training thread; debug builds assert it where something is changed.
class context {
 public:
  context(detail::session& s, detail::attachment* self) : session_(s), self_(self) {}
  context(const context&) = delete;
  context& operator=(const context&) = delete;

  // ---- where training stands -------------------------------------------------------------------------------------

  /// Iterations done, over all resumes. Within an iteration: those before it.
  [[nodiscard]] std::int64_t iteration() const noexcept { return session_.now.iteration; }
  /// ppe's `execution`: counted like `iteration()`, from the number that the loaded state says.
  [[nodiscard]] std::int64_t execution() const noexcept { return session_.execution; }
  /// Another number whenever a step or the end of an iteration has changed the state of the run.
  [[nodiscard]] std::int64_t state_version() const noexcept { return session_.version; }
  /// Epochs completed.
  [[nodiscard]] std::int64_t epoch() const noexcept { return session_.now.epoch(); }
  /// Epochs completed, with the fraction of the current one. The fraction is 0 while the length of an epoch is unknown.
  [[nodiscard]] double epoch_detail() const noexcept;
  /// Iterations per epoch; unknown in the first epoch of a range without a size.
  [[nodiscard]] std::optional<std::int64_t> epoch_length() const noexcept { return session_.now.epoch_length; }
  /// Seconds of training up to the end of the last iteration, over all resumes.
  [[nodiscard]] double elapsed_time() const noexcept { return session_.now.elapsed_time; }
  /// All of that, as triggers see it.
  [[nodiscard]] const moment& now() const noexcept { return session_.now; }
  /// The loop's settings.
  [[nodiscard]] const loop_options& options() const noexcept { return session_.options; }
  /// The snapshot that this run goes on from.
  [[nodiscard]] const std::optional<std::filesystem::path>& resumed_from() const noexcept {
    return session_.resumed_from;
  }
  /// The ranks that train together; a single process is rank 0 of 1. Operations of an extension go through a channel of
  /// its own: `ctx.group().channel(ctx.name())`.
  [[nodiscard]] const distributed::rank_group& group() const noexcept { return session_.options.group; }
  [[nodiscard]] int rank() const noexcept { return group().rank(); }
  [[nodiscard]] int world_size() const noexcept { return group().world_size(); }
  /// Whether this is rank 0, which writes files, tables and progress for all (of snapshots, see
  /// `snapshot_options::saver_rank`).
  [[nodiscard]] bool is_saver() const noexcept { return group().rank() == 0; }
  /// The name of the extension; "loop" in a training step.
  [[nodiscard]] const std::string& name() const noexcept;

  /// Whether this run has an extension of that name.
  [[nodiscard]] bool has_extension(std::string_view name) const { return session_.has_extension(name); }

  // ---- events ----------------------------------------------------------------------------------------------------

  /// Subscribes to `E` with the extension's priority. `handler` takes the event or nothing, and returns nothing or a
  /// `task<>`, which the emitter awaits. Closing events that carry an error are not delivered.
  template <class E, class F>
  void on(F handler) {
    subscribe<E>(subscription{priority(), nullptr, false, name()}, std::move(handler));
  }
  /// The same, only when `t` fires; its memory is saved in snapshots.
  template <class E, class F>
  void on(trigger t, F handler) {
    auto gate = std::make_shared<detail::trigger_gate>(std::move(t), session_, false);
    if (self_ != nullptr) self_->handler_gates.push_back(gate);
    subscribe<E>(subscription{priority(), std::move(gate), false, name()}, std::move(handler));
  }
  /// Subscribes to a closing event however the thing ended; `error` of the event says how.
  template <class E, class F>
  void on_end(F handler) {
    static_assert(closing_event<E>, "on_end is for closing events, which have a member std::exception_ptr error");
    subscribe<E>(subscription{priority(), nullptr, true, name()}, std::move(handler));
  }
  /// Subscribes to the iterations after which the extension's trigger fires (`extension::triggered`; every iteration
  /// if it has none).
  template <class F>
  void when_due(F handler) {
    subscribe<event::iteration_completed>(subscription{priority(), own_gate(), false, name()}, std::move(handler));
  }

  /// The trigger of the extension (`extension::triggered`); null if it has none.
  [[nodiscard]] const trigger* own_trigger() const noexcept;

  /// For a coroutine extension: acknowledges the event that it has been working on, and waits for the next `E`, which
  /// stays valid until the next call of `next`. nullptr when the run is over; whoever asks again and again after that
  /// gets an error. Events that are emitted while the extension waits for something else are missed. Cancellation ends
  /// the wait with nullptr.
  template <class E>
  [[nodiscard]] task<const E*> next() {
    session_.assert_home();
    typed_listener<E>& mine = listener_for<E>();
    settle();
    if (mine.subscription.box.closed()) {
      if (mine.has_ended) throw_asked_after_end();
      mine.has_ended = true;
    }
    return mine.subscription.box.next();
  }

  /// Delivers an `E` made from `args` now; see `bus::emit` for how to await the rest.
  template <class E, class... Args>
  [[nodiscard]] std::optional<task<>> emit(Args&&... args) {
    session_.assert_home();
    return session_.events.emit<E>(std::forward<Args>(args)...);
  }
  /// Delivers an `E` made from `args` at the end of the current iteration, before the snapshot.
  template <class E, class... Args>
  void post(Args&&... args) {
    session_.assert_home();
    session_.events.post<E>(std::forward<Args>(args)...);
  }

  // ---- observations ----------------------------------------------------------------------------------------------

  /// Reports a number, or a tensor of one element that is not read before somebody asks for it. `weight`: in averages;
  /// default: the number of samples of the present batch, and in a training step what the batch counts
  /// (`weigh_batch`).
  template <class V>
  void report(std::string_view key, const V& value, std::optional<double> weight = std::nullopt) {
    session_.assert_home();
    session_.observed.report(key, value, weight);
  }
  template <class T, class V>
  void report(observable<T> key, const V& value, std::optional<double> weight = std::nullopt) {
    report(key.name, value, weight);
  }
  /// For a training step: how much the present batch counts, in averages and in accumulated gradients, instead of its
  /// number of samples. Throws `option_error` for a weight that is negative or not finite.
  void weigh_batch(double weight) {
    session_.assert_home();
    session_.weigh_batch(weight);
  }
  /// What batches with this target count: by `loop_options::counts`, or the number of samples.
  [[nodiscard]] double weight_of(const at::Tensor& target) const;

  /// While the result lives, reported keys get `prefix` in front.
  [[nodiscard]] rondo::observations::scope report_scope(std::string_view prefix) { return {session_.observed, prefix}; }

  /// While the result lives, what has been reported so far is put aside; see `observations::aside`.
  [[nodiscard]] rondo::observations::aside put_reports_aside() {
    session_.assert_home();
    return rondo::observations::aside(session_.observed);
  }

  /// What was reported under `key` in this iteration, as a `T`. Throws `observation_error` listing what there is.
  template <class T = double>
  [[nodiscard]] T observed(std::string_view key) const {
    return static_cast<T>(session_.observed.at(key).value());
  }
  template <class T>
  [[nodiscard]] T observed(observable<T> key) const {
    return observed<T>(key.name);
  }
  /// Everything that was reported in this iteration.
  [[nodiscard]] const rondo::observations& reported() const noexcept { return session_.observed; }

  // ---- control ---------------------------------------------------------------------------------------------------

  /// Asks for the end of training after this iteration. Everybody still sees the current events. The first reason wins.
  void stop(std::string reason) {
    session_.assert_home();
    session_.stop(std::move(reason));
  }
  [[nodiscard]] bool stop_requested() const noexcept { return session_.stop_reason.has_value(); }

  /// Begins long work of a handler that a signal may break off; see `rondo::interruptible_work`.
  [[nodiscard]] rondo::interruptible_work interruptible_work() {
    session_.assert_home();
    return rondo::interruptible_work(session_, name());
  }
  /// The signal that has asked for the end of training, if one has.
  [[nodiscard]] const std::optional<int>& stop_signal() const noexcept { return session_.signal; }

  /// Whether a signal has ended the run before its goal, and another one is to go on with it. Known at the end.
  [[nodiscard]] bool preempted() const { return session_.preempted(); }

  /// Runs `work` on a background thread and comes home with its result. `work` is a named callable; it takes values
  /// with it, because the training thread goes on. Throws what it throws. A cancelled caller still waits for it.
  template <class F>
  [[nodiscard]] auto offload(F& work) {
    return rondo::offload(session_.pool(), work);
  }

  /// Starts a coroutine that runs beside training, on the training thread, and is cancelled when training ends. If it
  /// throws, training ends with that error. `f` is a callable that returns `task<>`.
  template <class F>
  void spawn(F f) {
    session_.assert_home();
    session_.background->spawn([&s = session_, f = std::move(f)]() mutable -> task<> {
      std::exception_ptr error;
      try {
        co_await f();
      } catch (...) {
        error = std::current_exception();
      }
      if (error) s.fail(error);
    });
  }

  /// The directory for files, as an absolute path. The first call makes it, removes unfinished files that killed runs
  /// left there, and keeps other trainers out until the run is over. Throws `option_error("out", …)` if nothing can be
  /// written there, `writing::lock_error` if another trainer is at work.
  [[nodiscard]] const std::filesystem::path& out() { return session_.out(); }

  // ---- models and optimizers -------------------------------------------------------------------------------------

  /// Throws `option_error` listing the names if there is no such model. Default: the only one.
  [[nodiscard]] torch::nn::Module& model(std::string_view name = "main") const;
  [[nodiscard]] const std::vector<detail::named_model>& models() const noexcept { return session_.models; }
  [[nodiscard]] torch::optim::Optimizer& optimizer(std::string_view name = "main") const;
  [[nodiscard]] const std::vector<detail::named_optimizer>& optimizers() const noexcept { return session_.optimizers; }

  /// In a supervised loop: the model's output for `input`, which is on the loop's device and of the same type as in
  /// training (`data::input_of` a batch). Throws `option_error` otherwise, and where the output is no tensor.
  template <class Input>
  [[nodiscard]] at::Tensor forward(const Input& input) const {
    return call_forward({&input, typeid(Input)});
  }
  /// In a supervised loop: the loss function's value, with a target of the same type as in training. Throws
  /// `option_error` otherwise.
  template <class Target>
  [[nodiscard]] at::Tensor loss(const at::Tensor& output, const Target& target) const {
    return call_loss(output, {&target, typeid(Target)});
  }
  [[nodiscard]] bool supervised() const noexcept { return static_cast<bool>(session_.supervised.forward); }

  /// For a custom training step: clips the gradients as the loop's options say, announces and takes one step of
  /// `optimizer`, which must be one of the loop's. Completes when everybody has acknowledged `update_completed`.
  [[nodiscard]] task<> update(torch::optim::Optimizer& optimizer);

  /// While the result lives, the loop makes no update, so parameters and the optimizers' state rest and may be read in
  /// the background. Updates, and whoever awaits `exclusive_state`, wait for its end.
  [[nodiscard]] wait_group::member hold_state() {
    session_.assert_home();
    return session_.state_readers.join();
  }
  /// For whoever changes parameters or optimizer state outside of the loop's updates (swapping in averaged weights,
  /// pruning): completes when nobody reads them in the background any more; at once if nobody does. Change them before
  /// the next co_await. Cancellation throws `operation_aborted`.
  [[nodiscard]] task<> exclusive_state() {
    session_.assert_home();
    return session_.state_readers.empty();
  }

  /// For whoever has put other weights into a model for a while: until it is called again with nothing, `tensors`, the
  /// training's own under the names of `state::module_state`, are the model's state in snapshots.
  void stand_in(const std::string& model, std::optional<state::dict> tensors) {
    session_.assert_home();
    if (tensors)
      session_.stand_ins.insert_or_assign(model, std::move(*tensors));
    else
      session_.stand_ins.erase(model);
  }

  // ---- snapshots -------------------------------------------------------------------------------------------------

  /// Takes a snapshot of the run as it is now, by every extension `snapshot()` that saves the loop. Completes when it
  /// is durable; throws what the writing threw, and `option_error` if there is no such extension. Between two
  /// iterations, or when an iteration has ended, it is a regular snapshot; in the middle of an iteration it is marked
  /// as such, named "<name>.mid_iteration" and not resumed from by autoload. What extensions that have not seen the
  /// present event yet would make of it is not in it: where that matters, use `request_snapshot`.
  [[nodiscard]] task<> snapshot() { return session_.snapshot(); }
  /// Asks for a regular snapshot at the end of the present iteration, whatever triggers say.
  void request_snapshot() {
    session_.assert_home();
    session_.snapshot_wanted = true;
  }
  [[nodiscard]] bool snapshot_wanted() const noexcept { return session_.snapshot_wanted; }
  /// While the result lives, no iteration begins: for whoever wants the state between two of them to last a while.
  [[nodiscard]] wait_group::member hold_training() {
    session_.assert_home();
    return session_.pauses.join();
  }
  /// Whether an iteration has begun and not ended, or training has failed, so that the state is not one between two
  /// iterations.
  [[nodiscard]] bool mid_iteration() const noexcept { return session_.mid_iteration(); }

  // ---- state -----------------------------------------------------------------------------------------------------

  /// The state of the whole run in ppe's layout; tensors are the live ones, not copies.
  [[nodiscard]] state::dict state_dict() const { return session_.state_dict(); }
  /// Takes a state back. Only while `event::restoring` is being emitted. Throws `state_error` for what does not fit, if
  /// `options` say so (docs/state.md lists what they mean for each part); models and optimizers have then not been
  /// changed. A tree that is no state of a loop is an error under every option.
  void load_state_dict(const state::value& state, const state::load_options& options = {}) {
    session_.load_state_dict(state, options);
  }
  /// Records which file the state came from.
  void set_resumed_from(std::filesystem::path file) { session_.resumed_from = std::move(file); }

  // ---- for the loop ----------------------------------------------------------------------------------------------

  /// Acknowledges the event that the extension's coroutine has been working on.
  void settle();
  /// Whether the extension's coroutine waits in `next`.
  [[nodiscard]] bool listening() const;

 private:
  [[nodiscard]] at::Tensor call_forward(detail::typed_value input) const;
  [[nodiscard]] at::Tensor call_loss(const at::Tensor& output, detail::typed_value target) const;

  struct any_listener {
    virtual ~any_listener() = default;
    [[nodiscard]] virtual bool waiting() const = 0;
  };
  template <class E>
  struct typed_listener final : any_listener {
    [[nodiscard]] bool waiting() const override { return subscription.box.waiting(); }
    listener<E> subscription;
    bool has_ended = false;  ///< and was asked since
  };

  template <class E, class F>
  void subscribe(subscription how, F handler) {
    static_assert(
        handler_of<F, E>,
        "a handler is called with const E& or with nothing, and returns void or task<>; this one does neither");
    session_.assert_home();
    session_.events.on<E>(std::move(how), std::move(handler));
  }

  template <class E>
  typed_listener<E>& listener_for() {
    auto& mine = listeners_[std::type_index(typeid(E))];
    if (!mine) {
      auto made = std::make_unique<typed_listener<E>>();
      made->subscription.ack = &acknowledgement();
      session_.events.listen<E>(subscription{priority(), nullptr, false, name()}, made->subscription);
      mine = std::move(made);
    }
    return static_cast<typed_listener<E>&>(*mine);
  }

  [[noreturn]] void throw_asked_after_end() const;
  [[nodiscard]] int priority() const noexcept;
  [[nodiscard]] std::shared_ptr<gate> own_gate() const;
  [[nodiscard]] rondo::acknowledgement& acknowledgement();

  detail::session& session_;
  detail::attachment* self_;  // null in a training step
  std::unordered_map<std::type_index, std::unique_ptr<any_listener>> listeners_;
};

/// Awaits an emission's rest, if any: `auto rest = ctx.emit<my_event>(…); co_await acknowledged(std::move(rest));`.
[[nodiscard]] inline task<> acknowledged(std::optional<task<>> rest) {
  if (rest) co_await std::move(*rest);
}

}  // namespace rondo

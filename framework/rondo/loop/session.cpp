#include "rondo/loop/session.hpp"

#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>
#include <torch/types.h>

#include <algorithm>
#include <asio/cancellation_state.hpp>
#include <asio/post.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>
#include <cassert>
#include <cmath>
#include <csignal>
#include <limits>
#include <set>

#include "rondo/async/detail/parked.hpp"
#include "rondo/async/signals.hpp"
#include "rondo/async/trace.hpp"
#include "rondo/log.hpp"
#include "rondo/loop/autocast.hpp"
#include "rondo/loop/context.hpp"
#include "rondo/loop/deterministic.hpp"
#include "rondo/loop/grad_scaler.hpp"
#include "rondo/loop/interruption.hpp"
#include "rondo/loop/yielding.hpp"
#include "rondo/state/random.hpp"
#include "rondo/writing/atomic_file.hpp"

namespace rondo::detail {

namespace {

// Signals, timers and finished background work are looked after between iterations, at most this often.
constexpr auto yield_interval = std::chrono::microseconds(500);

const trace::label& data_wait_span = trace::intern("data_wait", "loop");
const trace::label& iteration_span = trace::intern("iteration", "loop", "", "iteration");
const trace::label& step_span = trace::intern("step", "loop");
const trace::label& update_span = trace::intern("update", "loop");

void log_and_go_on(const std::exception_ptr& error) {
  log::error("while training was ending, an extension threw: " + message_of(error));
}

template <class Named>
void require_names(const char* option, const std::vector<Named>& all) {
  std::set<std::string> seen;
  for (const auto& one : all) {
    if (one.name.empty()) throw option_error(option, "an empty name", "a name for each");
    if (!seen.insert(one.name).second) throw option_error(option, "two called '" + one.name + "'", "different names");
  }
}

void require_positive(const char* option, const std::optional<std::int64_t>& value) {
  if (value && *value < 1) throw option_error(option, fmt::format("{}", *value), "1 or more");
}

void require_positive(const char* option, const std::optional<double>& value) {
  if (value && !(*value > 0.0 && std::isfinite(*value)))
    throw option_error(option, fmt::format("{}", *value), "a positive finite number");
}

void require_signals(const char* option, const std::vector<int>& numbers) {
  for (const int number : numbers)
    if (number < 1 || number > SIGRTMAX || number == SIGKILL || number == SIGSTOP)
      throw option_error(option, fmt::format("{}", number), "numbers of signals that can be caught, such as SIGTERM");
}

}  // namespace

bool trigger_gate::open() {
  if (!shared_ || asked_at_ != session_.execution) {
    asked_at_ = session_.execution;
    answer_ = std::exchange(reopened_, false) || trigger_.due(session_.now);
    if (session_.together() && !trigger_.same_on_all_ranks()) answer_ = session_.first_says(answer_);
  }
  return answer_;
}

void trigger_gate::reopen() {
  reopened_ = true;
  asked_at_ = -1;
}

attachment::attachment(session& s, const extension& e) : what(e.for_run()) {
  if (what.when()) when = std::make_shared<trigger_gate>(*what.when(), s, true);
  ctx = std::make_unique<context>(s, this);
}
attachment::~attachment() = default;

/// A pool whose work may come home to an event loop that is being destroyed (an abandoned `run_async`): then the pool
/// ends before the loop does, because what it would post could not be destroyed afterwards.
class session::background_pool final : public parked {
 public:
  background_pool(std::size_t threads, const executor& home) : pool_(std::in_place, threads) {
    registry_of(home)->add(*this);
  }
  ~background_pool() {
    unlink();
    abandon();
  }
  background_pool(const background_pool&) = delete;
  background_pool& operator=(const background_pool&) = delete;

  void abandon() noexcept override {
    if (!pool_) return;
    pool_->stop();
    pool_->join();
    pool_.reset();
  }
  [[nodiscard]] asio::thread_pool& pool() noexcept { return *pool_; }

 private:
  std::optional<asio::thread_pool> pool_;
};

session::session(loop_options o, std::vector<named_model> m, std::vector<named_optimizer> opt,
                 std::vector<named_state> objects, std::unique_ptr<batch_source> source, supervision s)
    : options(std::move(o)),
      models(std::move(m)),
      optimizers(std::move(opt)),
      state_objects(std::move(objects)),
      supervised(std::move(s)),
      source_(std::move(source)) {
  now.observed = &observed;
  if (options.scaler) state_objects.push_back({"grad_scaler", options.scaler});
}

session::~session() = default;

// ---- the run ----

task<run_result> session::drive(std::vector<extension> extensions) {
  home = co_await asio::this_coro::executor;
  home_thread_ = std::this_thread::get_id();
  trace::name_this_thread("training");
  const ignored_signals quiet{SIGPIPE, SIGXFSZ};
  background = std::make_unique<scope>(home);
  step_context = std::make_unique<context>(*this, nullptr);

  std::optional<deterministic_scope> deterministic;
  std::exception_ptr error;
  try {
    validate();
    if (options.deterministic) deterministic.emplace(options.device);
    attach(std::move(extensions));
    co_await restore();
    if (together()) co_await begin_together();
    co_await start_coroutines();
    co_await train();
  } catch (const interrupted&) {
    if (!unfinished_ || !stop_reason) error = std::current_exception();  // nobody has asked for it
  } catch (...) {
    error = std::current_exception();
    note_unfinished();
  }
  // What follows must happen even if the caller has cancelled the run.
  co_await asio::this_coro::reset_cancellation_state(asio::disable_cancellation());
  run_result ended;
  std::exception_ptr failed;
  try {
    co_await conclude(error);
    ended = result();
    if (ended.signal && options.on_preempted) options.on_preempted(ended);
  } catch (...) {
    failed = std::current_exception();
  }
  release();
  if (failed) std::rethrow_exception(failed);
  co_return ended;
}

/// What may hang as well while it ends: threads of extensions and of the data. The grace period's watch comes last.
void session::release() {
  attached_.clear();
  source_.reset();
  grace_.reset();
}

run_result session::result() const {
  return {stop_reason.value_or(""), now.iteration, now.epoch(),
          now.elapsed_time,         resumed_from,  preempted() ? signal : std::nullopt};
}

bool session::preempted() const {
  if (!signal) return false;
  const bool at_goal = goal_reached() || stop_trigger_fired_;
  return broken_off_by_signal_ || (stopped_by_signal_ && (!at_goal || unfinished_));
}

void session::validate() const {
  require_names("models", models);
  require_names("optimizers", optimizers);
  require_names("state_objects", state_objects);
  require_positive("max_epochs", options.max_epochs);
  require_positive("max_iterations", options.max_iterations);
  require_positive("accumulate", std::optional(options.accumulate));
  require_positive("clip_grad_norm", options.clip_grad_norm);
  require_positive("clip_grad_value", options.clip_grad_value);
  if (!(options.grad_norm_type > 0.0))
    throw option_error("grad_norm_type", fmt::format("{}", options.grad_norm_type), "a positive number or infinity");
  if (options.autocast) autocast_scope::require_possible(options.device.type(), *options.autocast);
  require_positive("background_threads", std::optional<std::int64_t>(options.background_threads));
  require_signals("stop_signals", options.stop_signals);
  require_signals("snapshot_signals", options.snapshot_signals);
  for (const int number : options.snapshot_signals)
    if (std::ranges::find(options.stop_signals, number) != options.stop_signals.end())
      throw option_error("snapshot_signals", fmt::format("{}, which is in stop_signals as well", number),
                         "each signal in one of the two");
  if (options.grace_period && *options.grace_period <= std::chrono::nanoseconds::zero())
    throw option_error("grace_period", fmt::format("{} ns", options.grace_period->count()), "a positive time");
  if (!options.max_epochs && !options.max_iterations && !options.stop_trigger)
    throw option_error("max_epochs", "not set",
                       "a number of epochs, or max_iterations, or a stop_trigger: training needs an end");
  validate_step();
  if (source_->kind() != step_kind::by_hand && (!at::GradMode::is_enabled() || c10::InferenceMode::is_enabled()))
    throw option_error("gradients", "switched off where the loop runs (NoGradGuard or InferenceMode)",
                       "run() outside of such a guard: nothing can be trained under it");
}

/// What the loop would not do is not silently left undone.
void session::validate_step() const {
  const auto refuse = [](const char* option, const char* step, const char* instead) {
    throw option_error(option, fmt::format("set in a loop whose step {}", step), instead);
  };
  const auto kind = source_->kind();
  if (kind == step_kind::gives_loss) return;
  if (options.accumulate_by_weight)
    refuse("accumulate_by_weight", "makes the updates itself", "a step that returns the loss");
  if (options.accumulate > 1)
    refuse("accumulate", "makes the updates itself",
           "a step that returns the loss, or one that calls ctx.update(optimizer) as often as is right");
  if (kind == step_kind::calls_update) return;
  constexpr const char* instead = "a step that returns the loss, or a task<> that calls ctx.update(optimizer)";
  if (options.clip_grad_norm) refuse("clip_grad_norm", "updates by hand", instead);
  if (options.clip_grad_value) refuse("clip_grad_value", "updates by hand", instead);
  if (options.report_grad_norm) refuse("report_grad_norm", "updates by hand", instead);
  if (options.on_non_finite_gradients != non_finite_gradients::use)
    refuse("on_non_finite_gradients", "updates by hand", instead);
}

void session::attach(std::vector<extension> extensions) {
  std::set<std::string> names;
  for (const auto& e : extensions) {
    if (e.name().empty()) throw option_error("extension name", "empty", "a name, which is its key in snapshots");
    if (!names.insert(e.name()).second)
      throw option_error("extension name", fmt::format("'{}' twice", e.name()),
                         "one extension of each name; rename one with .named(\"…\")");
  }
  for (const auto& m : models) m.module->to(options.device);
  remember_modes();
  source_->set_device(options.device);
  updated_.assign(optimizers.size(), false);
  if (const auto length = source_->length()) now.epoch_length = length;
  for (const auto& e : extensions) attached_.push_back(std::make_unique<attachment>(*this, e));
  for (const auto& a : attached_) {
    a->what.self()->attach(*a->ctx);
    const bool ignored = a->when && !a->when_is_used && !a->what.self()->is_coroutine();
    if (ignored)
      throw option_error(
          "triggered", fmt::format("{} for the extension '{}'", a->what.when()->str(), a->what.name()),
          "only for extensions that act when their trigger fires (context::when_due); this one does not. If its "
          "options have a `trigger`, as those of log_report do, set that one");
  }
}

task<> session::restore() {
  auto rest = events.emit<event::restoring>();
  if (rest) co_await std::move(*rest);
}

task<> session::start_coroutines() {
  std::size_t waiting = 0;
  for (const auto& each : attached_) {
    attachment& a = *each;
    if (!a.what.self()->is_coroutine()) continue;
    ++waiting;
    a.life = std::make_unique<scope>(home);
    a.life->spawn([this, &a, &waiting]() -> task<> {
      --waiting;
      std::exception_ptr error;
      try {
        co_await a.what.self()->run(*a.ctx);
      } catch (...) {
        error = std::current_exception();
      }
      // Whatever happened, nobody may wait for this extension any more.
      a.ctx->settle();
      if (error) fail(error);
    });
  }
  while (waiting > 0) co_await asio::post(home, asio::use_awaitable);
  if (options.handle_signals) {
    int expected = 0;
    if (!options.stop_signals.empty()) {
      if (options.grace_period) grace_ = std::make_unique<grace_period>(options.stop_signals, *options.grace_period);
      start_watching(&session::watch_stop_signals);
      ++expected;
    }
    if (!options.snapshot_signals.empty() && can_be_done_again()) {
      start_watching(&session::watch_snapshot_signals);
      ++expected;
    }
    while (watchers_ < expected && !failure_) co_await asio::post(home, asio::use_awaitable);
  }
  throw_failure();
}

task<> session::train() {
  training_begun_ = true;
  auto rest = events.emit<event::training_started>(now.iteration, now.epoch());
  if (rest) co_await std::move(*rest);
  // After those who switch some of it themselves, and have to see it as the program has set it.
  if (const auto changed = std::exchange(restored_modes_, {})) load_modes(*changed);
  begin_clock();
  if (unfinished_ && now.epoch_end) co_await complete_earlier_iteration();
  if (stop_trigger_fired_ && !stop_reason) stop_reason = "the stop trigger had fired before";
  if (goal_reached() && !unfinished_ && !stop_reason) stop_reason = "the goal had been reached before";
  while (!stop_reason) co_await run_epoch();
  restore_random();  // unless training has done it
}

task<> session::run_epoch() {
  if (pauses.size() > 0) co_await pauses.empty();
  if (now.epoch_end) {
    ++now.epoch_index;
    now.iteration_in_epoch = 0;
    now.epoch_end = false;
  }
  begin_epoch();
  if (!unfinished_) {
    auto rest = source_->end_known();
    trace::span waiting(data_wait_span);
    if (rest) co_await wait_for_batch(std::move(*rest));
    waiting.end();
    if (stop_reason) co_return;
    require_batch();
  }
  epoch_open_ = true;
  auto rest = events.emit<event::epoch_started>(now.epoch_index, now.iteration_in_epoch);
  if (rest) co_await std::move(*rest);
  if (unfinished_) co_await complete_earlier_iteration();
  while (!now.epoch_end && !stop_reason) co_await run_iteration();
}

void session::require_batch() {
  if (!source_->exhausted()) return;
  throw option_error(
      "batches", fmt::format("no batch in epoch {} after the first {}", now.epoch_index, now.iteration_in_epoch),
      "a range that gives batches every time it is iterated over: a data set that is not empty, and with "
      "drop_last one that is not smaller than a batch");
}

// The unbroken run drew what a range draws at the beginning of an epoch after the state of its end was saved, and
// before a state inside it was.
void session::begin_epoch() {
  updates_are_managed_ = source_->kind() == step_kind::gives_loss;
  const bool inside = std::exchange(epoch_begun_, true);
  if (!inside) restore_random();
  if (inside && restored_source_) {
    source_->resume(*restored_source_);
  } else {
    if (restored_source_) source_->load_settings(*restored_source_);
    source_->begin(now.epoch_index, now.iteration_in_epoch);
  }
  restored_source_.reset();
  if (const auto length = source_->length()) now.epoch_length = length;
  // Where that makes the first batch, it is made now, as it was then.
  if (!source_->end_known()) static_cast<void>(source_->exhausted());
  if (inside) restore_random();
}

void session::restore_random() {
  if (restored_random_) state::load_random_state(*restored_random_);
  restored_random_.reset();
}

/// A step that sends every optimizer through `update` will go on doing so.
void session::learn_who_updates() {
  const bool all = !updated_.empty() && std::find(updated_.begin(), updated_.end(), false) == updated_.end();
  updates_are_managed_ = all || source_->kind() == step_kind::gives_loss;
}

task<> session::run_iteration() {
  if (pauses.size() > 0) co_await pauses.empty();
  auto rest = source_->ready();
  if (rest) {
    trace::span waiting(data_wait_span);
    co_await wait_for_batch(std::move(*rest));
    waiting.end();
    if (stop_reason) co_return;
    if (pauses.size() > 0) co_await pauses.empty();
  }
  trace::span whole(iteration_span, now.iteration + 1);
  observed.clear();
  at_stage_.reset();
  iteration_open_ = true;
  rest = events.emit<event::iteration_started>(now.iteration + 1);
  if (rest) co_await std::move(*rest);

  // A step that updates by hand cannot be held up in the middle.
  if (!updates_are_managed_ && state_readers.size() > 0) co_await state_readers.empty();
  updated_.assign(optimizers.size(), false);
  for (const auto& model : parallel_) co_await model->broadcast_buffers();
  trace::span stepping(step_span);
  rest = source_->step(*this);
  if (rest) co_await std::move(*rest);
  stepping.end();
  ++version;
  observed.weigh_by(batch_samples_);  // whoever reports now does not speak of what counts in the batch
  learn_who_updates();
  source_->advance();
  co_await complete_iteration();
  whole.end();

  if (should_yield()) co_await yield();
}

/// Now and then, and at once where a signal has arrived, so that training ends with the present iteration.
bool session::should_yield() const {
  return signal_stream::arrivals() != signals_seen_ || clock::now() - yielded_ >= yield_interval;
}

task<> session::yield() {
  signals_seen_ = signal_stream::arrivals();
  co_await let_others_run(home);
  yielded_ = clock::now();
  throw_failure();
}

void session::update_position(bool last) {
  ++now.iteration;
  ++now.iteration_in_epoch;
  ++execution;
  ++version;
  now.epoch_end = last;
  epoch_begun_ = !last;
  if (last && !now.epoch_length) now.epoch_length = now.iteration_in_epoch;
  now.elapsed_time = elapsed_before_ + std::chrono::duration<double>(clock::now() - started_).count();
}

// Everything after the step, without what an earlier run has done of it already. An epoch's end is announced inside its
// last iteration's end: everybody above the snapshot priority has seen both before the state is settled and saved.
task<> session::complete_iteration() {
  using stage = unfinished_iteration::stage;
  const auto from = std::exchange(unfinished_, std::nullopt);
  std::optional<task<>> rest;
  if (!from || from->where == stage::next_batch) {
    rest = source_->end_known();
    if (rest) co_await wait_for_end(std::move(*rest));
    const bool last = !source_->end_known() && source_->exhausted();
    const bool window_ends = wants_update(last);
    // Before anything that waits for ranks which might be in the middle of a window.
    if (together() && options.accumulate > 1)
      options.group.require_same(
          fmt::format("{} in iteration {} (all ranks need the same number of batches, which data::distributed gives "
                      "them)",
                      window_ends ? "an update" : "no update", now.iteration + 1));
    if (window_ends) {
      const trace::span updating(update_span);
      rest = update_now(0);
      if (rest) co_await std::move(*rest);
    }
    update_position(last);
  }

  auto& iterations = events.channel<event::iteration_completed>();
  auto& epochs = events.channel<event::epoch_completed>();
  const event::iteration_completed iteration{now.iteration, nullptr};
  const event::epoch_completed epoch{now.epoch(), nullptr};

  if (together()) require_same_place();
  iteration_open_ = false;
  at_stage_ = stage::iteration;
  if (!from || from->where != stage::epoch) {
    const bool anew = !from || from->where == stage::next_batch;
    rest = anew ? iterations.run_above(iteration) : iterations.run_above_from(from->handler, iteration);
    if (rest) co_await std::move(*rest);
  }
  at_stage_ = stage::epoch;
  if (now.epoch_end) {
    epoch_open_ = false;
    const bool anew = !from || from->where != stage::epoch;
    rest = anew ? epochs.run_above(epoch) : epochs.run_above_from(from->handler, epoch);
    if (rest) co_await std::move(*rest);
  }
  rest = events.drain();
  if (rest) co_await std::move(*rest);
  throw_failure();

  at_stage_.reset();
  decide_stop();
  if (together()) co_await agree_on_requests();
  iterations.settle(iteration);
  if (now.epoch_end) epochs.settle(epoch);
  snapshot_wanted = false;  // who wants one from now on wants the next
  rest = iterations.run_settled(iteration);
  if (rest) co_await std::move(*rest);
  if (now.epoch_end) {
    rest = epochs.run_settled(epoch);
    if (rest) co_await std::move(*rest);
  }
  rest = events.drain();
  if (rest) co_await std::move(*rest);
  throw_failure();
}

bool session::wants_update(bool last_of_epoch) const {
  if (gradients_of_ == 0) return false;
  const bool last = options.max_iterations && now.iteration + 1 >= *options.max_iterations;
  return gradients_of_ >= options.accumulate || last_of_epoch || last;
}

/// After an error at the end of an iteration: a run that goes on from a snapshot of this state does the rest of it.
void session::note_unfinished() {
  using stage = unfinished_iteration::stage;
  if (!at_stage_ || unfinished_) return;
  const auto& thrower = *at_stage_ == stage::iteration ? events.channel<event::iteration_completed>().thrower()
                                                       : events.channel<event::epoch_completed>().thrower();
  constexpr int behind_everybody = std::numeric_limits<int>::min();
  unfinished_ = unfinished_iteration{*at_stage_, thrower.value_or(handler_place{"", 0, behind_everybody})};
}

/// What a signal has left undone in an earlier run.
task<> session::complete_earlier_iteration() {
  restore_random();
  co_await complete_iteration();
}

task<> session::snapshot() {
  auto& savers = events.channel<event::snapshot_requested>();
  if (savers.empty())
    throw option_error("snapshot", "asked for in a loop without an extension that saves it",
                       "a loop with the extension snapshot()");
  const event::snapshot_requested request{now.iteration};
  auto rest = savers.run_all(request);
  if (rest) co_await std::move(*rest);
}

// ---- the end ----

task<> session::conclude(std::exception_ptr error) {
  if (error) options.group.leave(message_of(error));
  if (training_begun_) modes_at_end_ = modes();
  if (!error) {
    try {
      auto rest = events.drain();
      if (rest) co_await std::move(*rest);
      throw_failure();
    } catch (...) {
      error = std::current_exception();
    }
  }
  const std::string where = whereabouts();
  if (error) co_await announce_failure(error);
  const std::exception_ptr second = co_await announce_end(error);
  if (!error && second) {
    error = second;
    co_await announce_failure(error);
  }
  co_await join_everything();
  if (error && failure_) log_and_go_on(failure_);
  if (!error && failure_) {
    error = failure_;
    co_await announce_failure(error);
    co_await join_everything();  // what subscribers have begun now
  }
  out_lock_.reset();
  parallel_.clear();
  if (!error) co_return;
  options.group.leave(message_of(error));
  if (training_begun_) log::error(fmt::format("training has failed {}", where));
  std::rethrow_exception(error);
}

/// Closes what the error has broken off, and tells everybody about it.
task<> session::announce_failure(std::exception_ptr error) {
  broken_off_ = true;
  broken_inside_ = iteration_open_ && !unfinished_;
  if (std::exchange(iteration_open_, false)) {
    if (update_open_) {
      const event::update_completed update{optimizers[*update_open_].name, error};
      co_await events.channel<event::update_completed>().tell_all(update, log_and_go_on);
    }
    const event::iteration_completed iteration{now.iteration + 1, error};
    co_await events.channel<event::iteration_completed>().tell_all(iteration, log_and_go_on);
  }
  co_await close_epoch(error);
  const event::failed failure{error};
  if (training_begun_) co_await events.channel<event::failed>().tell_all(failure, log_and_go_on);
}

/// For people: what was going on.
std::string session::whereabouts() const {
  const auto epoch = now.epoch_index + 1;
  if (update_open_) return fmt::format("in the update of iteration {} (epoch {})", now.iteration + 1, epoch);
  if (iteration_open_) return fmt::format("in the step of iteration {} (epoch {})", now.iteration + 1, epoch);
  if (now.iteration == 0) return "before the first iteration";
  return fmt::format("after iteration {} (epoch {})", now.iteration, epoch);
}

task<> session::close_epoch(std::exception_ptr reason) {
  if (!std::exchange(epoch_open_, false)) co_return;
  const event::epoch_completed epoch{now.epoch_index + 1, reason};
  co_await events.channel<event::epoch_completed>().tell_all(epoch, log_and_go_on);
}

/// `training_completed` for everybody; gives the first error that one of them threw.
task<std::exception_ptr> session::announce_end(std::exception_ptr error) {
  std::exception_ptr first;
  if (!training_begun_) co_return first;
  const std::string reason = error ? "" : *stop_reason;
  if (!error) co_await close_epoch(std::make_exception_ptr(stopped("training stopped inside the epoch: " + reason)));
  const event::training_completed training{now.iteration, now.epoch(), reason, error};
  const auto keep_first = [&](std::exception_ptr thrown) {
    if (error || first)
      log_and_go_on(thrown);
    else
      first = thrown;
  };
  co_await events.channel<event::training_completed>().tell_all(training, keep_first);
  co_return first;
}

task<> session::join_everything() {
  ending_ = true;
  // Listeners wake up to nullptr and may finish their work; a coroutine that waits for something else is cancelled.
  for (const auto& a : attached_)
    if (a->life && !a->ctx->listening()) a->life->cancel();
  events.close();
  for (const auto& a : attached_)
    if (a->life) co_await a->life->join();
  background->cancel();
  try {
    co_await background->join();
  } catch (...) {
    fail(std::current_exception());
  }
  pool_.reset();
}

// ---- services ----

void session::stop(std::string reason) {
  if (together()) {
    if (!requested_.stop) requested_.stop = std::move(reason);
    return;
  }
  if (!stop_reason) stop_reason = std::move(reason);
  for (scope* wait : data_waits_) wait->cancel();
}

void session::fail(std::exception_ptr error) noexcept {
  const bool cancelled_by_us = ending_ && is_operation_aborted(error);
  if (failure_ && !cancelled_by_us && !is_operation_aborted(error))
    log::error("a coroutine beside training failed after another one: " + message_of(error));
  if (!failure_ && !cancelled_by_us) failure_ = std::move(error);
  for (scope* wait : data_waits_) wait->cancel();
  for (scope* wait : work_waits_) wait->cancel();
}

void session::throw_failure() {
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

bool session::goal_reached() const {
  return (options.max_epochs && now.epoch() >= *options.max_epochs) ||
         (options.max_iterations && now.iteration >= *options.max_iterations);
}

void session::decide_stop() {
  // The trigger is asked in any case: it has to see every iteration.
  bool fired = options.stop_trigger && options.stop_trigger->due(now);
  if (options.stop_trigger && together() && !options.stop_trigger->same_on_all_ranks()) fired = first_says(fired);
  if (fired) {
    stop_trigger_fired_ = true;
    stop("stop trigger: " + options.stop_trigger->str());
  }
  if (options.max_epochs && now.epoch() >= *options.max_epochs) stop(fmt::format("{} epochs completed", now.epoch()));
  if (options.max_iterations && now.iteration >= *options.max_iterations)
    stop(fmt::format("{} iterations completed", now.iteration));
}

void session::begin_clock() {
  elapsed_before_ = now.elapsed_time;
  started_ = clock::now();
  yielded_ = started_;
}

const std::filesystem::path& session::out() {
  if (out_lock_) return options.out;
  if (options.out.empty()) throw option_error("out", "\"\"", "the name of a directory");
  options.out = std::filesystem::absolute(options.out);  // so that a later chdir changes nothing
  try {
    const auto files = writing::posix_file_system();
    writing::create_directories(*files, options.out);
    if (options.group.rank() != 0) return options.out;  // rank 0 looks after it
    out_lock_.emplace(options.out);
    for (const auto& left_over : writing::remove_stale_temporaries(*files, options.out))
      log::info(fmt::format("removed '{}', which a killed process had left unfinished", left_over.string()));
  } catch (const io_error& e) {
    throw option_error("out", options.out.string(),
                       std::string("a directory that this process can write to: ") + e.what());
  }
  return options.out;
}

asio::thread_pool& session::pool() {
  if (!pool_) pool_ = std::make_unique<background_pool>(static_cast<std::size_t>(options.background_threads), home);
  return pool_->pool();
}

bool session::has_extension(std::string_view name) const {
  return std::any_of(attached_.begin(), attached_.end(), [&](const auto& a) { return a->what.name() == name; });
}

void session::assert_home() const {
  assert(home_thread_ == std::this_thread::get_id() && "a context belongs to the training thread");
}

double session::epoch_detail() const {
  if (!now.epoch_length || now.epoch_end) return static_cast<double>(now.epoch());
  return static_cast<double>(now.epoch_index) +
         static_cast<double>(now.iteration_in_epoch) / static_cast<double>(*now.epoch_length);
}

}  // namespace rondo::detail

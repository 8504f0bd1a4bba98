#include "rondo/loop/session.hpp"

#include <fmt/format.h>
#include <torch/optim/lbfgs.h>
#include <c10/util/Type.h>
#include <torch/types.h>

#include <asio/cancellation_state.hpp>
#include <asio/post.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>
#include <cassert>
#include <cmath>
#include <csignal>
#include <set>

#include "rondo/async/detail/parked.hpp"
#include "rondo/async/signals.hpp"
#include "rondo/log.hpp"
#include "rondo/loop/context.hpp"
#include "rondo/state/random.hpp"
#include "rondo/writing/atomic_file.hpp"

namespace rondo::detail {

namespace {

// Signals, timers and finished background work are looked after between iterations, at most this often.
constexpr auto yield_interval = std::chrono::microseconds(500);

std::string message_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "unknown exception";
  }
}

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

/// Loads `objects` by name from `state`; what is on one side only is an error.
template <class Named, class Load>
void load_named(const char* part, const std::vector<Named>& objects, const state::value& state, Load load) {
  const auto& stored = state.as<state::dict>();
  for (const auto& [key, ignored] : stored) {
    const bool known = std::any_of(objects.begin(), objects.end(), [&](const Named& o) { return o.name == key.str(); });
    if (!known)
      throw state_error(std::string(part) + "." + key.str(),
                        "is in the snapshot, but the loop has nothing of that name");
  }
  for (const auto& object : objects) {
    try {
      load(object, stored.at(object.name));
    } catch (const state_error& e) {
      const bool names_object = e.key() == object.name;
      throw names_object ? e.under(part) : e.under(std::string(part) + "." + object.name);
    }
  }
}

}  // namespace

bool trigger_gate::open() {
  if (!shared_ || asked_at_ != session_.execution) {
    asked_at_ = session_.execution;
    answer_ = trigger_.due(session_.now);
  }
  return answer_;
}

attachment::attachment(session& s, const extension& e) : what(e) {
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
}

session::~session() = default;

// ---- the run
// ----------------------------------------------------------------------------------------------------------

task<run_result> session::drive(std::vector<extension> extensions) {
  home = co_await asio::this_coro::executor;
  home_thread_ = std::this_thread::get_id();
  const ignored_signals quiet{SIGPIPE, SIGXFSZ};
  background = std::make_unique<scope>(home);
  step_context = std::make_unique<context>(*this, nullptr);

  std::exception_ptr error;
  try {
    validate();
    attach(std::move(extensions));
    co_await restore();
    co_await start_coroutines();
    co_await train();
  } catch (...) {
    error = std::current_exception();
  }
  // What follows must happen even if the caller has cancelled the run.
  co_await asio::this_coro::reset_cancellation_state(asio::disable_cancellation());
  co_await conclude(error);
  co_return run_result{stop_reason.value_or(""), now.iteration, now.epoch(), now.elapsed_time, resumed_from};
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
  require_positive("background_threads", std::optional<std::int64_t>(options.background_threads));
  if (!options.max_epochs && !options.max_iterations && !options.stop_trigger)
    throw option_error("max_epochs", "not set",
                       "a number of epochs, or max_iterations, or a stop_trigger: training needs an end");
}

void session::attach(std::vector<extension> extensions) {
  std::set<std::string> names;
  for (const auto& e : extensions) {
    if (e.name().empty()) throw option_error("extension name", "empty", "a name, which is its key in snapshots");
    if (!names.insert(e.name()).second)
      throw option_error("extension name", fmt::format("'{}' twice", e.name()),
                         "one extension of each name; rename one with .named(\"…\")");
  }
  for (const auto& m : models) {
    m.module->to(options.device);
    m.module->train();
  }
  if (const auto length = source_->length()) now.epoch_length = length;
  for (const auto& e : extensions) attached_.push_back(std::make_unique<attachment>(*this, e));
  for (const auto& a : attached_) {
    a->what.self()->attach(*a->ctx);
    const bool ignored = a->when && !a->when_is_used && !a->what.self()->is_coroutine();
    if (ignored)
      throw option_error(
          "triggered", fmt::format("{} for the extension '{}'", a->what.when()->str(), a->what.name()),
          "only for extensions that act when their trigger fires (context::when_due); this one does not");
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
    background->spawn([this]() -> task<> {
      std::exception_ptr error;
      try {
        co_await watch_signals();
      } catch (...) {
        error = std::current_exception();
      }
      if (error) fail(error);
    });
    while (!watching_signals_ && !failure_) co_await asio::post(home, asio::use_awaitable);
  }
  throw_failure();
}

task<> session::watch_signals() {
  // Gone after the first signal, so that a second one finds whatever was installed before.
  int number = 0;
  void (*previous)(int) = SIG_DFL;
  {
    signal_stream signals(home, {SIGINT, SIGTERM});
    watching_signals_ = true;
    number = co_await signals.next();
    const struct sigaction before = signals.previous(number);
    if ((before.sa_flags & SA_SIGINFO) == 0) previous = before.sa_handler;
  }
  stop(number == SIGINT ? "SIGINT" : "SIGTERM");
  if (previous != SIG_DFL && previous != SIG_IGN) previous(number);
  events.post<event::signal_received>(number);
}

task<> session::train() {
  training_begun_ = true;
  auto rest = events.emit<event::training_started>(now.iteration, now.epoch());
  if (rest) co_await std::move(*rest);
  begin_clock();
  if (stop_trigger_fired_) stop("the stop trigger had fired before");
  if (goal_reached()) stop("the goal had been reached before");
  while (!stop_reason) co_await run_epoch();
}

task<> session::run_epoch() {
  if (now.epoch_end) {
    ++now.epoch_index;
    now.iteration_in_epoch = 0;
    now.epoch_end = false;
  }
  // The unbroken run drew what a range draws at the beginning of an epoch after the state of its end was saved, and
  // before a state inside it was.
  const bool inside = now.iteration_in_epoch > 0;
  if (!inside) restore_random();
  source_->begin(now.epoch_index, now.iteration_in_epoch);
  if (inside) restore_random();
  if (source_->exhausted())
    throw option_error("batches",
                       fmt::format("no batch in epoch {} after the first {}", now.epoch_index, now.iteration_in_epoch),
                       "a range that gives batches every time it is iterated over");
  epoch_open_ = true;
  auto rest = events.emit<event::epoch_started>(now.epoch_index, now.iteration_in_epoch);
  if (rest) co_await std::move(*rest);
  while (!now.epoch_end && !stop_reason) co_await run_iteration();
}

void session::restore_random() {
  if (restored_random_) state::load_random_state(*restored_random_);
  restored_random_.reset();
}

task<> session::run_iteration() {
  observed.clear();
  iteration_open_ = true;
  auto rest = events.emit<event::iteration_started>(now.iteration + 1);
  if (rest) co_await std::move(*rest);

  rest = source_->step(*this);
  if (rest) co_await std::move(*rest);
  source_->advance();
  const bool last = source_->exhausted();
  if (gradients_of_ == options.accumulate || (last && gradients_of_ > 0)) {
    rest = update_now(0);
    if (rest) co_await std::move(*rest);
  }

  ++now.iteration;
  ++now.iteration_in_epoch;
  ++execution;
  now.epoch_end = last;
  if (last && !now.epoch_length) now.epoch_length = now.iteration_in_epoch;
  const auto time = clock::now();
  now.elapsed_time = elapsed_before_ + std::chrono::duration<double>(time - started_).count();
  co_await end_iteration();

  if (time - yielded_ < yield_interval) co_return;
  co_await asio::post(home, asio::use_awaitable);
  yielded_ = clock::now();
  throw_failure();
}

// An epoch's end is announced inside its last iteration's end: everybody above the snapshot priority has seen both
// before the state is settled and saved.
task<> session::end_iteration() {
  auto& iterations = events.channel<event::iteration_completed>();
  auto& epochs = events.channel<event::epoch_completed>();
  const event::iteration_completed iteration{now.iteration, nullptr};
  const event::epoch_completed epoch{now.epoch(), nullptr};

  iteration_open_ = false;
  auto rest = iterations.run_above(iteration);
  if (rest) co_await std::move(*rest);
  if (now.epoch_end) {
    epoch_open_ = false;
    rest = epochs.run_above(epoch);
    if (rest) co_await std::move(*rest);
  }
  rest = events.drain();
  if (rest) co_await std::move(*rest);
  throw_failure();

  decide_stop();
  iterations.settle(iteration);
  if (now.epoch_end) epochs.settle(epoch);
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

// ---- the end
// ----------------------------------------------------------------------------------------------------------

task<> session::conclude(std::exception_ptr error) {
  if (!error) {
    try {
      auto rest = events.drain();
      if (rest) co_await std::move(*rest);
      throw_failure();
    } catch (...) {
      error = std::current_exception();
    }
  }
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
  }
  out_lock_.reset();
  if (error) std::rethrow_exception(error);
}

/// Closes what the error has broken off, and tells everybody about it.
task<> session::announce_failure(std::exception_ptr error) {
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

// ---- services
// ---------------------------------------------------------------------------------------------------------

void session::stop(std::string reason) {
  if (!stop_reason) stop_reason = std::move(reason);
}

void session::fail(std::exception_ptr error) noexcept {
  const bool cancelled_by_us = ending_ && is_operation_aborted(error);
  if (!failure_ && !cancelled_by_us) failure_ = std::move(error);
}

void session::throw_failure() {
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

bool session::goal_reached() {
  return (options.max_epochs && now.epoch() >= *options.max_epochs) ||
         (options.max_iterations && now.iteration >= *options.max_iterations);
}

void session::decide_stop() {
  // The trigger is asked in any case: it has to see every iteration.
  const bool fired = options.stop_trigger && options.stop_trigger->due(now);
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

// ---- updates
// ----------------------------------------------------------------------------------------------------------

std::size_t session::optimizer_index(const torch::optim::Optimizer& optimizer) const {
  for (std::size_t i = 0; i < optimizers.size(); ++i)
    if (optimizers[i].optimizer.get() == &optimizer) return i;
  throw option_error("update", "an optimizer that the loop does not know", "one of those given to the loop");
}

std::optional<task<>> session::learn(const at::Tensor& loss, std::int64_t samples) {
  if (optimizers.size() != 1)
    throw option_error("step", fmt::format("returns a loss in a loop with {} optimizers", optimizers.size()),
                       "exactly one optimizer; with several, call co_await ctx.update(optimizer) and return nothing");
  if (dynamic_cast<torch::optim::LBFGS*>(optimizers[0].optimizer.get()) != nullptr)
    throw option_error("optimizer", "LBFGS",
                       "an optimizer that steps without a closure; for LBFGS write a step that calls step(closure)");
  if (!loss.defined() || loss.numel() != 1)
    throw option_error("loss", loss.defined() ? fmt::format("a tensor of {} elements", loss.numel()) : "undefined",
                       "a tensor with one element");
  observed.report("train/loss", loss, static_cast<double>(samples));
  if (gradients_of_ == 0) optimizers[0].optimizer->zero_grad();
  if (options.accumulate == 1)
    loss.backward();
  else
    (loss / static_cast<double>(options.accumulate)).backward();
  ++gradients_of_;
  return std::nullopt;
}

void session::clip(std::size_t index) {
  const bool short_window = gradients_of_ > 0 && gradients_of_ < options.accumulate;
  if (!short_window && !options.clip_grad_norm && !options.clip_grad_value) return;
  torch::NoGradGuard no_grad;
  std::vector<at::Tensor> gradients;
  for (const auto& group : optimizers[index].optimizer->param_groups())
    for (const auto& parameter : group.params())
      if (parameter.grad().defined()) gradients.push_back(parameter.grad());
  if (gradients.empty()) return;
  if (short_window) {
    const double scale = static_cast<double>(options.accumulate) / static_cast<double>(gradients_of_);
    for (auto& g : gradients) g.mul_(scale);
  }
  if (options.clip_grad_norm) {
    // As torch.nn.utils.clip_grad_norm_, without waiting for the device.
    std::vector<at::Tensor> norms;
    norms.reserve(gradients.size());
    for (const auto& g : gradients) norms.push_back(g.norm(2));
    const auto total = torch::stack(norms).norm(2);
    const auto scale = (*options.clip_grad_norm / (total + 1e-6)).clamp_max(1.0);
    for (auto& g : gradients) g.mul_(scale);
    observed.report("train/grad_norm", total);
  }
  if (options.clip_grad_value)
    for (auto& g : gradients) g.clamp_(-*options.clip_grad_value, *options.clip_grad_value);
}

std::optional<task<>> session::update_now(std::size_t index) {
  clip(index);
  gradients_of_ = 0;
  const auto& one = optimizers[index];
  update_open_ = index;
  auto rest = events.emit<event::update_started>(one.name);
  if (rest) return update_after(index, std::move(*rest));
  one.optimizer->step();
  update_open_.reset();
  return events.emit<event::update_completed>(one.name, std::exception_ptr());
}

task<> session::update_after(std::size_t index, task<> announced) {
  co_await std::move(announced);
  const auto& one = optimizers[index];
  one.optimizer->step();
  update_open_.reset();
  auto rest = events.emit<event::update_completed>(one.name, std::exception_ptr());
  if (rest) co_await std::move(*rest);
}

task<> session::update(std::size_t index) {
  auto rest = update_now(index);
  if (rest) co_await std::move(*rest);
}

// ---- state
// ------------------------------------------------------------------------------------------------------------

namespace {

bool is_empty(const state::value& memory) {
  const auto* both = memory.get_if<state::dict>();
  if (both == nullptr) return false;
  return std::all_of(both->begin(), both->end(), [](const auto& part) {
    const auto* dict = part.second.template get_if<state::dict>();
    return dict != nullptr && dict->empty();
  });
}

state::dict memory_of(const attachment& a) {
  auto own = a.what.self()->state_dict();
  return {{"extension", own ? std::move(*own) : state::value(state::dict())},
          {"trigger", a.when ? a.when->inner().state_dict() : state::value(state::dict())}};
}

bool remembers(const attachment& a) { return !is_empty(memory_of(a)); }

}  // namespace

state::dict session::state_dict() const {
  state::dict all_models;
  for (const auto& m : models) all_models.insert_or_assign(m.name, state::module_state(*m.module));
  state::dict all_optimizers;
  for (const auto& o : optimizers) all_optimizers.insert_or_assign(o.name, state::optimizer_state(*o.optimizer));
  state::dict objects;
  for (const auto& o : state_objects) objects.insert_or_assign(o.name, o.object.save());
  state::dict extensions;
  for (const auto& a : attached_) extensions.insert_or_assign(a->what.name(), memory_of(*a));
  state::dict ours{
      {"format", 1},
      {"epoch_index", now.epoch_index},
      {"iteration_in_epoch", now.iteration_in_epoch},
      {"epoch_end", now.epoch_end},
      {"epoch_length", now.epoch_length ? state::value(*now.epoch_length) : state::value()},
      {"elapsed_time", now.elapsed_time},
      {"stop_trigger_fired", stop_trigger_fired_},
      {"stop_trigger", options.stop_trigger ? options.stop_trigger->state_dict() : state::value(state::dict())},
      {"optimizer_types", optimizer_types()},
      {"gradients", gradients()},
      {"random", state::random_state()}};
  return {{"_start_iteration", now.iteration},
          {"_start_execution", execution},
          {"models", std::move(all_models)},
          {"optimizers", std::move(all_optimizers)},
          {"state_objects", std::move(objects)},
          {"extensions", std::move(extensions)},
          {"ppe_version", "0.9.0"},
          {"rondo", std::move(ours)}};
}

void session::load_state_dict(const state::value& state) {
  if (training_begun_) throw error("load_state_dict: a state can only be loaded before training starts");
  const auto& root = state.as<state::dict>();
  const auto iteration = state.get<std::int64_t>("_start_iteration");

  // Models and optimizers are changed last, and only when everything else has been found good.
  std::vector<std::function<void()>> prepared;
  load_named("models", models, root.at("models"), [&](const named_model& m, const state::value& v) {
    prepared.push_back(state::prepare_module_load(*m.module, v));
  });
  load_named("optimizers", optimizers, root.at("optimizers"), [&](const named_optimizer& o, const state::value& v) {
    prepared.push_back(state::prepare_optimizer_load(*o.optimizer, v));
  });
  if (const auto* stored = root.find("state_objects"))
    load_named("state_objects", state_objects, *stored,
               [](const named_state& o, const state::value& v) { o.object.load(v); });
  load_extensions(root);

  const auto* stored_execution = root.find("_start_execution");
  execution = stored_execution != nullptr ? stored_execution->as<std::int64_t>() : iteration;
  now.iteration = iteration;
  load_position(root);
  for (const auto& apply : prepared) apply();
}

void session::load_extensions(const state::dict& root) {
  const auto* stored = root.find("extensions");
  if (stored == nullptr) return;
  const auto& all = stored->as<state::dict>();
  for (const auto& a : attached_) {
    const auto& name = a->what.name();
    const auto* own = all.find(name);
    if (own == nullptr) {
      if (remembers(*a))
        log::warn(fmt::format("the snapshot knows no extension '{}': it starts without a memory", name));
      continue;
    }
    try {
      a->what.self()->load_state_dict(own->at("extension"));
      if (a->when) a->when->inner().load_state_dict(own->at("trigger"));
    } catch (const state_error& e) {
      throw e.under("extensions." + name);
    }
  }
  for (const auto& [key, memory] : all) {
    const bool known = is_empty(memory) || std::any_of(attached_.begin(), attached_.end(),
                                                       [&](const auto& a) { return a->what.name() == key.str(); });
    if (!known)
      log::warn(
          fmt::format("the snapshot has a state for the extension '{}', which this loop does not have", key.str()));
  }
}

void session::load_position(const state::dict& root) {
  const auto* ours = root.find("rondo");
  if (ours == nullptr) {  // written by pytorch-pfn-extras, which counts iterations only
    if (!now.epoch_length && now.iteration > 0)
      throw state_error("rondo",
                        "is missing; a state of pytorch-pfn-extras needs batches whose number per epoch is known");
    if (now.iteration == 0) return;
    now.epoch_index = (now.iteration - 1) / *now.epoch_length;
    now.iteration_in_epoch = (now.iteration - 1) % *now.epoch_length + 1;
    now.epoch_end = now.iteration_in_epoch == *now.epoch_length;
    return;
  }
  const auto& length = ours->at("epoch_length");
  if (!length.is_null() && now.epoch_length && length.as<std::int64_t>() != *now.epoch_length)
    log::warn(fmt::format(
        "the snapshot was taken with {} iterations per epoch, now there are {}: this epoch goes on after its "
        "first {} iterations",
        length.as<std::int64_t>(), *now.epoch_length, ours->get<std::int64_t>("iteration_in_epoch")));
  now.epoch_index = ours->get<std::int64_t>("epoch_index");
  now.iteration_in_epoch = ours->get<std::int64_t>("iteration_in_epoch");
  now.epoch_end = ours->get<bool>("epoch_end");
  if (!now.epoch_length && !length.is_null()) now.epoch_length = length.as<std::int64_t>();
  // A learned length may be that of another epoch; only a range that knows its size can say that this one is over.
  if (source_->length() && now.iteration_in_epoch >= *source_->length()) now.epoch_end = true;
  now.elapsed_time = ours->at("elapsed_time").number();
  stop_trigger_fired_ = options.stop_trigger && ours->get<bool>("stop_trigger_fired");
  if (options.stop_trigger) {
    try {
      options.stop_trigger->load_state_dict(ours->at("stop_trigger"));
    } catch (const state_error& e) {
      throw e.under("rondo.stop_trigger");
    }
  }
  check_optimizer_types(*ours);
  restored_random_ = ours->at("random");
  load_gradients(*ours);
}

// States of different optimizers can look alike (Adam and AdamW do).
state::dict session::optimizer_types() const {
  state::dict types;
  for (const auto& o : optimizers) types.insert_or_assign(o.name, c10::demangle(typeid(*o.optimizer).name()));
  return types;
}

void session::check_optimizer_types(const state::value& ours) const {
  const auto* stored = ours.as<state::dict>().find("optimizer_types");
  if (stored == nullptr) return;
  const auto present = optimizer_types();
  for (const auto& [name, type] : present) {
    const auto* before = stored->as<state::dict>().find(name);
    if (before != nullptr && before->as<std::string>() != type.as<std::string>())
      throw state_error("optimizers." + name.str(), fmt::format("is the state of a {}, the loop has a {}",
                                                                before->as<std::string>(), type.as<std::string>()));
  }
}

// A snapshot inside an accumulation window carries the gradients that wait for the update.
state::value session::gradients() const {
  if (gradients_of_ == 0) return {};
  state::list all;
  for (const auto& group : optimizers[0].optimizer->param_groups()) {
    for (const auto& parameter : group.params()) {
      auto& stored = all.emplace_back();
      if (parameter.grad().defined()) stored = parameter.grad().detach();
    }
  }
  return state::dict{{"iterations", gradients_of_}, {"accumulate", options.accumulate}, {"tensors", std::move(all)}};
}

void session::load_gradients(const state::value& ours) {
  const auto* stored = ours.as<state::dict>().find("gradients");
  if (stored == nullptr || stored->is_null()) return;
  const auto window = stored->get<std::int64_t>("accumulate");
  if (window != options.accumulate)
    throw state_error("rondo.gradients",
                      fmt::format("were gathered with accumulate = {}, now it is {}; go on with the old "
                                  "number, or from a snapshot at the end of a window",
                                  window, options.accumulate));
  const auto& tensors = stored->get<state::list>("tensors");
  std::vector<at::Tensor> parameters;
  for (const auto& group : optimizers.at(0).optimizer->param_groups())
    parameters.insert(parameters.end(), group.params().begin(), group.params().end());
  if (tensors.size() != parameters.size())
    throw state_error("rondo.gradients", fmt::format("expected {} tensors, one per parameter, found {}",
                                                     parameters.size(), tensors.size()));
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (tensors[i].is_null()) continue;
    const auto& gradient = tensors[i].as<at::Tensor>();
    if (gradient.sizes() != parameters[i].sizes())
      throw state_error(fmt::format("rondo.gradients.{}", i), "has another shape than the parameter");
    parameters[i].mutable_grad() = gradient.to(parameters[i].device(), parameters[i].scalar_type(), false, true);
  }
  gradients_of_ = stored->get<std::int64_t>("iterations");
}

}  // namespace rondo::detail

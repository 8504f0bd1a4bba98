// Signals, and what they break off: the wait for data, and work of extensions that can be done again.

#include <asio/this_coro.hpp>
#include <csignal>
#include <cstring>
#include <utility>

#include "rondo/async/signals.hpp"
#include "rondo/loop/interruption.hpp"
#include "rondo/loop/session.hpp"
#include "rondo/loop/yielding.hpp"
#include "rondo/state/random.hpp"

namespace rondo::detail {

namespace {

// Work that can be broken off lets others run at most this often.
constexpr auto point_interval = std::chrono::milliseconds(10);

std::string name_of(int signal) {
  const char* const short_name = sigabbrev_np(signal);
  return short_name != nullptr ? "SIG" + std::string(short_name) : "signal " + std::to_string(signal);
}

}  // namespace

void session::start_watching(task<> (session::*watch)()) {
  background->spawn([this, watch]() -> task<> {
    std::exception_ptr error;
    try {
      co_await (this->*watch)();
    } catch (...) {
      error = std::current_exception();
    }
    if (error) fail(error);
  });
}

// Ends with the first signal, so that a second one finds whatever was installed before.
task<> session::watch_stop_signals() {
  void (*previous)(int) = SIG_DFL;
  int number = 0;
  {
    signal_stream signals(home, options.stop_signals, signal_stream::mode::first);
    ++watchers_;
    number = co_await signals.next();
    const struct sigaction before = signals.previous(number);
    if ((before.sa_flags & SA_SIGINFO) == 0) previous = before.sa_handler;
  }
  if (together()) {
    requested_.signal = number;
  } else {
    signal = number;
    stopped_by_signal_ = !stop_reason;
  }
  stop(name_of(number));
  if (!together() && can_be_done_again())
    for (scope* wait : work_waits_) wait->cancel();
  if (previous != SIG_DFL && previous != SIG_IGN) previous(number);
  events.post<event::signal_received>(number);
}

task<> session::watch_snapshot_signals() {
  signal_stream signals(home, options.snapshot_signals);
  ++watchers_;
  for (;;) {
    const int number = co_await signals.next();
    events.post<event::signal_received>(number);
    // The next iteration may be far away.
    if (together())
      requested_.snapshot = true;
    else if (between_iterations_)
      co_await snapshot();
    else
      snapshot_wanted = true;
  }
}

task<> session::wait_for_batch(task<> ready) {
  between_iterations_ = true;
  std::exception_ptr error;
  try {
    co_await wait_for_data(std::move(ready));
  } catch (...) {
    error = std::current_exception();
  }
  between_iterations_ = false;
  if (error) std::rethrow_exception(error);
}

/// Whether the batch was the last one of its epoch, where only the next one tells. A run that is saved meanwhile has
/// the answer, and all that follows from it, before it, as has one that is stopped meanwhile and saved at its end.
/// Where it is not, the iteration of a stopped run ends like one inside an epoch.
task<> session::wait_for_end(task<> known) {
  iteration_open_ = false;
  unfinished_.emplace();
  std::exception_ptr error;
  try {
    co_await wait_for_batch(std::move(known));
    if (pauses.size() > 0) co_await pauses.empty();
  } catch (...) {
    error = std::current_exception();
  }
  iteration_open_ = true;
  if (error) std::rethrow_exception(error);  // what is left to do stays known
  bool saved = false;
  if (source_->end_known()) {
    auto asked = events.emit<event::end_to_be_saved>(signal.has_value(), &saved);
    if (asked) co_await std::move(*asked);
  }
  if (saved) {
    iteration_open_ = false;
    throw interrupted();
  }
  unfinished_.reset();
}

task<> session::wait_for_data(task<> ready) {
  return wait_until_cancelled(std::move(ready), data_waits_, &session::data_wait_is_over);
}

task<> session::wait_in_work(const unfinished_iteration* work, task<> other) {
  if (work == nullptr) return other;
  return wait_until_cancelled(std::move(other), work_waits_, &session::work_wait_is_over);
}

/// While it waits, whoever has a reason can end it through `waits`. One that there is already is looked for at the
/// moment from which on others are told, so that none comes in between.
task<> session::wait_until_cancelled(task<> other, std::vector<scope*>& waits, bool (session::*over)()) {
  scope* mine = nullptr;
  const auto wait = [&](scope& waiting) -> task<> {
    mine = &waiting;
    waits.push_back(mine);
    waiting.spawn([&other]() -> task<> { co_await std::move(other); });
    if ((this->*over)()) waiting.cancel();
    co_return;
  };
  std::exception_ptr error;
  try {
    co_await with_scope(wait);
  } catch (...) {
    error = std::current_exception();
  }
  std::erase(waits, mine);
  if (error) std::rethrow_exception(error);
  throw_failure();
}

/// Whether somebody saves the run, so that a later one can do what this one leaves undone.
bool session::can_be_done_again() { return !events.channel<event::snapshot_requested>().empty(); }

std::unique_ptr<const unfinished_iteration> session::work_begins(const std::string& owner) {
  if (together()) return nullptr;  // no rank may break off what the others go on with
  auto stage = unfinished_iteration::stage::iteration;
  auto handler = events.channel<event::iteration_completed>().at_work();
  if (!handler) {
    stage = unfinished_iteration::stage::epoch;
    handler = events.channel<event::epoch_completed>().at_work();
  }
  if (!handler || handler->owner != owner) return nullptr;
  return std::make_unique<const unfinished_iteration>(
      unfinished_iteration{stage, std::move(*handler), state::random_state()});
}

bool session::interruption_point_due() const noexcept {
  return signal_stream::arrivals() != signals_seen_ || clock::now() - yielded_ >= point_interval;
}

task<> session::interruption_point(const unfinished_iteration* work) {
  co_await yield();
  if (work == nullptr || (!signal && !snapshot_wanted) || !can_be_done_again()) co_return;
  unfinished_ = *work;
  if (signal) {
    broken_off_by_signal_ = true;
    throw interrupted();
  }
  snapshot_wanted = false;
  std::exception_ptr error;
  try {
    co_await snapshot();
  } catch (...) {
    error = std::current_exception();
  }
  unfinished_.reset();
  if (error) std::rethrow_exception(error);
}

}  // namespace rondo::detail

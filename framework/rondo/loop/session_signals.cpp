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
  if (together())
    requested_.signal = number;
  else
    signal = number;
  stop(name_of(number));
  if (!together())
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
  co_await wait_for_data(std::move(ready));
  between_iterations_ = false;
}

task<> session::wait_for_data(task<> ready) {
  return wait_until_cancelled(std::move(ready), data_waits_, stop_reason.has_value());
}

task<> session::wait_in_work(const unfinished_iteration* work, task<> other) {
  if (work == nullptr || !can_be_done_again()) return other;
  return wait_until_cancelled(std::move(other), work_waits_, signal.has_value());
}

/// While it waits, whoever has a reason can end it through `waits`.
task<> session::wait_until_cancelled(task<> other, std::vector<scope*>& waits, bool over) {
  scope* mine = nullptr;
  const auto wait = [&](scope& waiting) -> task<> {
    mine = &waiting;
    waits.push_back(mine);
    waiting.spawn([&other]() -> task<> { co_await std::move(other); });
    if (over) waiting.cancel();
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

std::unique_ptr<const unfinished_iteration> session::work_begins() {
  if (together()) return nullptr;  // no rank may break off what the others go on with
  auto stage = unfinished_iteration::stage::iteration;
  auto handler = events.channel<event::iteration_completed>().at_work();
  if (!handler) {
    stage = unfinished_iteration::stage::epoch;
    handler = events.channel<event::epoch_completed>().at_work();
  }
  if (!handler) return nullptr;
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
  if (signal) throw interrupted();
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

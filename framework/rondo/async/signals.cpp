#include "rondo/async/signals.hpp"

#include <pthread.h>

#include <asio/use_awaitable.hpp>
#include <atomic>
#include <cerrno>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>

namespace rondo {
namespace {

using action = struct sigaction;

action current(int signal) {
  action now{};
  if (::sigaction(signal, nullptr, &now) != 0) {
    throw std::system_error(errno, std::generic_category(), "signal " + std::to_string(signal));
  }
  return now;
}

// The dispositions from before the first stream of each signal. A process has one set of them, hence the global.
class dispositions {
 public:
  static dispositions& instance() {
    static dispositions all;
    return all;
  }

  void save(int signal) {
    const std::lock_guard lock(mutex_);
    const action now = current(signal);
    auto& saved = entries_[signal];
    if (saved.users++ == 0) saved.previous = now;
  }

  action previous(int signal) {
    const std::lock_guard lock(mutex_);
    return entries_.at(signal).previous;
  }

  // Calls `uncatch`, which makes Asio set the default action, and then puts back what was.
  template <class F>
  void release(int signal, F uncatch) noexcept {
    const std::lock_guard lock(mutex_);
    const auto entry = entries_.find(signal);
    sigset_t only;
    sigset_t mask;
    ::sigemptyset(&only);
    ::sigaddset(&only, signal);
    ::pthread_sigmask(SIG_BLOCK, &only, &mask);
    uncatch();
    if (--entry->second.users == 0) {
      ::sigaction(signal, &entry->second.previous, nullptr);
      entries_.erase(entry);
    }
    ::pthread_sigmask(SIG_SETMASK, &mask, nullptr);
  }

 private:
  class entry {
   public:
    action previous{};
    int users = 0;
  };

  std::mutex mutex_;
  std::map<int, entry> entries_;
};

std::atomic<unsigned> arrived = 0;
std::atomic<void (*)(int)> handler_of_asio = nullptr;
static_assert(decltype(arrived)::is_always_lock_free && decltype(handler_of_asio)::is_always_lock_free);

extern "C" void count_and_pass_on(int signal) {
  arrived.fetch_add(1, std::memory_order_relaxed);
  handler_of_asio.load(std::memory_order_relaxed)(signal);
}

}  // namespace

signal_stream::signal_stream(const executor& home, const std::vector<int>& signals, mode which) : set_(home) {
  try {
    for (const int signal : signals) {
      dispositions::instance().save(signal);
      caught_.push_back(signal);
      set_.add(signal);
      action installed = current(signal);
      // Asio has one handler for all signals, and installs it for the first of several streams only: it is not there any
      // more where that one was for a first signal, which has come.
      if (installed.sa_handler == SIG_DFL)
        installed.sa_flags = 0;
      else if (installed.sa_handler != count_and_pass_on)
        handler_of_asio = installed.sa_handler;
      installed.sa_handler = count_and_pass_on;
      installed.sa_flags |= SA_RESTART;
      const bool default_before = dispositions::instance().previous(signal).sa_handler == SIG_DFL;
      if (which == mode::first && default_before) installed.sa_flags |= static_cast<int>(SA_RESETHAND);
      ::sigaction(signal, &installed, nullptr);
    }
  } catch (...) {
    restore();
    throw;
  }
}

signal_stream::~signal_stream() { restore(); }

unsigned signal_stream::arrivals() noexcept { return arrived.load(std::memory_order_relaxed); }

task<int> signal_stream::next() { return set_.async_wait(asio::use_awaitable); }

struct sigaction signal_stream::previous(int signal) const {
  for (const int caught : caught_) {
    if (caught == signal) return dispositions::instance().previous(signal);
  }
  throw std::out_of_range("signal_stream: does not catch signal " + std::to_string(signal));
}

void signal_stream::restore() noexcept {
  for (const int signal : caught_) {
    dispositions::instance().release(signal, [&] {
      asio::error_code ignored;
      set_.remove(signal, ignored);
    });
  }
  caught_.clear();
}

namespace {

// As for streams, but with SIG_IGN.
class ignorance {
 public:
  static ignorance& instance() {
    static ignorance all;
    return all;
  }

  void begin(int signal) {
    const std::lock_guard lock(mutex_);
    const auto known = entries_.find(signal);
    if (known != entries_.end()) {
      ++known->second.users;
      return;
    }
    action ignore{};
    ignore.sa_handler = SIG_IGN;
    entry first;
    if (::sigaction(signal, &ignore, &first.previous) != 0)
      throw std::system_error(errno, std::generic_category(), "ignoring signal " + std::to_string(signal));
    first.users = 1;
    entries_.emplace(signal, first);
  }

  void end(int signal) noexcept {
    const std::lock_guard lock(mutex_);
    const auto known = entries_.find(signal);
    if (--known->second.users > 0) return;
    ::sigaction(signal, &known->second.previous, nullptr);
    entries_.erase(known);
  }

 private:
  struct entry {
    action previous{};
    int users = 0;
  };

  std::mutex mutex_;
  std::map<int, entry> entries_;
};

}  // namespace

ignored_signals::ignored_signals(std::initializer_list<int> signals) {
  try {
    signals_.reserve(signals.size());
    for (const int signal : signals) {
      ignorance::instance().begin(signal);
      signals_.push_back(signal);
    }
  } catch (...) {
    restore();
    throw;
  }
}

ignored_signals::~ignored_signals() { restore(); }

void ignored_signals::restore() noexcept {
  for (const int signal : signals_) ignorance::instance().end(signal);
}

}  // namespace rondo

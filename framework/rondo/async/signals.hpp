#pragma once

#include <csignal>

#include <asio/signal_set.hpp>
#include <initializer_list>
#include <utility>
#include <vector>

#include "rondo/async/task.hpp"

namespace rondo {

/// Receives signals on the event loop instead of in a signal handler. While a stream for a signal exists the signal is
/// caught; when the last one is gone, the disposition from before the first one is back, exactly.
///
/// A signal that arrives while nobody waits is kept until somebody does. Interrupted system calls are restarted.
/// During the switch back the signal is blocked on the calling thread, so that it cannot hit the default action for an
/// instant; threads of the same process should block these signals, or the instant remains for them.
class signal_stream {
 public:
  enum class mode {
    every,  ///< catches all of them
    /// Where the default action was in force before, it is again as soon as a signal has arrived, whatever the event loop
    /// is doing: a second one of that number ends a process whose event loop hangs.
    first,
  };

  /// `signals` are numbers such as SIGTERM. Throws asio::system_error for one that cannot be caught.
  signal_stream(const executor& home, const std::vector<int>& signals, mode which = mode::every);
  signal_stream(const signal_stream&) = delete;
  signal_stream& operator=(const signal_stream&) = delete;
  ~signal_stream();

  /// Completes with the number of the next signal. Cancellation, or destroying the stream, throws `operation_aborted`.
  [[nodiscard]] task<int> next();

  /// How many signals all streams of the process have caught so far. Known at once, while `next` completes only when the
  /// event loop runs: whoever works for long between two looks at the event loop sees by it that one is worth while. May
  /// wrap around. Costs a load; any thread.
  [[nodiscard]] static unsigned arrivals() noexcept;

  /// What the process did with `signal` before, so that the caller can hand the signal on to it. Throws
  /// std::out_of_range when the stream does not catch `signal`.
  [[nodiscard]] struct sigaction previous(int signal) const;

 private:
  void restore() noexcept;

  asio::signal_set set_;
  std::vector<int> caught_;
};

/// Ignores signals while it exists: without it, writing to a connection that the other side closed (SIGPIPE) or beyond
/// the file size limit (SIGXFSZ) ends the process instead of failing with an error. Guards may overlap in any order:
/// the last one that goes puts back what was before the first one.
class ignored_signals {
 public:
  /// Throws std::system_error for a signal that cannot be ignored.
  ignored_signals(std::initializer_list<int> signals);
  ignored_signals(const ignored_signals&) = delete;
  ignored_signals& operator=(const ignored_signals&) = delete;
  ~ignored_signals();

 private:
  void restore() noexcept;

  std::vector<int> signals_;
};

}  // namespace rondo

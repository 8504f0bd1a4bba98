// Running coroutines from ordinary test cases, and abandoning them at every point where they can be abandoned.
#pragma once

#include <asio/bind_cancellation_slot.hpp>
#include <asio/cancellation_signal.hpp>
#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>
#include <asio/post.hpp>
#include <asio/thread_pool.hpp>
#include <asio/use_awaitable.hpp>
#include <chrono>
#include <exception>
#include <stdexcept>
#include <utility>

#include "rondo/async/task.hpp"

namespace support {

/// An event loop with a pool beside it. The pool is destroyed first, as `offload` demands.
class world {
 public:
  asio::io_context loop{1};
  asio::thread_pool pool{1};

  rondo::executor home() { return loop.get_executor(); }
};

/// A coroutine started at top level: how it ended, and a way to cancel it.
class started {
 public:
  template <class F>
  started(world& w, F& body) {
    asio::co_spawn(w.loop, body(), asio::bind_cancellation_slot(signal_.slot(), [this](std::exception_ptr failure) {
                     finished_ = true;
                     failure_ = std::move(failure);
                   }));
  }
  started(const started&) = delete;
  started& operator=(const started&) = delete;

  void cancel() { signal_.emit(asio::cancellation_type::terminal); }
  [[nodiscard]] bool finished() const { return finished_; }

  /// Throws what the coroutine threw.
  void rethrow() const {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  asio::cancellation_signal signal_;
  std::exception_ptr failure_;
  bool finished_ = false;
};

/// Runs `body()` to its end on a fresh event loop. Throws what it threw, and std::runtime_error when it never ends.
template <class F>
void run(world& w, F& body) {
  started root(w, body);
  w.loop.run();
  if (!root.finished()) throw std::runtime_error("the event loop ran out of work before the coroutine finished");
  root.rethrow();
}

/// Gives every other coroutine that is ready its turn.
inline rondo::task<> turn() { return asio::post(asio::use_awaitable); }

/// Counts its live instances: put one into every frame that must not be leaked.
class tracked {
 public:
  tracked() { ++live; }
  tracked(const tracked&) { ++live; }
  ~tracked() { --live; }
  tracked& operator=(const tracked&) = default;

  static inline int live = 0;
};

/// Runs `scenario(world&)`, which returns a task, again and again, and destroys the event loop after 0, 1, 2, ...
/// handlers until the scenario finishes. Returns in how many places it was abandoned; throws when objects leak, when
/// the scenario throws or when it hangs.
template <class Scenario>
int abandon_everywhere(Scenario scenario) {
  for (int handlers = 0;; ++handlers) {
    bool finished = false;
    std::exception_ptr failure;
    {
      world w;
      asio::co_spawn(w.loop, scenario(w), [&](std::exception_ptr thrown) {
        finished = true;
        failure = std::move(thrown);
      });
      for (int i = 0; i < handlers && !finished; ++i) {
        const auto ran = w.loop.run_one_for(std::chrono::seconds(60));
        if (ran == 0) throw std::runtime_error("the scenario hangs");
      }
    }
    if (failure) std::rethrow_exception(failure);
    if (tracked::live != 0) throw std::runtime_error("the abandoned scenario leaked a frame");
    if (finished) return handlers;
  }
}

}  // namespace support

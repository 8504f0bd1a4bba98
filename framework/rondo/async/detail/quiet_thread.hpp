#pragma once

#include <pthread.h>
#include <signal.h>

#include <thread>
#include <utility>

namespace rondo::detail {

/// A thread on which no handler of an asynchronous signal runs: those are for the threads of the program's own.
/// Throws std::system_error when there can be no thread.
template <class F>
[[nodiscard]] std::thread quiet_thread(F work) {
  struct blocked {
    blocked() {
      sigset_t all;
      ::sigfillset(&all);
      for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS}) ::sigdelset(&all, fault);
      ::pthread_sigmask(SIG_BLOCK, &all, &before);
    }
    ~blocked() { ::pthread_sigmask(SIG_SETMASK, &before, nullptr); }
    blocked(const blocked&) = delete;
    blocked& operator=(const blocked&) = delete;

    sigset_t before{};
  };
  const blocked while_it_is_made;
  return std::thread(std::move(work));
}

}  // namespace rondo::detail

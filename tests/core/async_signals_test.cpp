#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <system_error>
#include <vector>

#include "rondo/async/signals.hpp"
#include "support/abandon.hpp"
#include "support/catch.hpp"

namespace async_signals_test {

using rondo::ignored_signals;
using rondo::signal_stream;
using rondo::task;

namespace {

volatile std::sig_atomic_t handled = 0;
void count(int) { handled = handled + 1; }

struct sigaction disposition(int signal) {
  struct sigaction now {};
  REQUIRE(::sigaction(signal, nullptr, &now) == 0);
  return now;
}

// Installs a handler for the length of a test case.
class with_handler {
 public:
  explicit with_handler(int signal) : signal_(signal) {
    struct sigaction mine {};
    mine.sa_handler = count;
    mine.sa_flags = SA_RESTART | SA_NODEFER;
    ::sigemptyset(&mine.sa_mask);
    ::sigaddset(&mine.sa_mask, SIGUSR2);
    REQUIRE(::sigaction(signal, &mine, &before_) == 0);
    handled = 0;
  }
  ~with_handler() { ::sigaction(signal_, &before_, nullptr); }

  static void require_untouched(int signal) {
    const auto now = disposition(signal);
    CHECK(now.sa_handler == &count);
    CHECK((now.sa_flags & (SA_RESTART | SA_NODEFER)) == (SA_RESTART | SA_NODEFER));
    CHECK(::sigismember(&now.sa_mask, SIGUSR2) == 1);
    CHECK(::sigismember(&now.sa_mask, SIGUSR1) == 0);
  }

 private:
  int signal_;
  struct sigaction before_ {};
};

}  // namespace

TEST_CASE("a stream for the first signal gives the default action back when it arrives, not when the loop runs",
          "[async][signals]") {
  asio::io_context loop(1);
  struct sigaction by_default {};
  by_default.sa_handler = SIG_DFL;
  struct sigaction before {};
  REQUIRE(::sigaction(SIGUSR2, &by_default, &before) == 0);
  {
    const signal_stream first(loop.get_executor(), {SIGUSR2}, signal_stream::mode::first);
    CHECK(disposition(SIGUSR2).sa_handler != SIG_DFL);
    std::raise(SIGUSR2);
    CHECK(disposition(SIGUSR2).sa_handler == SIG_DFL);
    // A further stream catches it again, every time.
    const auto so_far = signal_stream::arrivals();
    const signal_stream further(loop.get_executor(), {SIGUSR2});
    std::raise(SIGUSR2);
    std::raise(SIGUSR2);
    CHECK(signal_stream::arrivals() == so_far + 2);
  }
  CHECK(disposition(SIGUSR2).sa_handler == SIG_DFL);
  ::sigaction(SIGUSR2, &before, nullptr);

  const with_handler mine(SIGUSR1);  // whoever has a handler of his own keeps out of danger
  {
    const signal_stream first(loop.get_executor(), {SIGUSR1}, signal_stream::mode::first);
    std::raise(SIGUSR1);
    CHECK(disposition(SIGUSR1).sa_handler != SIG_DFL);
    CHECK(handled == 0);
  }
  with_handler::require_untouched(SIGUSR1);
}

TEST_CASE("a signal reaches the coroutine, and the previous handler is back afterwards", "[async][signals]") {
  const with_handler mine(SIGUSR1);
  std::vector<int> seen;
  {
    support::world w;
    auto body = [&]() -> task<> {
      signal_stream signals(w.home(), {SIGUSR1});
      CHECK(signals.previous(SIGUSR1).sa_handler == &count);
      CHECK((disposition(SIGUSR1).sa_flags & SA_RESTART) != 0);
      ::raise(SIGUSR1);
      for (int i = 0; i < 2; ++i) {
        const int signal = co_await signals.next();
        seen.push_back(signal);
        if (i == 0) ::raise(SIGUSR1);
      }
    };
    support::run(w, body);
    with_handler::require_untouched(SIGUSR1);
  }
  CHECK(seen == std::vector<int>{SIGUSR1, SIGUSR1});
  CHECK(handled == 0);
  ::raise(SIGUSR1);
  CHECK(handled == 1);
}

TEST_CASE("streams may overlap in any order", "[async][signals]") {
  const with_handler mine(SIGUSR1);
  support::world w;
  auto first = std::make_unique<signal_stream>(w.home(), std::initializer_list<int>{SIGUSR1});
  auto second = std::make_unique<signal_stream>(w.home(), std::initializer_list<int>{SIGUSR1, SIGUSR2});
  CHECK(second->previous(SIGUSR1).sa_handler == &count);
  CHECK_THROWS_AS(first->previous(SIGUSR2), std::out_of_range);
  first.reset();
  int seen = 0;
  auto body = [&]() -> task<> { seen = co_await second->next(); };
  ::raise(SIGUSR1);
  support::run(w, body);
  CHECK(seen == SIGUSR1);
  CHECK(handled == 0);
  second.reset();
  with_handler::require_untouched(SIGUSR1);
}

TEST_CASE("a signal that cannot be caught is refused and leaves the others as they were", "[async][signals]") {
  const with_handler mine(SIGUSR1);
  support::world w;
  CHECK_THROWS_AS(signal_stream(w.home(), {SIGUSR1, SIGKILL}), std::system_error);
  with_handler::require_untouched(SIGUSR1);
  CHECK_THROWS_AS(signal_stream(w.home(), {SIGUSR1, 100000}), std::system_error);
  with_handler::require_untouched(SIGUSR1);
}

TEST_CASE("cancelling the wait for a signal, or destroying the stream, throws operation_aborted", "[async][signals]") {
  support::world w;
  auto stream = std::make_unique<signal_stream>(w.home(), std::initializer_list<int>{SIGUSR1});
  auto body = [&]() -> task<> { co_await stream->next(); };
  support::started root(w, body);
  w.loop.poll();
  SECTION("cancelled") { root.cancel(); }
  SECTION("destroyed") { stream.reset(); }
  w.loop.run();
  CHECK_THROWS_AS(root.rethrow(), asio::system_error);
}

TEST_CASE("ignored signals are errors instead of deaths, and what was before is back afterwards", "[async][signals]") {
  const with_handler mine(SIGPIPE);
  const auto limit_before = disposition(SIGXFSZ).sa_handler;
  {
    const ignored_signals guard({SIGPIPE, SIGXFSZ});
    int ends[2];
    REQUIRE(::pipe(ends) == 0);
    ::close(ends[0]);
    CHECK(::write(ends[1], "x", 1) == -1);
    CHECK(errno == EPIPE);
    ::close(ends[1]);
    CHECK(disposition(SIGXFSZ).sa_handler == SIG_IGN);
  }
  CHECK(handled == 0);
  with_handler::require_untouched(SIGPIPE);
  CHECK(disposition(SIGXFSZ).sa_handler == limit_before);
  CHECK_THROWS_AS(ignored_signals({SIGPIPE, SIGKILL}), std::system_error);
  with_handler::require_untouched(SIGPIPE);
}

TEST_CASE("guards that overlap in any order put back what was before the first of them", "[async][signals]") {
  const with_handler mine(SIGPIPE);
  auto first = std::make_unique<ignored_signals>(std::initializer_list<int>{SIGPIPE});
  auto second = std::make_unique<ignored_signals>(std::initializer_list<int>{SIGPIPE});
  first.reset();
  CHECK(disposition(SIGPIPE).sa_handler == SIG_IGN);
  second.reset();
  with_handler::require_untouched(SIGPIPE);
}

}  // namespace async_signals_test

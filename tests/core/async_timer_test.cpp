#include <chrono>
#include <stdexcept>

#include "rondo/async/mailbox.hpp"
#include "rondo/async/timer.hpp"
#include "support/abandon.hpp"
#include "support/catch.hpp"

namespace async_timer_test {

using rondo::task;
using std::chrono::steady_clock;
using namespace std::chrono_literals;

TEST_CASE("sleeping takes no less than it should", "[async][timer]") {
  support::world w;
  const auto start = steady_clock::now();
  auto body = [&]() -> task<> {
    co_await rondo::sleep_for(5ms);
    co_await rondo::sleep_until(start + 10ms);
    co_await rondo::sleep_until(start);
  };
  support::run(w, body);
  CHECK(steady_clock::now() - start >= 10ms);
}

TEST_CASE("cancelling a sleep ends it", "[async][timer]") {
  support::world w;
  auto body = [&] { return rondo::sleep_for(1h); };
  support::started root(w, body);
  w.loop.poll();
  root.cancel();
  w.loop.run();
  CHECK_THROWS_AS(root.rethrow(), asio::system_error);
}

TEST_CASE("completes_within says whether the work made it", "[async][timer]") {
  support::world w;
  bool cleaned = false;
  auto body = [&]() -> task<> {
    auto quick = [] { return support::turn(); };
    const bool in_time = co_await rondo::completes_within(1h, quick);
    CHECK(in_time);
    auto slow = [&]() -> task<> {
      try {
        co_await rondo::sleep_for(1h);
      } catch (const asio::system_error&) {
        cleaned = true;
        throw;
      }
    };
    const bool too_late = co_await rondo::completes_within(1ms, slow);
    CHECK_FALSE(too_late);
  };
  support::run(w, body);
  CHECK(cleaned);
}

TEST_CASE("completes_within throws what the work threw and passes cancellation on", "[async][timer]") {
  support::world w;
  auto failing = [&]() -> task<> {
    auto work = []() -> task<> {
      co_await support::turn();
      throw std::domain_error("work");
    };
    co_await rondo::completes_within(1h, work);
  };
  CHECK_THROWS_AS(support::run(w, failing), std::domain_error);

  w.loop.restart();
  auto waiting = [&]() -> task<> {
    auto work = [] { return rondo::sleep_for(1h); };
    co_await rondo::completes_within(1h, work);
  };
  support::started root(w, waiting);
  while (w.loop.poll() > 0) {
  }
  root.cancel();
  w.loop.run();
  CHECK_THROWS_AS(root.rethrow(), asio::system_error);
}

}  // namespace async_timer_test

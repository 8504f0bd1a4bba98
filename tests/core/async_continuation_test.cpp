#include <memory>
#include <stdexcept>
#include <vector>

#include "rondo/async/park.hpp"
#include "support/abandon.hpp"
#include "support/catch.hpp"

namespace async_continuation_test {

using rondo::continuation;
using rondo::park;
using rondo::task;

TEST_CASE("a parked coroutine resumes inside the call of its continuation", "[async][park]") {
  support::world w;
  continuation<> where;
  std::vector<int> order;
  auto body = [&]() -> task<> {
    order.push_back(1);
    co_await park(where);
    order.push_back(3);
  };
  support::started root(w, body);
  CHECK_FALSE(where);
  w.loop.poll();
  REQUIRE(where);
  order.push_back(2);
  where();
  order.push_back(4);
  CHECK_FALSE(where);
  CHECK(order == std::vector<int>{1, 2, 3, 4});
  w.loop.run();
  CHECK(root.finished());
}

TEST_CASE("a posted continuation resumes from the event loop", "[async][park]") {
  support::world w;
  continuation<> where;
  bool resumed = false;
  auto body = [&]() -> task<> {
    co_await park(where);
    resumed = true;
  };
  support::started root(w, body);
  w.loop.poll();
  where.post();
  CHECK_FALSE(where);
  CHECK_FALSE(resumed);
  w.loop.run();
  CHECK(resumed);
}

TEST_CASE("a failed continuation throws from the await", "[async][park]") {
  support::world w;
  continuation<> where;
  auto body = [&]() -> task<> { co_await park(where); };
  support::started root(w, body);
  w.loop.poll();
  where.post_failure(std::make_exception_ptr(std::domain_error("no")));
  w.loop.run();
  CHECK_THROWS_AS(root.rethrow(), std::domain_error);
}

TEST_CASE("cancelling a parked coroutine empties its place at once and throws from the event loop", "[async][park]") {
  support::world w;
  continuation<> where;
  auto body = [&]() -> task<> { co_await park(where); };
  support::started root(w, body);
  w.loop.poll();
  root.cancel();
  CHECK_FALSE(where);
  CHECK_FALSE(root.finished());
  root.cancel();
  w.loop.run();
  REQUIRE(root.finished());
  CHECK_THROWS_AS(root.rethrow(), asio::system_error);
}

TEST_CASE("a resumption that is under way wins over a later cancellation", "[async][park]") {
  support::world w;
  continuation<> where;
  auto body = [&]() -> task<> { co_await park(where); };
  support::started root(w, body);
  w.loop.poll();
  where.post();
  root.cancel();
  w.loop.run();
  REQUIRE(root.finished());
  CHECK_NOTHROW(root.rethrow());
}

TEST_CASE("a continuation destroyed without a call destroys its coroutine, and cancelling then does nothing",
          "[async][park]") {
  support::world w;
  auto where = std::make_unique<continuation<>>();
  auto body = [&]() -> task<> {
    const support::tracked here;
    co_await park(*where);
  };
  support::started root(w, body);
  w.loop.poll();
  REQUIRE(support::tracked::live == 1);
  where.reset();
  root.cancel();
  w.loop.run();
  CHECK(support::tracked::live == 0);
  CHECK_FALSE(root.finished());
}

TEST_CASE("a continuation may outlive its event loop and is empty then", "[async][park]") {
  continuation<> where;
  {
    support::world w;
    auto body = [&]() -> task<> {
      const support::tracked here;
      co_await park(where);
    };
    asio::co_spawn(w.loop, body, [](std::exception_ptr) {});
    w.loop.poll();
    REQUIRE(where);
  }
  CHECK_FALSE(where);
  CHECK(support::tracked::live == 0);
}

TEST_CASE("moving a continuation over another one destroys the coroutine of the other", "[async][park]") {
  support::world w;
  continuation<> first;
  continuation<> second;
  auto a = [&]() -> task<> {
    const support::tracked here;
    co_await park(first);
  };
  auto b = [&]() -> task<> { co_await park(second); };
  support::started root_a(w, a);
  support::started root_b(w, b);
  w.loop.poll();
  first = std::move(second);
  first();
  w.loop.run();
  CHECK(support::tracked::live == 0);
  CHECK_FALSE(root_a.finished());
  CHECK(root_b.finished());
}

TEST_CASE("parking a million times in a row needs no stack", "[async][park]") {
  support::world w;
  continuation<> where;
  constexpr int rounds = 1'000'000;
  int resumed = 0;
  auto body = [&]() -> task<> {
    while (resumed < rounds) {
      co_await park(where);
      ++resumed;
    }
  };
  support::started root(w, body);
  w.loop.poll();
  while (where) where();
  w.loop.run();
  CHECK(resumed == rounds);
  CHECK(root.finished());
}

TEST_CASE("a million awaits that finish inline need no stack", "[async][task]") {
  support::world w;
  int sum = 0;
  auto one = []() -> task<int> { co_return 1; };
  auto body = [&]() -> task<> {
    for (int i = 0; i < 1'000'000; ++i) {
      const int value = co_await one();
      sum += value;
    }
  };
  support::run(w, body);
  CHECK(sum == 1'000'000);
}

}  // namespace async_continuation_test

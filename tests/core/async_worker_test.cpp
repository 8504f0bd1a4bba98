#include "rondo/async/worker.hpp"

#include <signal.h>

#include <asio/post.hpp>
#include <asio/system_error.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "rondo/async/scope.hpp"
#include "rondo/error.hpp"
#include "support/abandon.hpp"
#include "support/catch.hpp"
#include "support/gate.hpp"

namespace async_worker_test {

using namespace std::chrono_literals;
using rondo::scope;
using rondo::task;
using rondo::worker;
using rondo::testing::gate;
using support::tracked;
using support::world;

namespace {

class no_default {
 public:
  explicit no_default(int v) : value(std::make_unique<int>(v)) {}
  std::unique_ptr<int> value;
};

// Waits, without sleeping, for what another thread is about to do.
template <class Condition>
void spin_until(Condition condition) {
  while (!condition()) std::this_thread::yield();
}

}  // namespace

TEST_CASE("a worker does one piece of work after the other on one thread of its own", "[async][worker]") {
  world w;
  worker helper;
  std::vector<int> order;
  std::vector<std::thread::id> threads;
  auto body = [&]() -> task<> {
    scope children(w.home());
    for (int i = 0; i < 20; ++i) {
      children.spawn([&, i]() -> task<> {
        auto work = [&, i] {
          order.push_back(i);
          threads.push_back(std::this_thread::get_id());
        };
        co_await helper.run(work);
      });
    }
    co_await children.join();
  };
  support::run(w, body);
  REQUIRE(order.size() == 20);
  for (int i = 0; i < 20; ++i) {
    CHECK(order[static_cast<std::size_t>(i)] == i);
    CHECK(threads[static_cast<std::size_t>(i)] == threads.front());
  }
  CHECK(threads.front() != std::this_thread::get_id());
  CHECK(helper.idle());
}

TEST_CASE("a worker yields any object and takes any callable", "[async][worker]") {
  world w;
  worker helper;
  auto body = [&]() -> task<> {
    auto make = [] { return no_default(7); };
    const no_default made = co_await helper.run(make);
    CHECK(*made.value == 7);
    auto move_only = [owned = std::make_unique<int>(8)] { return *owned; };
    const int moved = co_await helper.run(move_only);
    CHECK(moved == 8);
    auto copied = [text = std::string(100, 'x')] { return text + "y"; };
    const std::string first = co_await helper.run(copied);
    const std::optional<std::string> second = co_await helper.run_within(1h, copied);
    CHECK(first == std::string(100, 'x') + "y");
    CHECK(second == first);
    auto nothing = [] {};
    co_await helper.run(nothing);
    const bool done = co_await helper.run_within(1h, nothing);
    CHECK(done);
  };
  support::run(w, body);
}

TEST_CASE("a worker throws at home what was thrown on its thread, and goes on", "[async][worker]") {
  world w;
  worker helper;
  auto body = [&]() -> task<> {
    auto fail = [] { throw std::domain_error("no"); };
    int failures = 0;
    try {
      co_await helper.run(fail);
    } catch (const std::domain_error&) {
      ++failures;
    }
    try {
      co_await helper.run_within(1h, fail);
    } catch (const std::domain_error&) {
      ++failures;
    }
    CHECK(failures == 2);
    auto seven = [] { return 7; };
    const int result = co_await helper.run(seven);
    CHECK(result == 7);
  };
  support::run(w, body);
}

TEST_CASE("the callable is destroyed before the result comes home", "[async][worker]") {
  world w;
  worker helper;
  auto body = [&]() -> task<> {
    const auto owned = std::make_shared<int>(1);
    auto work = [owned = owned.get(), keeps = std::unique_ptr<std::shared_ptr<int>>(new std::shared_ptr<int>(owned))] {
      return *owned;
    };
    co_await helper.run(work);
    CHECK(owned.use_count() == 1);
  };
  support::run(w, body);
}

TEST_CASE("a cancelled coroutine waits until its work has returned", "[async][worker]") {
  world w;
  worker helper;
  gate held;
  bool returned = false;
  auto body = [&]() -> task<> {
    auto work = [&] {
      held.pass();
      returned = true;
    };
    co_await helper.run(work);
    CHECK(returned);
    co_await support::turn();
  };
  support::started root(w, body);
  w.loop.poll();
  held.await_arrival();
  root.cancel();
  w.loop.poll();
  CHECK_FALSE(root.finished());
  held.open();
  w.loop.run();
  CHECK(returned);
  CHECK_THROWS_AS(root.rethrow(), asio::system_error);
}

TEST_CASE("a coroutine that was cancelled before starts no work", "[async][worker]") {
  world w;
  worker helper;
  bool started = false;
  auto body = [&]() -> task<> {
    auto work = [&] { started = true; };
    co_await helper.run(work);
  };
  support::started root(w, body);
  root.cancel();
  w.loop.run();
  CHECK_THROWS_AS(root.rethrow(), asio::system_error);
  CHECK_FALSE(started);
}

TEST_CASE("work that takes too long is given up with its thread", "[async][worker][limit]") {
  const auto held = std::make_shared<gate>();
  const auto alive = std::make_shared<int>(0);
  {
    world w;
    worker helper;
    int refused = 0;
    auto body = [&]() -> task<> {
      scope children(w.home());
      children.spawn([&]() -> task<> {
        auto hang = [held, alive] {
          held->pass();
          return 1;
        };
        // Already queued when the time limit begins to count, so that the event loop does not see its end before the
        // work has begun, however late the thread is.
        asio::post(w.home(), [held] { held->await_arrival(); });
        const std::optional<int> result = co_await helper.run_within(1ms, hang);
        CHECK_FALSE(result.has_value());
      });
      // Waits behind it, and would wait for ever.
      children.spawn([&]() -> task<> {
        auto work = [] { return 2; };
        try {
          co_await helper.run(work);
        } catch (const rondo::error&) {
          ++refused;
        }
      });
      co_await children.join();
      CHECK(helper.abandoned());
      auto later = [] {};
      try {
        co_await helper.run(later);
      } catch (const rondo::error&) {
        ++refused;
      }
    };
    support::run(w, body);
    CHECK(refused == 2);
  }
  // The worker and its event loop are gone; the work is not.
  held->await_arrival();
  CHECK(alive.use_count() == 2);
  held->open();
  spin_until([&] { return alive.use_count() == 1; });
}

TEST_CASE("an event loop that is destroyed does not wait for the work", "[async][worker][abandon]") {
  gate held;
  bool done = false;
  worker helper;
  auto work = [&] {
    held.pass();
    done = true;
  };
  {
    world w;
    auto body = [&]() -> task<> {
      const tracked here;
      co_await helper.run(work);
      FAIL("the event loop came back");
    };
    support::started root(w, body);
    w.loop.poll();
    held.await_arrival();
    CHECK(tracked::live == 1);
  }
  CHECK(tracked::live == 0);
  CHECK_FALSE(helper.idle());
  held.open();
  // Another event loop may use the worker; its work waits for its turn.
  world w;
  auto body = [&]() -> task<> {
    auto look = [&] { return done; };
    const bool found = co_await helper.run(look);
    CHECK(found);
  };
  support::run(w, body);
}

TEST_CASE("a worker that is destroyed waits for its work, but not longer than that may take",
          "[async][worker][limit]") {
  const auto held = std::make_shared<gate>();
  const auto alive = std::make_shared<int>(0);
  SECTION("without a limit it waits until the end") {
    bool done = false;
    {
      worker helper;
      auto work = [&done] { done = true; };
      world w;
      auto body = [&]() -> task<> { co_await helper.run(work); };
      support::started root(w, body);
      w.loop.poll();
    }
    CHECK(done);
  }
  SECTION("with a limit it gives up") {
    worker helper;
    auto hang = [held, alive] { held->pass(); };
    world w;
    auto body = [&]() -> task<> { co_await helper.run_within(1ms, hang); };
    support::started root(w, body);
    w.loop.poll();
  }
  SECTION("with a limit it gives up, also when the work had not begun yet") {
    // The thread begins at some time during the wait: earlier or later each time.
    for (int i = 0; i < 200; ++i) {
      worker helper;
      auto hang = [held, alive] { held->pass(); };
      world w;
      auto body = [&]() -> task<> { co_await helper.run_within(100us, hang); };
      support::started root(w, body);
      w.loop.poll();
    }
  }
  held->open();
  spin_until([&] { return alive.use_count() == 1; });
}

TEST_CASE("abandoning a worker's work", "[async][worker][abandon]") {
  worker helper;
  const int places = support::abandon_everywhere([&](world& w) -> task<> {
    const tracked here;
    scope children(w.home());
    for (int i = 0; i < 3; ++i) {
      children.spawn([&]() -> task<> {
        const tracked child;
        auto make = [text = std::string(100, 'x')] { return std::make_unique<std::string>(text); };
        const auto made = co_await helper.run(make);
        CHECK(made->size() == 100);
        const auto in_time = co_await helper.run_within(1h, make);
        CHECK(in_time.has_value());
      });
    }
    co_await children.join();
  });
  CHECK(places > 10);
}

TEST_CASE("no signal handler runs on the thread of a worker", "[async][worker]") {
  world w;
  worker helper;
  sigset_t before;
  ::pthread_sigmask(SIG_BLOCK, nullptr, &before);
  auto body = [&]() -> task<> {
    auto look = [] {
      sigset_t blocked;
      ::pthread_sigmask(SIG_BLOCK, nullptr, &blocked);
      const int interrupt = ::sigismember(&blocked, SIGINT);
      const int fault = ::sigismember(&blocked, SIGSEGV);
      return interrupt == 1 && fault == 0;
    };
    const bool right = co_await helper.run(look);
    CHECK(right);
  };
  support::run(w, body);
  sigset_t after;
  ::pthread_sigmask(SIG_BLOCK, nullptr, &after);
  CHECK(::sigismember(&after, SIGINT) == ::sigismember(&before, SIGINT));
}

}  // namespace async_worker_test

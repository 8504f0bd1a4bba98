// An event loop may be destroyed while coroutines are suspended anywhere. Nothing may leak and nothing may be touched
// after its death; the sanitizers look at the same runs.
#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>

#include "rondo/async/barrier.hpp"
#include "rondo/async/detail/homecoming.hpp"
#include "rondo/async/mailbox.hpp"
#include "rondo/async/offload.hpp"
#include "rondo/async/scope.hpp"
#include "rondo/async/semaphore.hpp"
#include "rondo/async/signals.hpp"
#include "rondo/async/timer.hpp"
#include "support/abandon.hpp"
#include "support/catch.hpp"

namespace async_abandon_test {

using namespace rondo;
using namespace std::chrono_literals;
using support::tracked;
using support::turn;
using support::world;

TEST_CASE("abandoning a listener and its emitter", "[async][abandon]") {
  const int places = support::abandon_everywhere([](world& w) -> task<> {
    const tracked here;
    mailbox<const int*> box;
    scope children(w.home());
    children.spawn([&]() -> task<> {
      const tracked listening;
      while (const int* value = co_await box.next()) {
        const tracked handling;
        const bool slow = *value % 2 == 0;
        if (slow) co_await turn();
      }
    });
    children.spawn([&]() -> task<> {
      const tracked emitting;
      for (int i = 0; i < 4; ++i) {
        box.deliver(&i);
        co_await turn();
      }
      box.close();
    });
    co_await children.join();
  });
  CHECK(places > 8);
}

TEST_CASE("abandoning coroutines parked in continuations of their own frames", "[async][abandon]") {
  const int places = support::abandon_everywhere([](world& w) -> task<> {
    const tracked here;
    continuation<> first;
    continuation<> second;
    scope children(w.home());
    children.spawn([&]() -> task<> {
      const tracked waiting;
      co_await park(first);
      first = continuation<>();
      second.post();
    });
    children.spawn([&]() -> task<> {
      const tracked waiting;
      first.post();
      co_await park(second);
    });
    co_await children.join();
  });
  CHECK(places > 4);
}

TEST_CASE("abandoning nested scopes, failing, cancelled and joined", "[async][abandon]") {
  const int places = support::abandon_everywhere([](world& w) -> task<> {
    const tracked here;
    int failures = 0;
    for (const bool fail : {false, true}) {
      auto outer = [&](scope& children) -> task<> {
        const tracked body;
        children.spawn([&w, text = std::string(100, 'x')]() -> task<> {
          const tracked child;
          scope grandchildren(w.home());
          grandchildren.spawn([]() -> task<> {
            const tracked grandchild;
            co_await sleep_for(1h);
          });
          grandchildren.spawn([&grandchildren, text = std::string(100, 'y')]() -> task<> {
            const tracked grandchild;
            co_await turn();
            grandchildren.spawn([]() -> task<> {
              const tracked late;
              mailbox<int> never;
              co_await never.next();
            });
            co_await turn();
            co_await turn();
            grandchildren.cancel();
          });
          co_await grandchildren.join();
        });
        co_await turn();
        if (fail) throw std::domain_error("body");
        co_await turn();
      };
      try {
        co_await with_scope(outer);
      } catch (const std::domain_error&) {
        ++failures;
      }
    }
    CHECK(failures == 1);
  });
  CHECK(places > 20);
}

TEST_CASE("abandoning a parent that sleeps while its children wait", "[async][abandon]") {
  const int places = support::abandon_everywhere([](world& w) -> task<> {
    const tracked here;
    mailbox<int> never;
    scope children(w.home());
    for (int i = 0; i < 3; ++i) {
      children.spawn([&]() -> task<> {
        const tracked child;
        co_await turn();
        co_await sleep_for(1h);
      });
    }
    co_await sleep_for(1ms);
    children.cancel();
    co_await sleep_for(1ms);
    co_await children.join();
  });
  CHECK(places > 6);
}

TEST_CASE("abandoning members of a barrier", "[async][abandon]") {
  const int places = support::abandon_everywhere([](world& w) -> task<> {
    const tracked here;
    async_barrier barrier(3);
    scope children(w.home());
    for (int member = 0; member < 3; ++member) {
      children.spawn([&, member]() -> task<> {
        const tracked child;
        for (int round = 0; round < 3; ++round) {
          for (int i = 0; i < member; ++i) co_await turn();
          co_await barrier.arrive_and_wait();
        }
      });
    }
    co_await children.join();
    children.spawn([&]() -> task<> {
      const tracked child;
      co_await barrier.arrive_and_wait();
    });
    co_await turn();
    co_await turn();
    children.cancel();
    co_await children.join();
  });
  CHECK(places > 20);
}

TEST_CASE("abandoning those who hold and those who wait for permits", "[async][abandon]") {
  const int places = support::abandon_everywhere([](world& w) -> task<> {
    const tracked here;
    async_semaphore semaphore(1);
    scope children(w.home());
    for (int i = 0; i < 4; ++i) {
      children.spawn([&]() -> task<> {
        const tracked child;
        const auto permit = co_await semaphore.acquire();
        co_await turn();
      });
    }
    co_await children.join();
    CHECK(semaphore.available() == 1);
  });
  CHECK(places > 10);
}

TEST_CASE("abandoning timers and time limits", "[async][abandon]") {
  const int places = support::abandon_everywhere([](world&) -> task<> {
    const tracked here;
    co_await sleep_for(0ms);
    auto slow = []() -> task<> {
      const tracked working;
      co_await sleep_for(1h);
    };
    const bool late = co_await completes_within(1ms, slow);
    CHECK_FALSE(late);
    auto quick = []() -> task<> {
      const tracked working;
      co_await turn();
    };
    const bool in_time = co_await completes_within(1h, quick);
    CHECK(in_time);
  });
  CHECK(places > 8);
}

TEST_CASE("abandoning offloaded work", "[async][abandon]") {
  const int places = support::abandon_everywhere([](world& w) -> task<> {
    const tracked here;
    scope children(w.home());
    for (int i = 0; i < 3; ++i) {
      children.spawn([&]() -> task<> {
        const tracked child;
        auto make = [text = std::string(100, 'x')] { return std::make_unique<std::string>(text); };
        const auto made = co_await offload(w.pool, make);
        CHECK(made->size() == 100);
        auto fail = [] { throw std::domain_error("elsewhere"); };
        bool failed = false;
        try {
          co_await offload(w.pool, fail);
        } catch (const std::domain_error&) {
          failed = true;
        }
        CHECK(failed);
      });
    }
    co_await children.join();
  });
  CHECK(places > 10);
}

TEST_CASE("nobody comes home to an event loop that is being destroyed", "[async][abandon]") {
  std::shared_ptr<detail::homecoming> way;
  bool found = true;
  {
    world w;
    auto body = [&]() -> task<> {
      const tracked here;
      detail::absence away(w.home());
      way = away.way();
      co_await park(away.rest());
      FAIL("the event loop came back");
    };
    const support::started root(w, body);
    w.loop.poll();
    // The event loop empties its queue without its mutex, and the frame of the coroutine comes after this.
    asio::post(w.loop, [last = std::shared_ptr<void>(nullptr, [&](void*) { found = way->call(); })] {});
  }
  CHECK_FALSE(found);
  CHECK(tracked::live == 0);
}

TEST_CASE("abandoning a wait for a signal puts the disposition back", "[async][abandon]") {
  const int places = support::abandon_everywhere([](world& w) -> task<> {
    const tracked here;
    signal_stream signals(w.home(), {SIGUSR1});
    scope children(w.home());
    children.spawn([&]() -> task<> {
      const tracked child;
      const int signal = co_await signals.next();
      CHECK(signal == SIGUSR1);
    });
    co_await turn();
    co_await turn();
    ::raise(SIGUSR1);
    co_await children.join();
  });
  CHECK(places > 4);
  struct sigaction now {};
  REQUIRE(::sigaction(SIGUSR1, nullptr, &now) == 0);
  CHECK(now.sa_handler == SIG_DFL);
}

}  // namespace async_abandon_test

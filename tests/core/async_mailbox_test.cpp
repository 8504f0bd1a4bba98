#include <memory>
#include <stdexcept>
#include <vector>

#include "rondo/async/mailbox.hpp"
#include "support/abandon.hpp"
#include "support/catch.hpp"

namespace async_mailbox_test {

using rondo::mailbox;
using rondo::task;

namespace {

class listener {
 public:
  task<> listen(mailbox<const int*>& box) {
    while (const int* value = co_await box.next()) seen.push_back(*value);
  }

  std::vector<int> seen;
};

}  // namespace

TEST_CASE("deliver resumes the waiter inline and returns when it waits again", "[async][mailbox]") {
  support::world w;
  mailbox<const int*> box;
  listener l;
  auto body = [&] { return l.listen(box); };
  support::started root(w, body);
  const int one = 1;
  const int two = 2;
  CHECK_FALSE(box.deliver(&one));
  w.loop.poll();
  REQUIRE(box.waiting());
  CHECK(box.deliver(&one));
  CHECK(l.seen == std::vector<int>{1});
  CHECK(box.waiting());
  CHECK(box.deliver(&two));
  CHECK(l.seen == std::vector<int>{1, 2});
  box.close();
  CHECK_FALSE(box.waiting());
  CHECK_FALSE(root.finished());
  w.loop.run();
  CHECK(root.finished());
}

TEST_CASE("a waiter that suspends elsewhere is missed by the next delivery, which says so", "[async][mailbox]") {
  support::world w;
  mailbox<int> box;
  int last = 0;
  auto body = [&]() -> task<> {
    last = co_await box.next();
    co_await support::turn();
    last = co_await box.next();
  };
  support::started root(w, body);
  w.loop.poll();
  CHECK(box.deliver(1));
  CHECK_FALSE(box.deliver(2));
  w.loop.poll();
  CHECK(box.deliver(3));
  w.loop.run();
  CHECK(last == 3);
}

TEST_CASE("a closed mailbox yields its final value to every wait, from the event loop", "[async][mailbox]") {
  support::world w;
  mailbox<int> box;
  int sum = 0;
  auto body = [&]() -> task<> {
    for (int i = 0; i < 1000; ++i) {
      const int value = co_await box.next();
      sum += value;
    }
  };
  support::started root(w, body);
  w.loop.poll();
  box.close(7);
  CHECK(sum == 0);
  CHECK_FALSE(box.deliver(1));
  w.loop.run();
  CHECK(sum == 7000);
  CHECK(box.closed());
}

TEST_CASE("cancelling a wait yields the final value, from the event loop", "[async][mailbox]") {
  support::world w;
  mailbox<int> box(-1);
  int value = 0;
  auto body = [&]() -> task<> { value = co_await box.next(); };
  support::started root(w, body);
  w.loop.poll();
  root.cancel();
  CHECK_FALSE(box.waiting());
  CHECK_FALSE(box.deliver(5));
  CHECK(value == 0);
  w.loop.run();
  CHECK(value == -1);
  CHECK_NOTHROW(root.rethrow());
}

TEST_CASE("a coroutine cancelled before it waits gets operation_aborted", "[async][mailbox]") {
  support::world w;
  mailbox<int> box;
  auto body = [&]() -> task<> {
    co_await support::turn();
    co_await box.next();
  };
  support::started root(w, body);
  w.loop.run_one();
  root.cancel();
  w.loop.run();
  CHECK_THROWS_AS(root.rethrow(), asio::system_error);
}

TEST_CASE("a second waiter is refused", "[async][mailbox]") {
  support::world w;
  mailbox<int> box;
  auto body = [&]() -> task<> { co_await box.next(); };
  support::started first(w, body);
  support::started second(w, body);
  w.loop.poll();
  REQUIRE(second.finished());
  CHECK_THROWS_AS(second.rethrow(), std::logic_error);
  CHECK(box.deliver(1));
  w.loop.run();
  CHECK_NOTHROW(first.rethrow());
}

TEST_CASE("an exception of the waiter ends the waiter, not the delivery", "[async][mailbox]") {
  support::world w;
  mailbox<int> box;
  auto body = [&]() -> task<> {
    co_await box.next();
    throw std::domain_error("bad event");
  };
  support::started root(w, body);
  w.loop.poll();
  CHECK(box.deliver(1));
  w.loop.run();
  CHECK_THROWS_AS(root.rethrow(), std::domain_error);
}

TEST_CASE("a destroyed mailbox destroys its waiter, and cancelling then does nothing", "[async][mailbox]") {
  support::world w;
  auto box = std::make_unique<mailbox<int>>();
  auto body = [&]() -> task<> {
    const support::tracked here;
    co_await box->next();
  };
  support::started root(w, body);
  w.loop.poll();
  box.reset();
  root.cancel();
  w.loop.run();
  CHECK(support::tracked::live == 0);
}

TEST_CASE("a mailbox outlives its event loop and serves the next one", "[async][mailbox]") {
  mailbox<int> box;
  for (int round = 1; round <= 3; ++round) {
    support::world w;
    int value = 0;
    auto body = [&]() -> task<> {
      const support::tracked here;
      value = co_await box.next();
      co_await box.next();
    };
    asio::co_spawn(w.loop, body, [](std::exception_ptr) {});
    w.loop.poll();
    CHECK(box.deliver(round));
    CHECK(value == round);
  }
  CHECK_FALSE(box.waiting());
  CHECK(support::tracked::live == 0);
}

TEST_CASE("a million deliveries need no stack", "[async][mailbox]") {
  support::world w;
  mailbox<const int*> box;
  long sum = 0;
  auto body = [&]() -> task<> {
    while (const int* value = co_await box.next()) sum += *value;
  };
  support::started root(w, body);
  w.loop.poll();
  const int one = 1;
  for (int i = 0; i < 1'000'000; ++i) box.deliver(&one);
  box.close();
  w.loop.run();
  CHECK(sum == 1'000'000);
  CHECK(root.finished());
}

TEST_CASE("a coroutine that waits in a closed mailbox a million times needs no stack", "[async][mailbox]") {
  support::world w;
  mailbox<int> box;
  box.close(1);
  int sum = 0;
  auto body = [&]() -> task<> {
    for (int i = 0; i < 1'000'000; ++i) {
      const int value = co_await box.next();
      sum += value;
    }
  };
  support::run(w, body);
  CHECK(sum == 1'000'000);
}

}  // namespace async_mailbox_test

#include "rondo/event/bus.hpp"

#include <asio/post.hpp>
#include <asio/use_awaitable.hpp>
#include <string>
#include <vector>

#include "rondo/async/scope.hpp"
#include "support/catch.hpp"
#include "support/run_task.hpp"

namespace event_bus_test {

using rondo::acknowledgement;
using rondo::bus;
using rondo::gate;
using rondo::listener;
using rondo::scope;
using rondo::subscription;
using rondo::task;
using rondo::testing::run_task;

namespace {

struct tick {
  int number;
};
struct over {
  std::exception_ptr error;
};

struct counting_gate final : gate {
  explicit counting_gate(bool a) : answer(a) {}
  bool open() override {
    ++asked;
    return answer;
  }
  bool answer;
  int asked = 0;
};

using journal = std::vector<std::string>;

task<> yield() {
  const auto home = co_await asio::this_coro::executor;
  co_await asio::post(home, asio::use_awaitable);
}

task<> emitted(bus& b, int number) {
  auto rest = b.emit<tick>(number);
  if (rest) co_await std::move(*rest);
}

}  // namespace

TEST_CASE("subscribers run by descending priority, then in the order of registration", "[event][bus]") {
  bus b;
  journal seen;
  b.on<tick>(subscription{100}, [&] { seen.push_back("reader 1"); });
  b.on<tick>(subscription{-100}, [&] { seen.push_back("snapshot"); });
  b.on<tick>(subscription{300}, [&](const tick& t) { seen.push_back("writer " + std::to_string(t.number)); });
  b.on<tick>(subscription{100}, [&] { seen.push_back("reader 2"); });
  b.on<tick>(subscription{-200}, [&] { seen.push_back("last"); });

  REQUIRE_FALSE(b.emit<tick>(7));
  REQUIRE(seen == journal{"writer 7", "reader 1", "reader 2", "snapshot", "last"});
}

TEST_CASE("inline subscribers make no coroutine", "[event][bus]") {
  bus b;
  int calls = 0;
  REQUIRE_FALSE(b.emit<tick>(1));
  b.on<tick>(subscription{}, [&] { ++calls; });
  REQUIRE_FALSE(b.emit<tick>(2));
  REQUIRE(calls == 1);
}

TEST_CASE("a coroutine handler is awaited before the next subscriber runs", "[event][bus]") {
  bus b;
  journal seen;
  b.on<tick>(subscription{300}, [&]() -> task<> {
    seen.push_back("begin");
    co_await yield();
    seen.push_back("end");
  });
  b.on<tick>(subscription{300}, [&](const tick& t) -> task<> {
    seen.push_back("second " + std::to_string(t.number));
    co_return;
  });
  b.on<tick>(subscription{100}, [&] { seen.push_back("reader"); });

  run_task([&] { return emitted(b, 5); });
  REQUIRE(seen == journal{"begin", "end", "second 5", "reader"});
}

TEST_CASE("a closed gate keeps the event away and is asked once per emission", "[event][bus]") {
  bus b;
  int calls = 0;
  auto open = std::make_shared<counting_gate>(true);
  auto shut = std::make_shared<counting_gate>(false);
  b.on<tick>(subscription{100, open}, [&] { ++calls; });
  b.on<tick>(subscription{100, shut}, [&] { FAIL("behind a closed gate"); });
  b.on<tick>(subscription{100, open}, [&]() -> task<> {
    ++calls;
    co_return;
  });
  run_task([&] { return emitted(b, 1); });
  REQUIRE(calls == 2);
  REQUIRE(open->asked == 2);
  REQUIRE(shut->asked == 1);
}

TEST_CASE("gates at and below the snapshot priority are settled before the first of them runs", "[event][bus]") {
  bus b;
  journal seen;
  struct noting final : gate {
    noting(journal& j, std::string n) : out(j), name(std::move(n)) {}
    bool open() override {
      out.push_back("ask " + name);
      return true;
    }
    journal& out;
    std::string name;
  };
  const auto add = [&](int priority, const std::string& name) {
    b.on<tick>(subscription{priority, std::make_shared<noting>(seen, name)},
               [&seen, name] { seen.push_back("run " + name); });
  };
  SECTION("inline") {}
  SECTION("with a coroutine above") {
    b.on<tick>(subscription{200}, []() -> task<> { co_await yield(); });
  }
  add(-100, "snapshot");
  add(100, "a");
  add(100, "b");
  add(-300, "later");
  run_task([&] { return emitted(b, 1); });
  REQUIRE(seen ==
          journal{"ask a", "run a", "ask b", "run b", "ask snapshot", "ask later", "run snapshot", "run later"});
}

TEST_CASE("listeners of one priority work side by side; the next priority waits for all of them", "[event][bus]") {
  bus b;
  journal seen;
  listener<tick> first;
  listener<tick> second;
  acknowledgement ack_first;
  acknowledgement ack_second;
  first.ack = &ack_first;
  second.ack = &ack_second;
  b.listen<tick>(subscription{300}, first);
  b.listen<tick>(subscription{300}, second);
  b.on<tick>(subscription{100}, [&] { seen.push_back("reader"); });

  const auto listen = [&](listener<tick>& mine, std::string name) -> task<> {
    while (const tick* t = co_await mine.box.next()) {
      seen.push_back(name + " begins " + std::to_string(t->number));
      co_await yield();
      co_await yield();
      seen.push_back(name + " ends " + std::to_string(t->number));
      mine.ack->settle();
    }
  };
  run_task([&]() -> task<> {
    const auto home = co_await asio::this_coro::executor;
    scope children(home);
    children.spawn([&] { return listen(first, "first"); });
    children.spawn([&] { return listen(second, "second"); });
    for (int i = 0; i < 4; ++i) co_await yield();
    co_await emitted(b, 1);
    co_await emitted(b, 2);
    b.close();
    co_await children.join();
  });
  REQUIRE(seen == journal{"first begins 1", "second begins 1", "first ends 1", "second ends 1", "reader",  //
                          "first begins 2", "second begins 2", "first ends 2", "second ends 2", "reader"});
}

TEST_CASE("a throwing subscriber ends the emission, but not before listeners have let go of the event",
          "[event][bus]") {
  bus b;
  journal seen;
  listener<tick> slow;
  acknowledgement ack;
  slow.ack = &ack;
  b.listen<tick>(subscription{300}, slow);
  b.on<tick>(subscription{300}, [] { throw std::runtime_error("broken"); });
  b.on<tick>(subscription{100}, [&] { seen.push_back("never"); });

  run_task([&]() -> task<> {
    const auto home = co_await asio::this_coro::executor;
    scope children(home);
    children.spawn([&]() -> task<> {
      while (const tick* t = co_await slow.box.next()) {
        co_await yield();
        seen.push_back("still " + std::to_string(t->number));
        slow.ack->settle();
      }
    });
    for (int i = 0; i < 4; ++i) co_await yield();
    std::string what;
    try {
      co_await emitted(b, 9);
    } catch (const std::runtime_error& e) {
      what = e.what();
    }
    seen.push_back(what);
    b.close();
    co_await children.join();
  });
  REQUIRE(seen == journal{"still 9", "broken"});
}

TEST_CASE("closing events that carry an error reach only those who asked, whatever their gate", "[event][bus]") {
  bus b;
  journal seen;
  auto shut = std::make_shared<counting_gate>(false);
  b.on<over>(subscription{100}, [&] { seen.push_back("success"); });
  b.on<over>(subscription{100, shut, true}, [&](const over& o) { seen.push_back(o.error ? "failure" : "odd"); });

  REQUIRE_FALSE(b.emit<over>(std::exception_ptr()));
  REQUIRE(seen == journal{"success"});
  REQUIRE_FALSE(b.emit<over>(std::make_exception_ptr(std::runtime_error("x"))));
  REQUIRE(seen == journal{"success", "failure"});
}

TEST_CASE("tell_all reaches everybody although some throw", "[event][bus]") {
  bus b;
  journal seen;
  b.on<tick>(subscription{300}, [] { throw std::runtime_error("one"); });
  b.on<tick>(subscription{200}, []() -> task<> {
    co_await yield();
    throw std::runtime_error("two");
  });
  b.on<tick>(subscription{100}, [&] { seen.push_back("reader"); });
  b.on<tick>(subscription{-100}, [&] { seen.push_back("snapshot"); });
  const tick t{1};
  run_task([&] {
    return b.channel<tick>().tell_all(t, [&](std::exception_ptr e) {
      try {
        std::rethrow_exception(e);
      } catch (const std::exception& x) {
        seen.push_back(x.what());
      }
    });
  });
  REQUIRE(seen == journal{"one", "two", "reader", "snapshot"});
}

TEST_CASE("subscribing from within a handler takes effect with the next emission", "[event][bus]") {
  bus b;
  int late = 0;
  bool subscribed = false;
  b.on<tick>(subscription{100}, [&] {
    if (!std::exchange(subscribed, true))
      for (int i = 0; i < 50; ++i) b.on<tick>(subscription{300}, [&] { ++late; });
  });
  REQUIRE_FALSE(b.emit<tick>(1));
  REQUIRE(late == 0);
  REQUIRE_FALSE(b.emit<tick>(2));
  REQUIRE(late == 50);
}

TEST_CASE("an event may be emitted while one of its type is being delivered", "[event][bus]") {
  bus b;
  std::vector<int> seen;
  b.on<tick>(subscription{100}, [&](const tick& t) -> task<> {
    seen.push_back(t.number);
    if (t.number < 3) co_await emitted(b, t.number + 1);
    seen.push_back(-t.number);
  });
  run_task([&] { return emitted(b, 1); });
  REQUIRE(seen == std::vector<int>{1, 2, 3, -3, -2, -1});
}

TEST_CASE("posted events are delivered by drain, in order, with those posted meanwhile", "[event][bus]") {
  bus b;
  std::vector<int> seen;
  b.on<tick>(subscription{100}, [&](const tick& t) {
    seen.push_back(t.number);
    if (t.number < 10) b.post<tick>(t.number + 10);
  });
  b.on<tick>(subscription{50}, [&]() -> task<> { co_await yield(); });
  b.post<tick>(1);
  b.post<tick>(2);
  REQUIRE(seen.empty());
  run_task([&]() -> task<> {
    auto rest = b.drain();
    if (rest) co_await std::move(*rest);
  });
  REQUIRE(seen == std::vector<int>{1, 2, 11, 12});
  REQUIRE_FALSE(b.drain());
}

TEST_CASE("any type is an event, also one that cannot be copied", "[event][bus]") {
  struct precious {
    std::unique_ptr<int> value;
    const std::string& name;
  };
  bus b;
  std::string seen;
  b.on<precious>(subscription{}, [&](const precious& p) -> task<> {
    co_await yield();
    seen = p.name + std::to_string(*p.value);
  });
  const std::string name = "n";
  run_task([&]() -> task<> {
    auto rest = b.emit<precious>(std::make_unique<int>(3), name);
    if (rest) co_await std::move(*rest);
  });
  REQUIRE(seen == "n3");
}

}  // namespace event_bus_test

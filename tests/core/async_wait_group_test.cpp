#include "rondo/async/wait_group.hpp"

#include <optional>
#include <utility>
#include <vector>

#include "rondo/async/scope.hpp"
#include "support/abandon.hpp"
#include "support/catch.hpp"

namespace async_wait_group_test {

using rondo::scope;
using rondo::task;
using rondo::wait_group;
using support::tracked;
using support::turn;
using support::world;

namespace {

// A coroutine that waits for the group to be empty and then says so in `order`.
auto waiting(wait_group& group, std::vector<int>& order, int number) {
  return [&group, &order, number]() -> task<> {
    co_await group.empty();
    order.push_back(number);
  };
}

}  // namespace

TEST_CASE("members are counted for as long as they live", "[async][wait_group]") {
  wait_group group;
  CHECK(group.size() == 0);
  {
    auto first = group.join();
    auto second = group.join();
    CHECK(group.size() == 2);
    const auto moved = std::move(first);
    CHECK(group.size() == 2);
    second = group.join();
    CHECK(group.size() == 2);
    second = wait_group::member();
    CHECK(group.size() == 1);
  }
  CHECK(group.size() == 0);
}

TEST_CASE("leaving twice is leaving once", "[async][wait_group]") {
  wait_group group;
  auto first = group.join();
  const auto second = group.join();
  CHECK(first.leave() == 0.0);
  CHECK(first.leave() == 0.0);
  CHECK(group.size() == 1);
  CHECK(wait_group::member().leave() == 0.0);
}

TEST_CASE("an empty group is not waited for", "[async][wait_group]") {
  world w;
  wait_group group;
  bool before_others = false;
  bool others = false;
  auto body = [&]() -> task<> {
    scope children(w.home());
    children.spawn([&]() -> task<> {
      others = true;
      co_return;
    });
    co_await group.empty();
    before_others = !others;
    co_await children.join();
  };
  support::run(w, body);
  CHECK(before_others);
}

TEST_CASE("all who wait go on when the last member leaves, from the event loop", "[async][wait_group]") {
  world w;
  wait_group group;
  std::vector<int> order;
  auto first = group.join();
  auto second = group.join();
  auto one = waiting(group, order, 1);
  auto two = waiting(group, order, 2);
  const support::started root_one(w, one);
  const support::started root_two(w, two);
  w.loop.poll();
  CHECK(order.empty());
  CHECK(second.leave() == 0.0);
  w.loop.poll();
  CHECK(order.empty());
  CHECK(first.leave() > 0.0);
  CHECK(order.empty());
  w.loop.run();
  CHECK(order == std::vector<int>{1, 2});
  CHECK(root_one.finished());
  CHECK(root_two.finished());
}

TEST_CASE("who joins before the waiting go on is waited for as well", "[async][wait_group]") {
  world w;
  wait_group group;
  std::vector<int> order;
  auto first = group.join();
  auto one = waiting(group, order, 1);
  const support::started root(w, one);
  w.loop.poll();
  SECTION("while the group has members") {
    auto second = group.join();
    CHECK(first.leave() == 0.0);
    w.loop.poll();
    CHECK(order.empty());
    CHECK(second.leave() > 0.0);
  }
  SECTION("between the last one's leaving and the event loop's turn") {
    CHECK(first.leave() > 0.0);
    auto second = group.join();
    w.loop.poll();
    CHECK(order.empty());
    CHECK(second.leave() > 0.0);
  }
  w.loop.restart();
  w.loop.run();
  CHECK(order == std::vector<int>{1});
}

TEST_CASE("leaving tells how long the group was waited for, and nothing when nobody waited", "[async][wait_group]") {
  world w;
  wait_group group;
  std::vector<int> order;
  auto unnoticed = group.join();
  CHECK(unnoticed.leave() == 0.0);

  auto noticed = group.join();
  auto one = waiting(group, order, 1);
  const support::started root(w, one);
  w.loop.poll();
  CHECK(noticed.leave() > 0.0);
  w.loop.run();

  // The next ones are not charged for it.
  auto later = group.join();
  CHECK(later.leave() == 0.0);
  CHECK(order == std::vector<int>{1});
}

TEST_CASE("a cancelled wait ends, and the others go on waiting", "[async][wait_group]") {
  world w;
  wait_group group;
  std::vector<int> order;
  auto member = group.join();
  auto one = waiting(group, order, 1);
  auto two = waiting(group, order, 2);
  support::started first(w, one);
  const support::started second(w, two);
  w.loop.poll();
  SECTION("before the last member leaves") {
    first.cancel();
    w.loop.poll();
    CHECK(first.finished());
    CHECK_FALSE(second.finished());
    member.leave();
  }
  SECTION("in the same turn") {
    first.cancel();
    member.leave();
  }
  w.loop.restart();
  w.loop.run();
  CHECK_THROWS_AS(first.rethrow(), asio::system_error);
  CHECK_NOTHROW(second.rethrow());
  CHECK(order == std::vector<int>{2});
}

TEST_CASE("members and those who wait may outlive the group", "[async][wait_group]") {
  world w;
  auto group = std::make_optional<wait_group>();
  std::vector<int> order;
  auto member = group->join();
  auto one = waiting(*group, order, 1);
  const support::started root(w, one);
  w.loop.poll();
  group.reset();
  CHECK(member.leave() > 0.0);
  w.loop.run();
  CHECK(order == std::vector<int>{1});
}

TEST_CASE("abandoning members and those who wait for them", "[async][wait_group][abandon]") {
  const int places = support::abandon_everywhere([](world& w) -> task<> {
    const tracked here;
    wait_group group;
    scope children(w.home());
    for (int i = 0; i < 2; ++i) {
      children.spawn([&]() -> task<> {
        const tracked member;
        const auto mine = group.join();
        co_await turn();
        co_await turn();
      });
      children.spawn([&]() -> task<> {
        const tracked waiting;
        co_await group.empty();
        co_await turn();
      });
    }
    co_await turn();
    co_await group.empty();
    co_await children.join();
  });
  CHECK(places > 8);
}

TEST_CASE("an event loop may die while somebody waits, and the members leave later", "[async][wait_group][abandon]") {
  wait_group group;
  auto member = group.join();
  std::vector<int> order;
  {
    world w;
    auto one = waiting(group, order, 1);
    const support::started root(w, one);
    w.loop.poll();
  }
  CHECK(member.leave() >= 0.0);
  CHECK(order.empty());

  // The group serves another event loop.
  world w;
  auto later = group.join();
  auto two = waiting(group, order, 2);
  const support::started root(w, two);
  w.loop.poll();
  later.leave();
  w.loop.run();
  CHECK(order == std::vector<int>{2});
}

TEST_CASE("time of a wait that was cancelled is charged to nobody", "[async][wait_group]") {
  world w;
  wait_group group;
  std::vector<int> order;
  auto member = group.join();
  auto one = waiting(group, order, 1);
  support::started root(w, one);
  w.loop.poll();
  root.cancel();
  w.loop.run();
  CHECK(member.leave() == 0.0);
}

}  // namespace async_wait_group_test

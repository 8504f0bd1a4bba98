#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "rondo/async/scope.hpp"
#include "rondo/async/semaphore.hpp"
#include "support/abandon.hpp"
#include "support/catch.hpp"

namespace async_semaphore_test {

using rondo::async_semaphore;
using rondo::task;

TEST_CASE("a semaphore bounds what happens at the same time, first come, first served", "[async][semaphore]") {
  support::world w;
  async_semaphore semaphore(2);
  int inside = 0;
  int most = 0;
  std::vector<int> order;
  auto body = [&]() -> task<> {
    rondo::scope children(w.home());
    for (int i = 0; i < 6; ++i) {
      children.spawn([&, i]() -> task<> {
        const auto permit = co_await semaphore.acquire();
        order.push_back(i);
        most = std::max(most, ++inside);
        co_await support::turn();
        --inside;
      });
    }
    co_await children.join();
  };
  support::run(w, body);
  CHECK(most == 2);
  CHECK(order == std::vector<int>{0, 1, 2, 3, 4, 5});
  CHECK(semaphore.available() == 2);
}

TEST_CASE("try_acquire takes a free permit or yields an empty one", "[async][semaphore]") {
  async_semaphore semaphore(1);
  auto first = semaphore.try_acquire();
  CHECK(first);
  CHECK_FALSE(semaphore.try_acquire());
  auto moved = std::move(first);
  CHECK_FALSE(first);
  CHECK(semaphore.available() == 0);
  moved.release();
  moved.release();
  CHECK(semaphore.available() == 1);
  first = semaphore.try_acquire();
  first = async_semaphore::permit();
  CHECK(semaphore.available() == 1);
}

TEST_CASE("a released permit goes to who waits, not to who comes by", "[async][semaphore]") {
  support::world w;
  async_semaphore semaphore(0);
  bool got = false;
  auto body = [&]() -> task<> {
    const auto permit = co_await semaphore.acquire();
    got = true;
  };
  support::started root(w, body);
  w.loop.poll();
  semaphore.release();
  CHECK_FALSE(semaphore.try_acquire());
  w.loop.run();
  CHECK(got);
  CHECK(semaphore.available() == 1);
}

TEST_CASE("a cancelled waiter leaves the line and loses no permit", "[async][semaphore]") {
  support::world w;
  async_semaphore semaphore(0);
  int got = 0;
  auto body = [&]() -> task<> {
    const auto permit = co_await semaphore.acquire();
    ++got;
    co_await support::turn();
  };
  support::started first(w, body);
  support::started second(w, body);
  w.loop.poll();
  SECTION("before the permit is given") {
    first.cancel();
    semaphore.release();
    w.loop.run();
    CHECK_THROWS_AS(first.rethrow(), asio::system_error);
    CHECK_NOTHROW(second.rethrow());
    CHECK(got == 1);
    CHECK(semaphore.available() == 1);
  }
  SECTION("while the permit is on its way") {
    semaphore.release();
    first.cancel();
    w.loop.run();
    CHECK_THROWS_AS(first.rethrow(), asio::system_error);
    CHECK(second.finished());
    CHECK_NOTHROW(second.rethrow());
    CHECK(semaphore.available() == 1);
  }
}

TEST_CASE("a permit may outlive its semaphore", "[async][semaphore]") {
  auto semaphore = std::make_optional<async_semaphore>(1);
  auto permit = semaphore->try_acquire();
  semaphore.reset();
  permit.release();
  CHECK_FALSE(permit);
}

}  // namespace async_semaphore_test

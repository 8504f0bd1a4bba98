#include <memory>
#include <stdexcept>
#include <vector>

#include "rondo/async/barrier.hpp"
#include "rondo/async/scope.hpp"
#include "support/abandon.hpp"
#include "support/catch.hpp"

namespace async_barrier_test {

using rondo::async_barrier;
using rondo::task;

TEST_CASE("nobody passes a barrier before all have arrived, generation after generation", "[async][barrier]") {
  support::world w;
  constexpr int members = 3;
  constexpr int rounds = 100;
  async_barrier barrier(members);
  std::vector<int> arrived(rounds, 0);
  int early = 0;
  auto body = [&]() -> task<> {
    rondo::scope children(w.home());
    for (int member = 0; member < members; ++member) {
      children.spawn([&, member]() -> task<> {
        for (std::size_t round = 0; round < rounds; ++round) {
          for (int i = 0; i < member; ++i) co_await support::turn();
          ++arrived[round];
          co_await barrier.arrive_and_wait();
          early += arrived[round] < members ? 1 : 0;
        }
      });
    }
    co_await children.join();
  };
  support::run(w, body);
  CHECK(early == 0);
  CHECK(arrived == std::vector<int>(rounds, members));
  CHECK(barrier.waiting() == 0);
}

TEST_CASE("the last to arrive goes on at once, the others in the order of arrival", "[async][barrier]") {
  support::world w;
  async_barrier barrier(3);
  std::vector<int> order;
  auto member = [&](int id) -> task<> {
    co_await barrier.arrive_and_wait();
    order.push_back(id);
  };
  auto one = [&] { return member(1); };
  auto two = [&] { return member(2); };
  auto three = [&] { return member(3); };
  support::started a(w, one);
  support::started b(w, two);
  w.loop.poll();
  CHECK(barrier.waiting() == 2);
  support::started c(w, three);
  w.loop.run();
  CHECK(order == std::vector<int>{3, 1, 2});
}

TEST_CASE("a barrier for one never suspends, however often it is passed", "[async][barrier]") {
  support::world w;
  async_barrier barrier(1);
  int passed = 0;
  auto body = [&]() -> task<> {
    for (int i = 0; i < 1'000'000; ++i) {
      co_await barrier.arrive_and_wait();
      ++passed;
    }
  };
  support::started root(w, body);
  w.loop.run_one();
  CHECK(passed == 1'000'000);
  w.loop.run();
}

TEST_CASE("a cancelled arrival is taken back", "[async][barrier]") {
  support::world w;
  async_barrier barrier(2);
  auto body = [&] { return barrier.arrive_and_wait(); };
  support::started first(w, body);
  w.loop.poll();
  CHECK(barrier.waiting() == 1);
  first.cancel();
  CHECK(barrier.waiting() == 0);
  support::started second(w, body);
  w.loop.poll();
  CHECK_THROWS_AS(first.rethrow(), asio::system_error);
  CHECK_FALSE(second.finished());
  support::started third(w, body);
  w.loop.run();
  CHECK(second.finished());
  CHECK(third.finished());
}

TEST_CASE("dropping out completes the generation of the others", "[async][barrier]") {
  support::world w;
  async_barrier barrier(3);
  auto body = [&] { return barrier.arrive_and_wait(); };
  support::started first(w, body);
  support::started second(w, body);
  w.loop.poll();
  CHECK_FALSE(first.finished());
  barrier.drop();
  CHECK(barrier.participants() == 2);
  w.loop.run();
  CHECK(first.finished());
  CHECK(second.finished());
}

TEST_CASE("an aborted barrier throws from every wait, present and future", "[async][barrier]") {
  support::world w;
  async_barrier barrier(3);
  auto body = [&] { return barrier.arrive_and_wait(); };
  support::started first(w, body);
  w.loop.poll();
  barrier.abort(std::make_exception_ptr(std::domain_error("rank 2 died")));
  barrier.abort(std::make_exception_ptr(std::logic_error("later")));
  support::started second(w, body);
  w.loop.run();
  CHECK_THROWS_AS(first.rethrow(), std::domain_error);
  CHECK_THROWS_AS(second.rethrow(), std::domain_error);
}

TEST_CASE("a barrier for nobody is refused", "[async][barrier]") {
  CHECK_THROWS_AS(async_barrier(0), std::invalid_argument);
}

}  // namespace async_barrier_test

#include <future>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "rondo/async/offload.hpp"
#include "rondo/async/scope.hpp"
#include "support/abandon.hpp"
#include "support/catch.hpp"

namespace async_offload_test {

using rondo::offload;
using rondo::task;

namespace {

class no_default {
 public:
  explicit no_default(int v) : value(std::make_unique<int>(v)) {}
  std::unique_ptr<int> value;
};

}  // namespace

TEST_CASE("offload runs elsewhere and comes home", "[async][offload]") {
  support::world w;
  const auto home = std::this_thread::get_id();
  auto body = [&]() -> task<> {
    auto where = [] { return std::this_thread::get_id(); };
    const std::thread::id elsewhere = co_await offload(w.pool, where);
    CHECK(elsewhere != home);
    CHECK(std::this_thread::get_id() == home);
  };
  support::run(w, body);
}

TEST_CASE("offload yields any object: nothing, move-only, without default constructor", "[async][offload]") {
  support::world w;
  int runs = 0;
  auto body = [&]() -> task<> {
    co_await offload(w.pool, [&runs] { ++runs; });
    auto make = [] { return no_default(7); };
    const no_default made = co_await offload(w.pool, make);
    CHECK(*made.value == 7);
    const std::string text(100, 'x');
    auto copy = [text] { return text + "y"; };
    const std::string copied = co_await offload(w.pool, copy);
    CHECK(copied == text + "y");
    auto mutate = [count = 0]() mutable { return ++count; };
    const int first = co_await offload(w.pool, mutate);
    const int second = co_await offload(w.pool, mutate);
    CHECK(first == 1);
    CHECK(second == 2);
  };
  support::run(w, body);
  CHECK(runs == 1);
}

TEST_CASE("offload throws at home what was thrown elsewhere", "[async][offload]") {
  support::world w;
  auto body = [&]() -> task<> {
    auto fail = []() -> int { throw std::domain_error("elsewhere"); };
    co_await offload(w.pool, fail);
  };
  CHECK_THROWS_AS(support::run(w, body), std::domain_error);
  w.loop.restart();
  auto nothing = [&]() -> task<> {
    auto fail = [] { throw std::domain_error("elsewhere"); };
    co_await offload(w.pool, fail);
  };
  CHECK_THROWS_AS(support::run(w, nothing), std::domain_error);
}

TEST_CASE("cancelling an offload waits for the work and keeps its result", "[async][offload]") {
  support::world w;
  std::promise<void> go;
  bool returned = false;
  int result = 0;
  auto body = [&]() -> task<> {
    auto work = [&] {
      go.get_future().wait();
      returned = true;
      return 5;
    };
    result = co_await offload(w.pool, work);
    co_await support::turn();
  };
  support::started root(w, body);
  w.loop.poll();
  root.cancel();
  w.loop.poll();
  CHECK_FALSE(root.finished());
  go.set_value();
  w.loop.run();
  CHECK(returned);
  CHECK(result == 5);
  CHECK_THROWS_AS(root.rethrow(), asio::system_error);
}

TEST_CASE("the event loop goes on while work is offloaded", "[async][offload]") {
  support::world w;
  std::promise<void> go;
  auto body = [&]() -> task<> {
    rondo::scope children(w.home());
    children.spawn([&]() -> task<> {
      auto wait = [&] { go.get_future().wait(); };
      co_await offload(w.pool, wait);
    });
    children.spawn([&]() -> task<> {
      co_await support::turn();
      go.set_value();
    });
    co_await children.join();
  };
  CHECK_NOTHROW(support::run(w, body));
}

TEST_CASE("many offloads one after the other see each other's writes", "[async][offload]") {
  support::world w;
  std::vector<int> numbers;
  auto body = [&]() -> task<> {
    for (int i = 0; i < 1000; ++i) {
      auto append = [&numbers, i] { numbers.push_back(i); };
      co_await offload(w.pool, append);
      CHECK(numbers.back() == i);
    }
  };
  support::run(w, body);
  CHECK(numbers.size() == 1000);
}

TEST_CASE("work that the pool never started is destroyed with the pool", "[async][offload]") {
  {
    support::world w;
    std::promise<void> entered;
    std::promise<void> go;
    auto block = [&] {
      entered.set_value();
      go.get_future().wait();
    };
    auto first = [&]() -> task<> {
      const support::tracked here;
      co_await offload(w.pool, block);
    };
    bool ran = false;
    auto second = [&]() -> task<> {
      const support::tracked here;
      co_await offload(w.pool, [&ran] { ran = true; });
    };
    asio::co_spawn(w.loop, first, [](std::exception_ptr) {});
    asio::co_spawn(w.loop, second, [](std::exception_ptr) {});
    w.loop.poll();
    entered.get_future().wait();
    w.pool.stop();
    go.set_value();
    w.pool.join();
    CHECK_FALSE(ran);
  }
  CHECK(support::tracked::live == 0);
}

}  // namespace async_offload_test

// GCC 12 compiles some coroutines into wrong programs (see docs/coroutines.md). The shapes here are those that our
// rules call safe. When one of them fails, it is the compiler or its flags: do not ship what it builds.
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "rondo/async/task.hpp"
#include "support/abandon.hpp"
#include "support/catch.hpp"

namespace compiler_canary_test {

using rondo::task;
using support::tracked;

namespace {

task<bool> yes() { co_return true; }
task<std::string> text() { co_return std::string(100, 'x'); }

// Counts constructions against destructions: a member that is copied bit by bit is destroyed once too often.
class owner {
 public:
  std::string name = std::string(100, 'n');
  tracked count;
};

class with_constructor {
 public:
  with_constructor(std::string n) : name(std::move(n)) {}
  std::string name;
  tracked count;
};

task<std::size_t> length(owner o) { co_return o.name.size(); }
task<std::size_t> length_of(const owner& o) { co_return o.name.size(); }
task<std::size_t> length_by_class(with_constructor o) { co_return o.name.size(); }
task<std::size_t> call(const std::function<std::size_t()>& f) { co_return f(); }
template <class F>
task<std::size_t> call_named(F& f) {
  co_return f();
}

}  // namespace

TEST_CASE("an awaited condition that was bound to a local decides", "[canary]") {
  support::world w;
  int passed = 0;
  auto body = [&]() -> task<> {
    const bool go = co_await yes();
    if (go) ++passed;
    while (const bool again = co_await yes()) {
      ++passed;
      if (passed > 3) break;
      static_cast<void>(again);
    }
  };
  support::run(w, body);
  CHECK(passed == 4);
}

TEST_CASE("named aggregates, by reference, by copy and moved, are destroyed once", "[canary]") {
  support::world w;
  std::size_t sum = 0;
  auto body = [&]() -> task<> {
    owner named;
    const auto a = co_await length_of(named);
    const auto b = co_await length(named);
    const auto c = co_await length(std::move(named));
    sum = a + b + c;
  };
  support::run(w, body);
  CHECK(sum == 300);
  CHECK(tracked::live == 0);
}

TEST_CASE("temporaries of classes with constructors are destroyed once", "[canary]") {
  support::world w;
  std::size_t size = 0;
  auto body = [&]() -> task<> { size = co_await length_by_class(with_constructor(std::string(50, 'c'))); };
  support::run(w, body);
  CHECK(size == 50);
  CHECK(tracked::live == 0);
}

TEST_CASE("named closures and trivially destructible temporaries keep their captures", "[canary]") {
  support::world w;
  std::size_t sum = 0;
  auto body = [&]() -> task<> {
    auto named = [o = owner()] { return o.name.size(); };
    const auto a = co_await call_named(named);
    const std::function<std::size_t()> erased = named;
    const auto b = co_await call(erased);
    const auto c = co_await call([&] { return a + b; });
    sum = a + b + c;
  };
  support::run(w, body);
  CHECK(sum == 400);
  CHECK(tracked::live == 0);
}

TEST_CASE("awaited results are built into aggregates after the await", "[canary]") {
  support::world w;
  std::vector<owner> made;
  auto body = [&]() -> task<> {
    auto name = co_await text();
    owner o{std::move(name), {}};
    made.push_back(std::move(o));
  };
  support::run(w, body);
  REQUIRE(made.size() == 1);
  CHECK(made.front().name == std::string(100, 'x'));
  made.clear();
  CHECK(tracked::live == 0);
}

TEST_CASE("structured bindings, loops over results and exceptions destroy locals once", "[canary]") {
  support::world w;
  auto pair = []() -> task<std::pair<std::string, std::unique_ptr<int>>> {
    co_return std::pair(std::string(100, 'p'), std::make_unique<int>(3));
  };
  auto list = []() -> task<std::vector<std::string>> { co_return std::vector<std::string>(3, std::string(40, 'l')); };
  std::size_t sum = 0;
  auto body = [&]() -> task<> {
    const tracked local;
    const auto [name, value] = co_await pair();
    sum += name.size() + static_cast<std::size_t>(*value);
    const auto names = co_await list();
    for (const auto& each : names) {
      const auto more = co_await text();
      sum += each.size() + more.size();
    }
    throw std::domain_error(name);
  };
  CHECK_THROWS_AS(support::run(w, body), std::domain_error);
  CHECK(sum == 103 + 3 * 140);
  CHECK(tracked::live == 0);
}

TEST_CASE("an if with else in place of a ternary awaits one of two", "[canary]") {
  support::world w;
  std::string chosen;
  auto body = [&]() -> task<> {
    const bool first = co_await yes();
    if (first) {
      chosen = co_await text();
    } else {
      chosen = "other";
    }
  };
  support::run(w, body);
  CHECK(chosen == std::string(100, 'x'));
}

}  // namespace compiler_canary_test

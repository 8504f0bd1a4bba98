#include "rondo/writing/staging.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <asio/system_error.hpp>
#include <cerrno>
#include <memory>
#include <new>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "rondo/async/scope.hpp"
#include "rondo/error.hpp"
#include "rondo/writing/memory_block.hpp"
#include "support/abandon.hpp"
#include "support/writing.hpp"

namespace writing_staging_test {

using namespace rondo;
using namespace rondo::testing;
using support::tracked;
using support::turn;
using support::world;
using writing::staging;
using writing::when_full;

namespace {

constexpr std::uint64_t mebibyte = std::uint64_t{1} << 20U;
constexpr std::uint64_t impossible = std::uint64_t{1} << 46U;

using slot = std::shared_ptr<writing::staging_slot>;

// Runs `body` on an event loop of its own.
template <class Body>
void run(Body body) {
  world w;
  auto started = [&]() -> task<> { return body(w); };
  support::run(w, started);
}

// A coroutine that asks for a slot, puts it into `where`, and notes that in `order`.
auto asking(staging& memory, slot& where, std::vector<int>& order, int number) {
  return [&, number]() -> task<> {
    where = co_await memory.acquire(4096);
    order.push_back(number);
  };
}

}  // namespace

TEST_CASE("staging memory is aligned, large enough and used again", "[writing][staging]") {
  staging memory({.capacity = 2});
  CHECK(memory.bytes() == 0);
  run([&](world&) -> task<> {
    for (const std::uint64_t size : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{5000}, 3 * mebibyte + 1}) {
      auto first = co_await memory.acquire(size);
      const auto bytes = first->memory();
      CHECK(bytes.size() >= size);
      CHECK(!bytes.empty());
      CHECK(reinterpret_cast<std::uintptr_t>(bytes.data()) % 4096 == 0);
      CHECK(first->descriptor() == -1);
      std::fill(bytes.begin(), bytes.end(), std::byte{7});
      first.reset();
      const auto again = co_await memory.acquire(size);
      CHECK(again->memory().data() == bytes.data());
    }
    // It grew in one place.
    CHECK(memory.bytes() == writing::memory_block::rounded(3 * mebibyte + 1));
    CHECK(memory.peak_bytes() == memory.bytes());
  });
}

TEST_CASE("a staging needs room for one file", "[writing][staging]") {
  try {
    const staging none({.capacity = 0});
    FAIL("no error");
  } catch (const option_error& error) {
    CHECK(error.option() == "capacity");
  }
}

TEST_CASE("when the staging is full, wait: first come, first served", "[writing][staging]") {
  staging memory({.capacity = 2});
  run([&](world& w) -> task<> {
    auto first = co_await memory.acquire(1);
    auto second = co_await memory.acquire(1);
    std::vector<int> order;
    slot third;
    slot fourth;
    scope children(w.home());
    children.spawn(asking(memory, third, order, 3));
    children.spawn(asking(memory, fourth, order, 4));
    for (int i = 0; i < 10; ++i) co_await turn();
    CHECK(order.empty());
    second.reset();
    for (int i = 0; i < 10; ++i) co_await turn();
    CHECK(order == std::vector<int>{3});
    first.reset();
    co_await children.join();
    CHECK(order == std::vector<int>{3, 4});
    CHECK(third->memory().data() != fourth->memory().data());
    // Nobody waits when there is room again.
    third.reset();
    const auto fifth = co_await memory.acquire(1);
    CHECK(fifth != nullptr);
  });
  CHECK(memory.peak_bytes() == 2 * 4096);
}

TEST_CASE("when the staging is full, skip", "[writing][staging]") {
  staging memory({.capacity = 1, .full = when_full::skip});
  run([&](world& w) -> task<> {
    auto first = co_await memory.acquire(1);
    const auto second = co_await memory.acquire(1);
    CHECK(second == nullptr);
    // Those who want to wait all the same.
    std::vector<int> order;
    slot third;
    scope children(w.home());
    auto waiting = [&]() -> task<> {
      third = co_await memory.acquire(1, when_full::wait);
      order.push_back(3);
    };
    children.spawn(waiting);
    co_await turn();
    co_await turn();
    first.reset();
    co_await children.join();
    CHECK(third != nullptr);
    third.reset();
    const auto fourth = co_await memory.acquire(1);
    CHECK(fourth != nullptr);
  });
}

TEST_CASE("when the staging is full, replace the newest file that has not begun", "[writing][staging]") {
  staging memory({.capacity = 3, .full = when_full::replace});
  run([&](world& w) -> task<> {
    auto begun = co_await memory.acquire(1);
    auto older = co_await memory.acquire(1);
    auto newer = co_await memory.acquire(5000);
    begun->hand_over();
    CHECK(begun->begin_writing());
    older->hand_over();
    newer->hand_over();
    const auto* const replaced = newer->memory().data();

    auto newest = co_await memory.acquire(1);
    CHECK(newest->memory().data() == replaced);
    CHECK(newer->memory().empty());
    CHECK(newer->descriptor() == -1);
    CHECK_FALSE(newer->begin_writing());

    // The newest is being filled and cannot be replaced: the older one is.
    auto next = co_await memory.acquire(1);
    CHECK_FALSE(older->begin_writing());
    CHECK(newest->begin_writing());

    // Nothing is left to replace.
    std::vector<int> order;
    slot late;
    scope children(w.home());
    children.spawn(asking(memory, late, order, 1));
    for (int i = 0; i < 10; ++i) co_await turn();
    CHECK(order.empty());
    // Those that were replaced have nothing to give back.
    older.reset();
    newer.reset();
    for (int i = 0; i < 10; ++i) co_await turn();
    CHECK(order.empty());
    begun.reset();
    co_await children.join();
    CHECK(next->begin_writing());
  });
  CHECK(memory.bytes() == 4096 * 2 + 8192);
}

TEST_CASE("a slot that comes back on another thread wakes up those who wait", "[writing][staging]") {
  staging memory({.capacity = 1});
  run([&](world& w) -> task<> {
    auto first = co_await memory.acquire(1);
    std::vector<int> order;
    slot second;
    scope children(w.home());
    children.spawn(asking(memory, second, order, 2));
    co_await turn();
    co_await turn();
    // The event loop has nothing else to do, and must not end.
    std::thread elsewhere([slot = std::exchange(first, nullptr)]() mutable { slot.reset(); });
    co_await children.join();
    elsewhere.join();
    CHECK(second != nullptr);
  });
}

TEST_CASE("a cancelled wait leaves the line", "[writing][staging]") {
  staging memory({.capacity = 1});
  world w;
  slot first;
  auto take = [&]() -> task<> { first = co_await memory.acquire(1); };
  support::run(w, take);
  w.loop.restart();

  std::vector<int> order;
  slot second;
  slot third;
  auto two = asking(memory, second, order, 2);
  auto three = asking(memory, third, order, 3);
  support::started cancelled(w, two);
  support::started patient(w, three);
  w.loop.poll();
  cancelled.cancel();
  w.loop.poll();
  REQUIRE(cancelled.finished());
  CHECK_THROWS_AS(cancelled.rethrow(), asio::system_error);
  first.reset();
  w.loop.run();
  CHECK(order == std::vector<int>{3});

  // One that is cancelled when its slot is on the way already gives that to the next.
  w.loop.restart();
  support::started unlucky(w, two);
  support::started last(w, three);
  w.loop.poll();
  auto held = std::exchange(third, nullptr);
  held.reset();
  unlucky.cancel();
  w.loop.run();
  CHECK_THROWS_AS(unlucky.rethrow(), asio::system_error);
  CHECK(last.finished());
  CHECK(order == std::vector<int>{3, 3});
}

TEST_CASE("what was prepared is there", "[writing][staging]") {
  staging memory({.capacity = 2, .full = when_full::skip});
  run([&](world& w) -> task<> {
    co_await memory.prepare(3 * mebibyte);
    const auto prepared = memory.bytes();
    CHECK(prepared >= 3 * mebibyte);
    co_await memory.prepare(2 * mebibyte);
    CHECK(memory.bytes() == prepared);
    const auto first = co_await memory.acquire(3 * mebibyte);
    CHECK(memory.bytes() == prepared);

    // A file that needs what is being prepared waits for it and is not skipped.
    scope children(w.home());
    children.spawn([&]() -> task<> { return memory.prepare(3 * mebibyte); });
    co_await turn();
    const auto second = co_await memory.acquire(3 * mebibyte);
    CHECK(second != nullptr);
    co_await children.join();
    CHECK(memory.bytes() == 2 * prepared);
    // No more blocks are allowed.
    co_await memory.prepare(3 * mebibyte);
    CHECK(memory.bytes() == 2 * prepared);
  });
}

TEST_CASE("staging memory is bounded by its capacity times the largest file", "[writing][staging]") {
  const auto largest = 4 * mebibyte;
  std::mt19937 random(1);
  for (const std::size_t capacity : {std::size_t{1}, std::size_t{3}}) {
    staging memory({.capacity = capacity});
    run([&](world&) -> task<> {
      std::vector<slot> held;
      for (int i = 0; i < 200; ++i) {
        const std::uint64_t size = random() % 2 == 0 ? random() % largest : random() % 10'000;
        if (held.size() == capacity) held.erase(held.begin() + static_cast<std::ptrdiff_t>(random() % capacity));
        auto next = co_await memory.acquire(size);
        REQUIRE(next->memory().size() >= size);
        held.push_back(std::move(next));
        std::uint64_t together = 0;
        for (const auto& one : held) together += one->memory().size();
        REQUIRE(memory.bytes() >= together);
      }
    });
    CHECK(memory.peak_bytes() <= capacity * largest);
    CHECK(memory.bytes() <= memory.peak_bytes());
  }
}

TEST_CASE("memory that cannot be had is an error, and its place is free again", "[writing][staging]") {
  staging memory({.capacity = 1, .shared = GENERATE(false, true)});
  run([&](world&) -> task<> {
    int failures = 0;
    for (int i = 0; i < 3; ++i) {
      try {
        co_await memory.acquire(impossible);
      } catch (const std::bad_alloc&) {
        ++failures;
      } catch (const io_error&) {
        ++failures;
      }
      co_await memory.prepare(impossible);
      CHECK(memory.bytes() == 0);
    }
    CHECK(failures == 3);
    const auto small = co_await memory.acquire(1);
    CHECK(small != nullptr);
    CHECK(memory.bytes() == 4096);
  });
}

TEST_CASE("shared staging memory can be mapped by another process and not resized", "[writing][staging]") {
  staging memory({.capacity = 1, .shared = true});
  run([&](world&) -> task<> {
    for (const std::uint64_t size : {std::uint64_t{100}, 5 * mebibyte}) {
      const auto mine = co_await memory.acquire(size);
      const int file = mine->descriptor();
      const auto bytes = mine->memory();
      REQUIRE(file >= 0);
      struct stat about {};
      REQUIRE(::fstat(file, &about) == 0);
      CHECK(static_cast<std::size_t>(about.st_size) == bytes.size());
      CHECK((::fcntl(file, F_GETFD) & FD_CLOEXEC) != 0);
      CHECK(::ftruncate(file, 0) != 0);
      CHECK(::ftruncate(file, about.st_size * 2) != 0);
      auto* const other = ::mmap(nullptr, bytes.size(), PROT_READ, MAP_SHARED, file, 0);
      REQUIRE(other != MAP_FAILED);
      const auto content = pattern(bytes.size(), size);
      std::copy(content.begin(), content.end(), bytes.begin());
      CHECK(std::equal(content.begin(), content.end(), static_cast<const std::byte*>(other)));
      ::munmap(other, bytes.size());
    }
  });
}

TEST_CASE("nobody waits for slots that were given up", "[writing][staging]") {
  staging memory({.capacity = 2, .full = GENERATE(when_full::wait, when_full::skip, when_full::replace)});
  run([&](world& w) -> task<> {
    auto first = co_await memory.acquire(1);
    auto second = co_await memory.acquire(1);
    CHECK(first->begin_writing());
    CHECK(second->begin_writing());
    int refused = 0;
    auto asks = [&]() -> task<> {
      try {
        co_await memory.acquire(1, when_full::wait);
      } catch (const io_error& error) {
        CHECK(error.code() == std::errc::timed_out);
        CHECK(mentions(error, "all of its 2 blocks"));
        ++refused;
      }
    };
    first->give_up();
    scope children(w.home());
    children.spawn(asks);
    children.spawn(asks);
    for (int i = 0; i < 10; ++i) co_await turn();
    // One may still come back in the ordinary way.
    CHECK(refused == 0);
    second->give_up();
    co_await children.join();
    CHECK(refused == 2);
    co_await asks();
    CHECK(refused == 3);
    const auto* const memory_of_first = first->memory().data();
    first.reset();
    const auto third = co_await memory.acquire(1);
    CHECK(third->memory().data() == memory_of_first);
  });
}

TEST_CASE("slots outlive their staging", "[writing][staging]") {
  slot left;
  {
    staging memory({.capacity = 1});
    run([&](world&) -> task<> { left = co_await memory.acquire(3 * mebibyte); });
  }
  std::fill(left->memory().begin(), left->memory().end(), std::byte{1});
  std::thread([last = std::move(left)]() mutable { last.reset(); }).join();
}

TEST_CASE("abandoning those who wait for staging memory", "[writing][staging][abandon]") {
  staging shared_by_all({.capacity = 2});
  const int places = support::abandon_everywhere([&](world& w) -> task<> {
    const tracked here;
    staging own({.capacity = 1});
    scope children(w.home());
    for (int i = 0; i < 4; ++i) {
      children.spawn([&]() -> task<> {
        const tracked child;
        const auto one = co_await shared_by_all.acquire(2 * mebibyte);
        co_await turn();
        const auto two = co_await own.acquire(1);
        co_await turn();
      });
    }
    children.spawn([&]() -> task<> { return own.prepare(2 * mebibyte); });
    co_await children.join();
  });
  CHECK(places > 10);
  // All slots came back, wherever the event loops were destroyed.
  run([&](world&) -> task<> {
    const auto one = co_await shared_by_all.acquire(1);
    const auto two = co_await shared_by_all.acquire(1);
    CHECK(two != nullptr);
  });
  CHECK(shared_by_all.peak_bytes() <= 2 * 2 * mebibyte);
}

TEST_CASE("the copier fills the memory while the event loop goes on", "[writing][staging]") {
  staging memory({.capacity = 1});
  run([&](world&) -> task<> {
    const auto mine = co_await memory.acquire(2 * mebibyte);
    const auto content = pattern(2 * mebibyte, 1);
    auto copy = [&] { std::copy(content.begin(), content.end(), mine->memory().begin()); };
    co_await memory.copier().run(copy);
    CHECK(std::equal(content.begin(), content.end(), mine->memory().begin()));
  });
}

}  // namespace writing_staging_test

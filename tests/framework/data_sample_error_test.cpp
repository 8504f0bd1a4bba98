#include "rondo/data/sample_error.hpp"

#include <ATen/Functions.h>
#include <c10/util/Exception.h>

#include <asio/error.hpp>
#include <asio/system_error.hpp>
#include <cstdint>
#include <exception>
#include <list>
#include <memory>
#include <range/v3/view/iota.hpp>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "rondo/data/batch.hpp"
#include "rondo/data/pass.hpp"
#include "rondo/data/shuffle.hpp"
#include "rondo/data/transform.hpp"
#include "rondo/error.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"
#include "support/pipelines.hpp"

namespace data_sample_error_test {

using namespace rondo;
using rondo::testing::contains;
using rondo::testing::message_of;
using rondo::testing::number_set;
using rondo::testing::number_stream;
using rondo::testing::seekable_stream;

namespace {

/// What making element `index` of epoch `epoch` throws, as `handle` sees it.
template <class View, class Handle>
void fail_at(View view, std::int64_t epoch, std::int64_t index, Handle handle) {
  data::pass pass(std::move(view));
  pass.begin(epoch, index);
  try {
    static_cast<void>(pass.take());
    FAIL("nothing was thrown");
  } catch (const data::sample_error& e) {
    handle(e);
  }
}

template <class E>
auto throwing(E e) {
  return data::transform([e](std::int64_t n) -> std::int64_t {
    if (n % 10 == 3) throw e;
    return n;
  });
}

}  // namespace

TEST_CASE("what a transform function throws names the element and carries the cause", "[data][sample_error]") {
  const auto check = [](auto view) {
    fail_at(view, 2, 3, [](const data::sample_error& e) {
      REQUIRE(e.epoch() == 2);
      REQUIRE(e.index() == 3);
      REQUIRE(e.what() == std::string("making element 3 of epoch 2 failed: no such picture"));
      REQUIRE_THROWS_AS(std::rethrow_exception(e.cause()), std::out_of_range);
      REQUIRE_THROWS_AS(std::rethrow_if_nested(e), std::out_of_range);
    });
  };
  const std::out_of_range reason("no such picture");
  SECTION("random access") { check(number_set(8) | throwing(reason)); }
  SECTION("a stream") { check(number_stream(8) | throwing(reason)); }
  SECTION("a seekable stream") { check(seekable_stream(8) | throwing(reason)); }
  SECTION("and so does one with random numbers") {
    check(number_set(8) | data::transform(
                              [&](std::int64_t n, data::random_sequence&) -> std::int64_t {
                                if (n % 10 == 3) throw reason;
                                return n;
                              },
                              5));
  }
}

TEST_CASE("the place is that at the stage whose function threw", "[data][sample_error]") {
  const auto expected = [](const data::sample_error& e) {
    REQUIRE(e.index() == 3);
    REQUIRE_THROWS_AS(std::rethrow_exception(e.cause()), std::runtime_error);
  };
  const auto pass_on = data::transform([](std::vector<std::int64_t> n) { return n; });
  fail_at(number_set(8) | throwing(std::runtime_error("x")) | data::batch(2) | pass_on, 0, 1, expected);
  fail_at(number_stream(8) | throwing(std::runtime_error("x")) | data::batch(2) | pass_on, 0, 1, expected);
  fail_at(number_stream(8) | throwing(std::runtime_error("x")) | data::shuffle(1), 0, 1, expected);
}

TEST_CASE("causes of all kinds are told", "[data][sample_error]") {
  const auto what = [](auto e) {
    std::string text;
    fail_at(number_set(8) | throwing(e), 0, 3, [&](const data::sample_error& error) { text = error.what(); });
    return text;
  };
  REQUIRE(contains(what(option_error("size", "3", "4")), "size"));
  REQUIRE(contains(what(5), "something was thrown that is no std::exception"));
  REQUIRE(contains(what(std::system_error(std::make_error_code(std::errc::timed_out))), "timed out"));
}

TEST_CASE("an error of LibTorch is told without its stack", "[data][sample_error]") {
  const auto view =
      number_set(8) | data::transform([](std::int64_t n) { return at::ones({n + 2}) + at::ones({n + 3}); });
  fail_at(view, 0, 0, [](const data::sample_error& e) {
    REQUIRE(contains(e.what(), "must match the size of tensor b (3)"));
    REQUIRE_FALSE(contains(e.what(), "frame #"));
    REQUIRE_THROWS_AS(std::rethrow_exception(e.cause()), c10::Error);
  });
}

TEST_CASE("a cancelled operation is no failed element", "[data][sample_error]") {
  data::pass pass(number_set(8) | throwing(asio::system_error(asio::error::operation_aborted)));
  pass.begin(0, 3);
  try {
    static_cast<void>(pass.take());
    FAIL("nothing was thrown");
  } catch (const data::sample_error&) {
    FAIL("wrapped");
  } catch (const asio::system_error& e) {
    REQUIRE(e.code() == asio::error::operation_aborted);
  }
}

TEST_CASE("what a data set throws by itself passes unchanged", "[data][sample_error]") {
  struct broken : ranges::view_facade<broken, ranges::finite> {
    struct cursor {
      std::int64_t at = 0;
      [[nodiscard]] std::int64_t read() const { throw std::logic_error("nothing here"); }
      [[nodiscard]] bool equal(const cursor& other) const { return at == other.at; }
      void next() { ++at; }
      void prev() { --at; }
      void advance(std::ptrdiff_t n) { at += n; }
      [[nodiscard]] std::ptrdiff_t distance_to(const cursor& other) const { return other.at - at; }
    };
    [[nodiscard]] std::int64_t size() const { return 3; }
    [[nodiscard]] cursor begin_cursor() const { return {0}; }
    [[nodiscard]] cursor end_cursor() const { return {3}; }
  };
  const auto view = broken() | data::transform([](std::int64_t n) { return n; }) | data::batch(2);
  REQUIRE_THROWS_AS(*view.begin(), std::logic_error);
}

TEST_CASE("an error is rondo's and keeps its cause when it is copied and has left its handler",
          "[data][sample_error]") {
  std::exception_ptr kept;
  try {
    const auto view = number_set(8) | throwing(std::runtime_error("x"));
    static_cast<void>(*(view.begin() + 3));
  } catch (const error& e) {
    kept = std::make_exception_ptr(dynamic_cast<const data::sample_error&>(e));
  }
  REQUIRE(kept);
  try {
    std::rethrow_exception(kept);
  } catch (const data::sample_error& e) {
    REQUIRE_THROWS_AS(std::rethrow_exception(e.cause()), std::runtime_error);
  }
}

TEST_CASE("a stream that threw has no current element", "[data][sample_error]") {
  auto view = number_stream(8) | throwing(std::runtime_error("x"));
  auto it = view.begin();
  ++it;
  ++it;
  REQUIRE_THROWS_AS(++it, data::sample_error);
  REQUIRE(it == view.end());
}

}  // namespace data_sample_error_test

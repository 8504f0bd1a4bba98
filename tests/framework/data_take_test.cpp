#include "rondo/data/take.hpp"

#include <list>
#include <range/v3/range/concepts.hpp>
#include <range/v3/view/iota.hpp>
#include <range/v3/view/istream.hpp>
#include <sstream>
#include <type_traits>
#include <vector>

#include "rondo/data/shuffle.hpp"
#include "rondo/data/transform.hpp"
#include "rondo/error.hpp"
#include "support/catch.hpp"

namespace data_take_test {

using namespace rondo;

namespace {

template <class Range>
std::vector<int> read(Range&& range) {
  std::vector<int> elements;
  for (auto&& e : range) elements.push_back(e);
  return elements;
}

}  // namespace

TEST_CASE("take gives the first elements, or all", "[data][take]") {
  const std::vector<int> numbers{1, 2, 3, 4};
  const std::list<int> list(numbers.begin(), numbers.end());
  REQUIRE(read(numbers | data::take(3)) == std::vector{1, 2, 3});
  REQUIRE(read(numbers | data::take(9)) == numbers);
  REQUIRE(read(numbers | data::take(0)).empty());
  REQUIRE(read(list | data::take(3)) == std::vector{1, 2, 3});
  REQUIRE(read(list | data::take(9)) == numbers);
  REQUIRE(read(list | data::take(0)).empty());
  REQUIRE((numbers | data::take(3)).size() == 3);
  REQUIRE((numbers | data::take(9)).size() == 4);
  REQUIRE((list | data::take(9)).size() == 4);
  static_assert(ranges::random_access_range<const decltype(numbers | data::take(3))>);
}

TEST_CASE("limit is another name of take", "[data][take]") {
  const std::vector<int> numbers{1, 2, 3, 4};
  REQUIRE(read(numbers | data::limit(3)) == std::vector{1, 2, 3});
  static_assert(std::is_same_v<decltype(numbers | data::limit(3)), decltype(numbers | data::take(3))>);
  REQUIRE_THROWS_AS(data::limit(-1), option_error);
}

TEST_CASE("take ends an endless range", "[data][take]") {
  REQUIRE(read(ranges::views::iota(5) | data::take(3)) == std::vector{5, 6, 7});
}

TEST_CASE("take reads no further than it must", "[data][take]") {
  std::istringstream in("1 2 3 4");
  REQUIRE(read(ranges::istream_view<int>(in) | data::take(2)) == std::vector{1, 2});
  int next = 0;
  in >> next;
  REQUIRE(next == 3);
  REQUIRE(read(ranges::views::iota(4) | data::transform([&](int n) {
                 ++next;
                 return n;
               }) |
               data::take(0))
              .empty());
  REQUIRE(next == 3);
}

TEST_CASE("take passes the epoch down", "[data][take]") {
  std::vector<int> numbers(100);
  for (int i = 0; i < 100; ++i) numbers[static_cast<std::size_t>(i)] = i;
  auto view = numbers | data::shuffle(3) | data::take(10);
  const auto first = read(view);
  data::set_epoch(view, 1);
  REQUIRE(read(view) != first);
  auto streamed = std::list<int>(numbers.begin(), numbers.end()) | data::shuffle(3) | data::take(10);
  REQUIRE(read(streamed) == first);
  data::set_epoch(streamed, 1);
  REQUIRE(read(streamed) == read(view));
}

TEST_CASE("a negative number to take is refused", "[data][take]") { REQUIRE_THROWS_AS(data::take(-1), option_error); }

}  // namespace data_take_test

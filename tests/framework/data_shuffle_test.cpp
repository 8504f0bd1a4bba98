#include "rondo/data/shuffle.hpp"

#include <algorithm>
#include <cstdint>
#include <list>
#include <map>
#include <numeric>
#include <range/v3/range/concepts.hpp>
#include <range/v3/view/filter.hpp>
#include <range/v3/view/iota.hpp>
#include <range/v3/view/istream.hpp>
#include <set>
#include <sstream>
#include <vector>

#include "rondo/error.hpp"
#include "support/catch.hpp"

namespace data_shuffle_test {

using namespace rondo;

namespace {

using positions = std::vector<std::int64_t>;

template <class Range>
std::vector<int> read(Range&& range) {
  std::vector<int> elements;
  for (auto&& e : range) elements.push_back(e);
  return elements;
}

std::vector<int> counting(int n) {
  std::vector<int> elements(static_cast<std::size_t>(n));
  std::iota(elements.begin(), elements.end(), 0);
  return elements;
}

template <class T>
std::vector<T> sorted(std::vector<T> elements) {
  std::sort(elements.begin(), elements.end());
  return elements;
}

}  // namespace

TEST_CASE("the shuffled order is the documented one", "[data][shuffle]") {
  // Computed with a Python program written from the documentation.
  REQUIRE(data::shuffled_positions(10, 0, 0) == positions{0, 9, 4, 2, 1, 6, 8, 7, 5, 3});
  REQUIRE(data::shuffled_positions(10, 42, 0) == positions{9, 4, 3, 6, 1, 0, 5, 8, 2, 7});
  REQUIRE(data::shuffled_positions(10, 42, 1) == positions{6, 2, 1, 3, 7, 0, 8, 5, 4, 9});
  std::uint64_t digest = 0;
  for (const auto position : data::shuffled_positions(60000, 1, 2))
    digest = data::mix_bits(digest ^ static_cast<std::uint64_t>(position));
  REQUIRE(digest == 0x6431734652efb7cU);
}

TEST_CASE("the order is a permutation for every size", "[data][shuffle]") {
  for (const std::int64_t size : {0, 1, 2, 3, 17, 1000}) {
    positions expected(static_cast<std::size_t>(size));
    std::iota(expected.begin(), expected.end(), 0);
    REQUIRE(sorted(data::shuffled_positions(size, 7, 3)) == expected);
  }
}

TEST_CASE("all permutations of four elements are about as frequent", "[data][shuffle]") {
  std::map<positions, int> counts;
  for (std::int64_t epoch = 0; epoch < 24000; ++epoch) ++counts[data::shuffled_positions(4, 11, epoch)];
  REQUIRE(counts.size() == 24);
  double chi2 = 0;
  for (const auto& [order, count] : counts) chi2 += (count - 1000.0) * (count - 1000.0) / 1000.0;
  REQUIRE(chi2 < 49.7);  // 23 degrees of freedom, p = 0.001; the seed is fixed
}

TEST_CASE("the order depends on seed and epoch, and on nothing else", "[data][shuffle]") {
  const auto numbers = counting(100);
  auto view = numbers | data::shuffle(5);
  const auto first = read(view);
  REQUIRE(read(view) == first);
  REQUIRE(read(numbers | data::shuffle(5)) == first);
  REQUIRE(read(numbers | data::shuffle(6)) != first);
  data::set_epoch(view, 1);
  const auto second = read(view);
  REQUIRE(second != first);
  REQUIRE(sorted(second) == numbers);
  data::set_epoch(view, 7);
  data::set_epoch(view, 0);
  REQUIRE(read(view) == first);
  SECTION("a fresh view goes to an epoch directly") {
    auto fresh = numbers | data::shuffle(5);
    data::set_epoch(fresh, 1);
    REQUIRE(read(fresh) == second);
  }
  SECTION("a copy goes its own way") {
    auto copy = view;
    data::set_epoch(copy, 1);
    REQUIRE(read(copy) == second);
    REQUIRE(read(view) == first);
  }
  SECTION("100 epochs have 100 orders") {
    std::set<std::vector<int>> orders;
    for (std::int64_t epoch = 0; epoch < 100; ++epoch) {
      data::set_epoch(view, epoch);
      orders.insert(read(view));
    }
    REQUIRE(orders.size() == 100);
  }
}

TEST_CASE("a shuffled random access range is one, and any position is reached at once", "[data][shuffle]") {
  auto numbers = counting(50);
  auto view = numbers | data::shuffle(1);
  static_assert(ranges::random_access_range<const decltype(view)>);
  static_assert(ranges::view_<decltype(view)>);
  REQUIRE(view.size() == 50);
  const auto all = read(view);
  for (int k = 0; k < 50; ++k) REQUIRE(*(view.begin() + k) == all.at(static_cast<std::size_t>(k)));
  SECTION("elements of a container can be written through") {
    *view.begin() = 1000;
    REQUIRE(numbers.at(static_cast<std::size_t>(all.front())) == 1000);
  }
}

TEST_CASE("any other input range is read when iterating begins, in the same order", "[data][shuffle]") {
  const auto expected = read(counting(20) | data::shuffle(9));
  SECTION("a list, each epoch anew") {
    const auto numbers = counting(20);
    const std::list<int> list(numbers.begin(), numbers.end());
    auto view = list | data::shuffle(9);
    REQUIRE(view.size() == 20);
    REQUIRE(read(view) == expected);
    data::set_epoch(view, 1);
    REQUIRE(read(view) != expected);
    data::set_epoch(view, 0);
    REQUIRE(read(view) == expected);
  }
  SECTION("a stream, once") {
    std::stringstream in;
    for (const int n : counting(20)) in << n << ' ';
    REQUIRE(read(ranges::istream_view<int>(in) | data::shuffle(9)) == expected);
  }
  SECTION("a filter, of unknown size") {
    auto even = ranges::views::iota(0, 40) | ranges::views::filter([](int n) { return n % 2 == 0; });
    std::vector<int> doubled;
    for (const int n : expected) doubled.push_back(2 * n);
    REQUIRE(read(even | data::shuffle(9)) == doubled);
  }
  SECTION("nothing at all") { REQUIRE(read(std::list<int>() | data::shuffle(9)).empty()); }
}

TEST_CASE("a range that changes its size within an epoch is refused, and shuffled anew in the next",
          "[data][shuffle]") {
  auto numbers = counting(5);
  auto view = numbers | data::shuffle(1);
  numbers.push_back(5);
  REQUIRE_THROWS_AS(*view.begin(), error);
  data::set_epoch(view, 0);
  REQUIRE(sorted(read(view)) == numbers);
}

}  // namespace data_shuffle_test

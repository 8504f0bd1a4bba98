#include "rondo/data/transform.hpp"

#include <list>
#include <memory>
#include <range/v3/range/concepts.hpp>
#include <range/v3/view/iota.hpp>
#include <string>
#include <vector>

#include "rondo/data/random.hpp"
#include "rondo/data/shuffle.hpp"
#include "rondo/data/take.hpp"
#include "support/catch.hpp"

using namespace rondo;

namespace {

template <class Range>
auto read(Range&& range) {
  std::vector<std::remove_cvref_t<decltype(*range.begin())>> elements;
  for (auto&& e : range) elements.push_back(e);
  return elements;
}

}  // namespace

TEST_CASE("transform applies a function to every element", "[data][transform]") {
  const std::vector<int> numbers{1, 2, 3};
  const std::vector<std::string> expected{"1!", "2!", "3!"};
  const auto mark = [end = std::string("!")](int n) { return std::to_string(n) + end; };
  REQUIRE(read(numbers | data::transform(mark)) == expected);
  REQUIRE(read(std::list<int>{1, 2, 3} | data::transform(mark)) == expected);
  REQUIRE(read(std::vector<std::string>{"a", "bcd"} | data::transform(&std::string::size)) ==
          std::vector<std::size_t>{1, 3});
}

TEST_CASE("transform keeps size and random access", "[data][transform]") {
  const std::vector<int> numbers{1, 2, 3};
  int calls = 0;
  auto view = numbers | data::transform([&calls](int n) {
                ++calls;
                return n * n;
              });
  static_assert(ranges::random_access_range<const decltype(view)>);
  static_assert(ranges::view_<decltype(view)>);
  REQUIRE(view.size() == 3);
  REQUIRE(*(view.begin() + 2) == 9);
  REQUIRE(calls == 1);
  REQUIRE((std::list<int>{1, 2} | data::transform([](int n) { return n; })).size() == 2);
}

TEST_CASE("transform tells the function the place of the element", "[data][transform]") {
  const auto show = [](char c, data::place at) {
    return std::string(1, c) + std::to_string(at.epoch) + std::to_string(at.index);
  };
  SECTION("of a random access range") {
    auto view = std::string("xy") | data::transform(show);
    REQUIRE(read(view) == std::vector<std::string>{"x00", "y01"});
    data::set_epoch(view, 4);
    REQUIRE(*(view.begin() + 1) == "y41");
  }
  SECTION("of a stream, counted from the beginning of each pass") {
    auto view = std::list<char>{'x', 'y'} | data::transform(show);
    REQUIRE(read(view) == std::vector<std::string>{"x00", "y01"});
    data::set_epoch(view, 4);
    REQUIRE(read(view) == std::vector<std::string>{"x40", "y41"});
  }
}

TEST_CASE("a random augmentation by place is the same after starting in the middle", "[data][transform]") {
  const auto pipeline = [] {
    auto view = ranges::views::iota(0, 20) | data::shuffle(1) | data::transform([](int n, data::place at) {
                  data::random_sequence random(data::sample_seed(1, at.epoch, at.index));
                  return n + random.uniform();
                });
    data::set_epoch(view, 3);
    return view;
  };
  const auto whole = read(pipeline());
  auto resumed = pipeline();
  std::size_t k = 13;
  for (auto it = resumed.begin() + 13; it != resumed.end(); ++it) REQUIRE(*it == whole.at(k++));
  REQUIRE(k == 20);
}

TEST_CASE("transform passes the epoch down", "[data][transform]") {
  const auto same = [](int n) { return n; };
  auto view = ranges::views::iota(0, 50) | data::shuffle(1) | data::transform(same);
  auto streamed = std::list<int>{1, 2, 3, 4, 5, 6, 7, 8, 9} | data::shuffle(1) | data::transform(same);
  const auto first = read(view);
  const auto first_streamed = read(streamed);
  data::set_epoch(view, 1);
  data::set_epoch(streamed, 1);
  REQUIRE(read(view) != first);
  REQUIRE(read(streamed) != first_streamed);
}

TEST_CASE("elements that can only be moved flow through a stream", "[data][transform]") {
  auto view = std::list<int>{1, 2, 3} | data::transform([](int n) { return std::make_unique<int>(n); }) |
              data::take(2) | data::transform([](const std::unique_ptr<int>& p) { return *p; });
  REQUIRE(read(view) == std::vector{1, 2});
}

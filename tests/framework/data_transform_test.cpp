#include "rondo/data/transform.hpp"

#include <ATen/Functions.h>

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

namespace data_transform_test {

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

TEST_CASE("transform with a seed gives each element random numbers of its own", "[data][transform]") {
  const auto draw = [](int n, data::random_sequence& random) { return std::pair(n, random()); };
  const auto expected = [](int n, std::uint64_t seed, std::int64_t epoch, std::int64_t index) {
    return std::pair(n, data::random_sequence(data::sample_seed(seed, epoch, index))());
  };
  SECTION("the documented ones, of a random access range and of a stream") {
    auto view = std::vector{7, 8, 9} | data::transform(draw, 5);
    auto stream = std::list{7, 8, 9} | data::transform(draw, 5);
    for (const std::int64_t epoch : {0, 3}) {
      data::set_epoch(view, epoch);
      data::set_epoch(stream, epoch);
      const auto elements = read(view);
      REQUIRE(elements == std::vector{expected(7, 5, epoch, 0), expected(8, 5, epoch, 1), expected(9, 5, epoch, 2)});
      REQUIRE(read(stream) == elements);
    }
  }
  SECTION("whatever was made before, and how often") {
    auto view = ranges::views::iota(0, 20) | data::shuffle(1) | data::transform(draw, 2);
    const auto all = read(view);
    for (std::size_t i = 20; i-- > 0;) REQUIRE(*(view.begin() + static_cast<std::ptrdiff_t>(i)) == all.at(i));
  }
  SECTION("others for another seed") {
    REQUIRE(read(std::vector{7} | data::transform(draw, 1)) != read(std::vector{7} | data::transform(draw, 2)));
  }
  SECTION("as many as it needs") {
    const auto sum = [](int n, data::random_sequence& random) {
      double total = 0;
      for (int i = 0; i < n; ++i) total += random.uniform();
      return total;
    };
    data::random_sequence numbers(data::sample_seed(4, 0, 1));
    const double expected_sum = numbers.uniform() + numbers.uniform();
    REQUIRE(*((std::vector{9, 2} | data::transform(sum, 4)).begin() + 1) == expected_sum);
  }
}

TEST_CASE("LibTorch's random functions take their numbers from the element's", "[data][transform]") {
  const auto noise = data::transform(
      [](int n, data::random_sequence& random) {
        auto generator = data::torch_generator(random);
        return at::rand({n}, generator);
      },
      6);
  auto view = std::vector{4, 4, 4} | noise;
  const auto elements = read(view);
  at::manual_seed(1);
  const auto untouched = at::rand({2});
  at::manual_seed(1);
  for (std::ptrdiff_t i = 2; i >= 0; --i)
    REQUIRE((*(view.begin() + i)).equal(elements.at(static_cast<std::size_t>(i))));
  REQUIRE(at::rand({2}).equal(untouched));
  REQUIRE_FALSE(elements.at(0).equal(elements.at(1)));
  data::random_sequence random(data::sample_seed(6, 0, 2));
  auto generator = data::torch_generator(random);
  REQUIRE(at::rand({4}, generator).equal(elements.at(2)));
  SECTION("and two generators of one element differ") {
    auto second = data::torch_generator(random);
    REQUIRE_FALSE(at::rand({4}, second).equal(elements.at(2)));
  }
}

}  // namespace data_transform_test

#include "rondo/data/weighted.hpp"

#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "rondo/data/batch.hpp"
#include "rondo/data/pass.hpp"
#include "rondo/data/random.hpp"
#include "rondo/data/tensor_dataset.hpp"
#include "rondo/error.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"

namespace data_weighted_test {

using namespace rondo;
using namespace rondo::testing;

namespace {

using positions = std::vector<std::int64_t>;
using weights = std::vector<double>;

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

std::string refusal(const weights& given, data::weighted_options options = {}) {
  return message_of<option_error>([&] { static_cast<void>(data::weighted(given, 1, options)); });
}

}  // namespace

TEST_CASE("the drawn positions are the documented ones", "[data][weighted]") {
  // Computed with a Python program written from the documentation.
  const weights some = {1, 0, 2.5, 0.1, 4};
  REQUIRE(data::drawn_positions(some, 12, true, 0, 0) == positions{0, 4, 4, 4, 2, 0, 0, 4, 2, 2, 2, 0});
  REQUIRE(data::drawn_positions(some, 12, true, 42, 3) == positions{2, 4, 2, 2, 4, 4, 4, 4, 2, 4, 2, 4});
  REQUIRE(data::drawn_positions(some, 4, false, 42, 3) == positions{2, 4, 0, 3});
  weights many;
  for (int i = 0; i < 1000; ++i) many.push_back(i % 7 == 0 ? 0.0 : 1.0 / (1 + i % 13));
  const auto digest = [&](bool replacement) {
    std::uint64_t digest = 0;
    for (const auto position : data::drawn_positions(many, 800, replacement, 1, 2))
      digest = data::mix_bits(digest ^ static_cast<std::uint64_t>(position));
    return digest;
  };
  REQUIRE(digest(true) == 0xbb5cf38d42267e80U);
  REQUIRE(digest(false) == 0x5a5200bed0704ebcU);
}

TEST_CASE("elements are drawn as often as their weights say", "[data][weighted]") {
  const weights some = {1, 0, 2, 3, 0.5, 0, 3.5};  // the sum is 10
  std::map<std::int64_t, int> counts;
  for (const auto position : data::drawn_positions(some, 100000, true, 5, 0)) ++counts[position];
  REQUIRE(counts.size() == 5);
  double chi2 = 0;
  for (const auto& [position, count] : counts) {
    const double expected = 10000 * some.at(static_cast<std::size_t>(position));
    chi2 += (count - expected) * (count - expected) / expected;
  }
  REQUIRE(chi2 < 18.5);  // 4 degrees of freedom, p = 0.001; the seed is fixed
}

TEST_CASE("without replacement, each draw is by weight among those that are left", "[data][weighted]") {
  const weights some = {1, 2, 3, 0, 4};
  constexpr int epochs = 40000;
  std::map<positions, int> counts;
  for (std::int64_t epoch = 0; epoch < epochs; ++epoch) ++counts[data::drawn_positions(some, 2, false, 3, epoch)];
  REQUIRE(counts.size() == 12);
  double chi2 = 0;
  for (const auto& [drawn, count] : counts) {
    const double first = some.at(static_cast<std::size_t>(drawn.at(0)));
    const double second = some.at(static_cast<std::size_t>(drawn.at(1)));
    const double expected = epochs * first / 10 * second / (10 - first);
    chi2 += (count - expected) * (count - expected) / expected;
  }
  REQUIRE(chi2 < 31.3);  // 11 degrees of freedom, p = 0.001; the seed is fixed
}

TEST_CASE("weights of any size and number are drawn from, those of 0 never", "[data][weighted]") {
  for (const double scale : {1.0, 5e-324, 1e-300, 1e300}) {
    for (std::size_t size = 1; size < 40; ++size) {
      weights some(size, scale);
      for (std::size_t i = 0; i < size; i += 3) some[i] = 0;
      some.back() = scale;
      const auto positive = std::count(some.begin(), some.end(), scale);
      CAPTURE(scale, size);
      const auto drawn = data::drawn_positions(some, positive, false, 1, 0);
      REQUIRE(std::set<std::int64_t>(drawn.begin(), drawn.end()).size() == static_cast<std::size_t>(positive));
      for (const auto position : drawn) REQUIRE(some.at(static_cast<std::size_t>(position)) == scale);
      for (const auto position : data::drawn_positions(some, 50, true, 1, 0))
        REQUIRE(some.at(static_cast<std::size_t>(position)) == scale);
    }
  }
}

TEST_CASE("a weighted range has as many elements as are asked for, others in each epoch", "[data][weighted]") {
  const auto numbers = counting(50);
  weights some(50, 1.0);
  some[7] = 100;
  auto view = numbers | data::weighted(some, 3);
  static_assert(ranges::random_access_range<const decltype(view)>);
  static_assert(ranges::view_<decltype(view)>);
  REQUIRE(view.size() == 50);
  const auto first = read(view);
  REQUIRE(read(view) == first);
  REQUIRE(std::count(first.begin(), first.end(), 7) > 20);
  REQUIRE(read(numbers | data::weighted(some, 4)) != first);
  for (int k = 0; k < 50; ++k) REQUIRE(*(view.begin() + k) == first.at(static_cast<std::size_t>(k)));
  data::set_epoch(view, 1);
  REQUIRE(read(view) != first);
  data::set_epoch(view, 0);
  REQUIRE(read(view) == first);
  SECTION("more than there are") { REQUIRE((numbers | data::weighted(some, 3, {.samples = 200})).size() == 200); }
  SECTION("fewer, each once") {
    const auto few = read(numbers | data::weighted(some, 3, {.samples = 20, .replacement = false}));
    REQUIRE(std::set<int>(few.begin(), few.end()).size() == 20);
  }
  SECTION("all in an order by weight") {
    auto all = read(numbers | data::weighted(some, 3, {.replacement = false}));
    REQUIRE(all != numbers);
    std::sort(all.begin(), all.end());
    REQUIRE(all == numbers);
  }
}

TEST_CASE("a weighted data set makes its batches at once", "[data][weighted]") {
  const data::tensor_dataset set(at::arange(10, at::kFloat), at::arange(10, at::kLong));
  weights some(10, 0.0);
  some[2] = some[5] = 1;
  auto batches = set | data::weighted(some, 1, {.samples = 8}) | data::batch(8);
  const auto batch = *batches.begin();
  REQUIRE(batch.target.numel() == 8);
  REQUIRE(batch.target.eq(2).logical_or(batch.target.eq(5)).all().item<bool>());
  auto singles = set | data::weighted(some, 1, {.samples = 8});
  for (std::int64_t i = 0; i < 8; ++i) REQUIRE((*(singles.begin() + i)).target.equal(batch.target[i]));
}

TEST_CASE("bad weights are refused with their position", "[data][weighted]") {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  constexpr double infinity = std::numeric_limits<double>::infinity();
  REQUIRE(contains(refusal({1, -0.5, 1}), "'weights[1]' = -0.5"));
  REQUIRE(contains(refusal({1, 1, nan}), "'weights[2]' = nan"));
  REQUIRE(contains(refusal({infinity}), "'weights[0]' = inf"));
  REQUIRE(contains(refusal({0, 0}), "all 0"));
  REQUIRE(contains(refusal({}), "none"));
  REQUIRE(contains(refusal({1e308, 1e308}), "finite sum"));
  REQUIRE(contains(refusal({1, 1}, {.samples = 0}), "'samples' = 0"));
  REQUIRE(contains(refusal({1, 0, 1}, {.samples = 3, .replacement = false}), "at most 2 without replacement"));
  REQUIRE(contains(refusal({1, 0, 1}, {.replacement = false}), "'samples' = 3"));
}

TEST_CASE("there is one weight for each element", "[data][weighted]") {
  auto numbers = counting(5);
  const auto message = message_of<option_error>([&] { static_cast<void>(numbers | data::weighted({1, 2, 3}, 1)); });
  REQUIRE(contains(message, "3 weights: allowed is 5"));
  auto view = numbers | data::weighted({1, 1, 1, 1, 1}, 1);
  numbers.push_back(5);
  REQUIRE_THROWS_AS(*view.begin(), error);
}

TEST_CASE("the state of a weighted range is its seed", "[data][weighted]") {
  const auto numbers = counting(30);
  const weights some(30, 1.0);
  auto saved = numbers | data::weighted(some, 8) | data::batch(4);
  auto other = numbers | data::weighted(some, 9) | data::batch(4);
  const auto all = [](auto& view) {
    std::vector<std::vector<int>> batches;
    for (auto&& batch : view) batches.push_back(batch);
    return batches;
  };
  REQUIRE(all(saved) != all(other));
  const captured_stderr messages;
  data::load_state_dict(other, data::state_dict(saved));
  REQUIRE(contains(messages.text(), "seed is 9 here and 8"));
  REQUIRE(all(saved) == all(other));
  SECTION("other weights are noticed") {
    weights changed = some;
    changed[4] = 2;
    auto third = numbers | data::weighted(changed, 8) | data::batch(4);
    REQUIRE_FALSE(contains(messages.text(), "weights_digest"));
    data::load_state_dict(third, data::state_dict(saved));
    REQUIRE(contains(messages.text(), "weights_digest"));
  }
  SECTION("a pass is taken up in the middle of an epoch") {
    data::pass first(saved);
    first.begin(3, 2);
    data::pass second(numbers | data::weighted(some, 8) | data::batch(4));
    second.load_state_dict(first.state_dict());
    for (; !first.exhausted(); first.advance(), second.advance()) REQUIRE(first.take() == second.take());
    REQUIRE(second.exhausted());
  }
}

}  // namespace data_weighted_test

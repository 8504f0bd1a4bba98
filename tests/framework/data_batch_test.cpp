#include "rondo/data/batch.hpp"

#include <ATen/Functions.h>

#include <cstdint>
#include <list>
#include <range/v3/range/concepts.hpp>
#include <range/v3/range/conversion.hpp>
#include <range/v3/view/iota.hpp>
#include <range/v3/view/istream.hpp>
#include <range/v3/view/take.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "rondo/data/shuffle.hpp"
#include "rondo/data/take.hpp"
#include "rondo/data/tensor_dataset.hpp"
#include "rondo/data/transform.hpp"
#include "rondo/error.hpp"
#include "support/catch.hpp"

namespace data_batch_test {

using namespace rondo;

namespace {

using lists = std::vector<std::vector<int>>;

template <class Range>
lists read(Range&& range) {
  lists batches;
  for (auto&& b : range) batches.push_back(b);
  return batches;
}

data::tensor_dataset numbers(std::int64_t count) {
  return {at::arange(count * 6, at::kFloat).reshape({count, 1, 2, 3}),
          at::arange(count, at::TensorOptions().dtype(at::kLong))};
}

bool same(const data::example& a, const data::example& b) { return a.data.equal(b.data) && a.target.equal(b.target); }

}  // namespace

TEST_CASE("batch groups any elements into vectors", "[data][batch]") {
  const std::vector<int> seven{1, 2, 3, 4, 5, 6, 7};
  const std::list<int> list(seven.begin(), seven.end());
  const lists expected{{1, 2, 3}, {4, 5, 6}, {7}};
  const lists full{{1, 2, 3}, {4, 5, 6}};
  SECTION("random access") {
    auto view = seven | data::batch(3);
    static_assert(ranges::random_access_range<const decltype(view)>);
    static_assert(ranges::view_<decltype(view)>);
    REQUIRE(read(view) == expected);
    REQUIRE(view.size() == 3);
    REQUIRE(read(seven | data::batch(3, {.drop_last = true})) == full);
  }
  SECTION("multi-pass, each pass anew") {
    auto view = list | data::batch(3);
    REQUIRE(read(view) == expected);
    REQUIRE(read(view) == expected);
    REQUIRE(view.size() == 3);
    REQUIRE(read(list | data::batch(3, {.drop_last = true})) == full);
  }
  SECTION("single-pass") {
    std::istringstream in("1 2 3 4 5 6 7");
    REQUIRE(read(ranges::istream_view<int>(in) | data::batch(3)) == expected);
    std::istringstream again("1 2 3 4 5 6 7");
    REQUIRE(read(ranges::istream_view<int>(again) | data::batch(3, {.drop_last = true})) == full);
  }
  SECTION("endless") { REQUIRE(read(ranges::views::iota(1) | data::batch(3) | ranges::views::take(2)) == full); }
  SECTION("a temporary container is kept") { REQUIRE(read(std::vector(seven) | data::batch(3)) == expected); }
}

TEST_CASE("batch counts and sizes fit together for every number of elements", "[data][batch]") {
  for (int elements = 0; elements <= 13; ++elements) {
    const std::vector<int> base(static_cast<std::size_t>(elements), 1);
    const std::list<int> list(base.begin(), base.end());
    for (int per_batch = 1; per_batch <= 14; ++per_batch) {
      for (const bool drop_last : {false, true}) {
        CAPTURE(elements, per_batch, drop_last);
        const auto view = base | data::batch(per_batch, {.drop_last = drop_last});
        const auto batches = read(view);
        REQUIRE(batches == read(list | data::batch(per_batch, {.drop_last = drop_last})));
        REQUIRE(view.size() == static_cast<std::int64_t>(batches.size()));
        std::size_t total = 0;
        for (const auto& b : batches) {
          REQUIRE_FALSE(b.empty());
          total += b.size();
        }
        const int expected = drop_last ? elements / per_batch * per_batch : elements;
        REQUIRE(total == static_cast<std::size_t>(expected));
      }
    }
  }
}

TEST_CASE("batch reads no further than it must", "[data][batch]") {
  std::istringstream in("1 2 3 4 5");
  auto view = ranges::istream_view<int>(in) | data::batch(2);
  REQUIRE(*view.begin() == std::vector{1, 2});
  int next = 0;
  in >> next;
  REQUIRE(next == 3);
}

TEST_CASE("a size of no use is refused by name", "[data][batch]") {
  for (const int size : {0, -1}) {
    try {
      static_cast<void>(data::batch(size));
      FAIL("accepted " << size);
    } catch (const option_error& e) {
      REQUIRE(e.option() == "batch_size");
      REQUIRE(e.found() == std::to_string(size));
    }
  }
}

TEST_CASE("examples are stacked", "[data][batch]") {
  const auto set = numbers(5);
  auto batches = set | data::batch(2);
  REQUIRE(batches.size() == 3);
  const auto first = *batches.begin();
  REQUIRE(first.data.sizes() == at::IntArrayRef({2, 1, 2, 3}));
  REQUIRE(first.target.equal(at::tensor({0, 1}, at::kLong)));
  const auto last = batches.begin()[2];
  REQUIRE(last.data.sizes() == at::IntArrayRef({1, 1, 2, 3}));
  REQUIRE(last.target.equal(at::tensor({4}, at::kLong)));
}

TEST_CASE("gathering and stacking make the same batches", "[data][batch]") {
  const auto set = numbers(23);
  const auto one_by_one = data::transform([](data::example e) { return e; });
  const auto check = [](auto gathered, auto stacked) {
    for (const int epoch : {0, 1}) {
      data::set_epoch(gathered, epoch);
      data::set_epoch(stacked, epoch);
      REQUIRE(gathered.size() == stacked.size());
      for (std::int64_t i = 0; i < gathered.size(); ++i) REQUIRE(same(gathered.begin()[i], stacked.begin()[i]));
    }
  };
  check(set | data::batch(4), set | one_by_one | data::batch(4));
  check(set | data::shuffle(3) | data::batch(4), set | data::shuffle(3) | one_by_one | data::batch(4));
  check(set | data::shuffle(3) | data::take(9) | data::batch(4),
        set | data::shuffle(3) | data::take(9) | one_by_one | data::batch(4));
  check(set | data::take(9) | data::shuffle(3) | data::batch(4),
        set | data::take(9) | data::shuffle(3) | one_by_one | data::batch(4));
}

TEST_CASE("a batch is the caller's own", "[data][batch]") {
  const auto set = numbers(4);
  auto batches = set | data::batch(4);
  (*batches.begin()).data.zero_();
  REQUIRE(set.tensors().data.sum().item<float>() > 0.0F);
}

TEST_CASE("starting at a position gives what skipping gives", "[data][batch]") {
  auto batches = numbers(50) | data::shuffle(8) | data::batch(8);
  data::set_epoch(batches, 2);
  for (std::int64_t k = 0; k <= batches.size(); ++k) {
    auto skipped = batches.begin();
    for (std::int64_t i = 0; i < k; ++i) ++skipped;
    auto started = batches.begin() + k;
    REQUIRE((started == skipped));
    for (; started != batches.end(); ++started, ++skipped) REQUIRE(same(*started, *skipped));
  }
}

TEST_CASE("starting at a position reads nothing before it", "[data][batch]") {
  int calls = 0;
  auto batches = ranges::views::iota(0, 1000) | data::shuffle(8) | data::transform([&calls](int n) {
                   ++calls;
                   return n;
                 }) |
                 data::batch(10);
  REQUIRE((*(batches.begin() + 99)).size() == 10);
  REQUIRE(calls == 10);
}

TEST_CASE("tensors, pairs and tuples of tensors are stacked, what holds anything else is listed", "[data][batch]") {
  const auto three = ranges::views::iota(0, 3);
  const auto tensor = [](int n) { return at::full({2}, n, at::kFloat); };
  SECTION("tensor") {
    auto view = three | data::transform(tensor) | data::batch(3);
    REQUIRE((*view.begin()).equal(at::tensor({0.0F, 0.0F, 1.0F, 1.0F, 2.0F, 2.0F}).reshape({3, 2})));
  }
  SECTION("pair and tuple") {
    auto view = three | data::transform([&](int n) { return std::pair(tensor(n), std::tuple(tensor(n + 1))); }) |
                data::batch(2);
    const auto first = *view.begin();
    REQUIRE(first.first.equal(at::tensor({0.0F, 0.0F, 1.0F, 1.0F}).reshape({2, 2})));
    REQUIRE(std::get<0>(first.second).equal(at::tensor({1.0F, 1.0F, 2.0F, 2.0F}).reshape({2, 2})));
  }
  SECTION("example without target") {
    auto view = three | data::transform([&](int n) { return torch::data::TensorExample(tensor(n)); }) | data::batch(2);
    REQUIRE((*view.begin()).data.sizes() == at::IntArrayRef({2, 2}));
  }
  SECTION("example with undefined target") {
    auto view = three | data::transform([&](int n) { return data::example(tensor(n), {}); }) | data::batch(2);
    REQUIRE_FALSE((*view.begin()).target.defined());
  }
  SECTION("a tensor with its name") {
    auto view =
        three | data::transform([&](int n) { return std::pair(tensor(n), std::to_string(n)); }) | data::batch(2);
    REQUIRE((*view.begin()).at(1).second == "1");
  }
  SECTION("shapes that differ") {
    auto view = three | data::transform([](int n) { return at::ones({n}); }) | data::batch(3);
    REQUIRE_THROWS_AS(*view.begin(), c10::Error);
  }
}

TEST_CASE("batches go on into range-v3 and can be transformed", "[data][batch]") {
  auto means = numbers(6) | data::batch(4) | data::transform([](const data::example& b) { return b.data.size(0); });
  REQUIRE((means | ranges::to<std::vector>()) == std::vector<std::int64_t>{4, 2});
}

}  // namespace data_batch_test

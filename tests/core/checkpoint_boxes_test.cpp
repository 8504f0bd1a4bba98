#include "rondo/checkpoint/boxes.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <random>
#include <vector>

#include "support/catch.hpp"

namespace checkpoint_boxes_test {

using namespace rondo::checkpoint;

namespace {

using integers = std::vector<std::int64_t>;
using kind = coverage_fault::kind;

struct box {
  integers offsets;
  integers sizes;
  [[nodiscard]] box_view view() const { return {offsets, sizes}; }
};

std::vector<box_view> views_of(const std::vector<box>& boxes) {
  std::vector<box_view> all;
  for (const auto& one : boxes) all.push_back(one.view());
  return all;
}

std::optional<coverage_fault> fault_of(const integers& sizes, const std::vector<box>& boxes) {
  return coverage_fault_of(sizes, views_of(boxes));
}

/// How often each element is in a box; the slow and obvious way.
std::vector<int> counts_of(const integers& sizes, const std::vector<box>& boxes) {
  std::vector<int> counts(static_cast<std::size_t>(*volume(sizes)), 0);
  const box whole{integers(sizes.size(), 0), sizes};
  for (const auto& one : boxes)
    for_common_runs(one.view(), whole.view(), [&](std::uint64_t, std::uint64_t at, std::uint64_t count) {
      for (std::uint64_t i = at; i < at + count; ++i) ++counts[i];
    });
  return counts;
}

/// Cuts a tensor into boxes at random.
std::vector<box> cut(const integers& sizes, std::mt19937& random) {
  std::vector<box> boxes{{integers(sizes.size(), 0), sizes}};
  for (int i = 0; i < 20; ++i) {
    auto& one = boxes[random() % boxes.size()];
    const auto d = random() % sizes.size();
    if (one.sizes[d] < 2) continue;
    const auto first = 1 + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(one.sizes[d] - 1));
    auto rest = one;
    one.sizes[d] = first;
    rest.offsets[d] += first;
    rest.sizes[d] -= first;
    boxes.push_back(rest);
  }
  return boxes;
}

}  // namespace

TEST_CASE("volumes are counted with care", "[checkpoint][boxes]") {
  constexpr auto huge = std::numeric_limits<std::int64_t>::max();
  CHECK(volume(integers{}) == 1);
  CHECK(volume(integers{2, 3, 4}) == 24);
  CHECK(volume(integers{huge, 1}) == huge);
  CHECK(volume(integers{huge, huge, 0}) == 0);
  CHECK(volume(integers{0, huge, huge}) == 0);
  CHECK(!volume(integers{huge, 2}));
  CHECK(!volume(integers{-1, 2}));
  CHECK(!volume(integers{0, -1}));
}

TEST_CASE("a box is inside a tensor or is not", "[checkpoint][boxes]") {
  constexpr auto huge = std::numeric_limits<std::int64_t>::max();
  const auto inside = [](const integers& offsets, const integers& box, const integers& sizes) {
    return is_inside({offsets, box}, sizes);
  };
  CHECK(inside({0, 0}, {3, 4}, {3, 4}));
  CHECK(inside({3, 0}, {0, 4}, {3, 4}));
  CHECK(inside({}, {}, {}));
  CHECK(!inside({1, 0}, {3, 4}, {3, 4}));
  CHECK(!inside({-1, 0}, {1, 1}, {3, 4}));
  CHECK(!inside({0, 0}, {1, -1}, {3, 4}));
  CHECK(!inside({huge, 0}, {huge, 1}, {3, 4}));
  CHECK(!inside({0}, {1}, {3, 4}));
}

TEST_CASE("what boxes make up a tensor", "[checkpoint][boxes]") {
  CHECK(!fault_of({4, 6}, {{{0, 0}, {4, 6}}}));
  CHECK(!fault_of({4, 6}, {{{0, 3}, {4, 3}}, {{0, 0}, {4, 3}}}));
  CHECK(!fault_of({}, {{{}, {}}}));
  CHECK(!fault_of({0, 6}, {}));
  CHECK(!fault_of({0, 6}, {{{0, 0}, {0, 6}}, {{0, 0}, {0, 6}}}));
  CHECK(!fault_of({2}, {{{0}, {2}}, {{1}, {0}}}));

  const auto gap = fault_of({4, 6}, {{{0, 0}, {4, 3}}, {{0, 4}, {4, 2}}});
  REQUIRE(gap);
  CHECK(gap->what == kind::gap);
  CHECK(gap->covered == 20);
  REQUIRE(fault_of({}, {}));
  CHECK(fault_of({}, {})->what == kind::gap);

  const auto overlap = fault_of({4, 6}, {{{0, 0}, {2, 6}}, {{2, 0}, {2, 3}}, {{1, 2}, {3, 4}}});
  REQUIRE(overlap);
  CHECK(overlap->what == kind::overlap);
  CHECK(overlap->second == 2);
  REQUIRE(fault_of({}, {{{}, {}}, {{}, {}}}));
  CHECK(fault_of({}, {{{}, {}}, {{}, {}}})->what == kind::overlap);

  const auto outside = fault_of({4, 6}, {{{0, 0}, {4, 6}}, {{0, 6}, {1, 1}}});
  REQUIRE(outside);
  CHECK(outside->what == kind::outside);
  CHECK(outside->first == 1);
}

TEST_CASE("random cuts make up a tensor, and cease to when anything is changed", "[checkpoint][boxes]") {
  std::mt19937 random(1);
  for (int round = 0; round < 300; ++round) {
    const integers sizes = round % 2 == 0 ? integers{7, 9, 5} : integers{40, 11};
    auto boxes = cut(sizes, random);
    std::shuffle(boxes.begin(), boxes.end(), random);
    CHECK(!fault_of(sizes, boxes));
    const auto counts = counts_of(sizes, boxes);
    CHECK(std::count(counts.begin(), counts.end(), 1) == *volume(sizes));

    // A part moves: some elements are in two boxes, others in none.
    const auto d = random() % sizes.size();
    auto& moved = boxes[random() % boxes.size()];
    if (moved.sizes[d] == sizes[d]) continue;
    moved.offsets[d] += moved.offsets[d] > 0 ? -1 : 1;
    const auto fault = fault_of(sizes, boxes);
    REQUIRE(fault);
    if (fault->what == kind::overlap)
      CHECK(have_common_elements(boxes[fault->first].view(), boxes[fault->second].view()));
  }
}

TEST_CASE("a hundred thousand pieces are checked at once", "[checkpoint][boxes]") {
  const std::int64_t count = 100'000;
  const std::size_t side = 316;
  std::vector<box> rows;
  std::vector<box> columns;
  std::vector<box> grid;
  for (std::int64_t i = 0; i < count; ++i) {
    rows.push_back({{count - 1 - i, 0}, {1, 3}});
    columns.push_back({{0, i}, {3, 1}});
  }
  for (std::size_t i = 0; i < side * side; ++i)
    grid.push_back({{static_cast<std::int64_t>(i / side), static_cast<std::int64_t>(i % side)}, {1, 1}});
  CHECK(!fault_of({count, 3}, rows));
  CHECK(!fault_of({3, count}, columns));
  CHECK(!fault_of({side, side}, grid));
  columns[5].offsets[1] = 77'777;
  const auto fault = fault_of({3, count}, columns);
  REQUIRE(fault);
  CHECK(fault->first == 5);
  CHECK(fault->second == 77'777);
}

TEST_CASE("common elements come in runs", "[checkpoint][boxes]") {
  using run = std::array<std::uint64_t, 3>;
  const auto runs = [](const box& a, const box& b) {
    std::vector<run> all;
    for_common_runs(a.view(), b.view(), [&](std::uint64_t in_a, std::uint64_t in_b, std::uint64_t count) {
      all.push_back({in_a, in_b, count});
    });
    return all;
  };
  CHECK(runs({{2, 0, 0}, {3, 4, 5}}, {{0, 0, 0}, {10, 4, 5}}) == std::vector<run>{{0, 40, 60}});
  CHECK(runs({{0, 0}, {2, 4}}, {{1, 1}, {3, 2}}) == std::vector<run>{{5, 0, 2}});
  CHECK(runs({{0, 0}, {3, 4}}, {{1, 1}, {3, 2}}) == std::vector<run>{{5, 0, 2}, {9, 2, 2}});
  CHECK(runs({{}, {}}, {{}, {}}) == std::vector<run>{{0, 0, 1}});
  CHECK(runs({{0}, {3}}, {{3}, {3}}).empty());
  CHECK(runs({{0}, {0}}, {{0}, {3}}).empty());
}

TEST_CASE("a box has a place in another one when it lies there in one run", "[checkpoint][boxes]") {
  const auto place = [](const box& inner, const box& outer) { return place_in(inner.view(), outer.view()); };
  CHECK(place({{3, 0}, {2, 4}}, {{1, 0}, {9, 4}}) == 8u);
  CHECK(place({{3, 1}, {1, 2}}, {{1, 0}, {9, 4}}) == 9u);
  CHECK(!place({{3, 1}, {2, 2}}, {{1, 0}, {9, 4}}));
  CHECK(!place({{0, 0}, {2, 4}}, {{1, 0}, {9, 4}}));
  CHECK(!place({{3, 0}, {2, 5}}, {{1, 0}, {9, 4}}));
  CHECK(place({{}, {}}, {{}, {}}) == 0u);
}

}  // namespace checkpoint_boxes_test

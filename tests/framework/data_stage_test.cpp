#include "rondo/data/stage.hpp"

#include <ATen/Functions.h>

#include <array>
#include <cstdint>
#include <list>
#include <range/v3/view/iota.hpp>
#include <range/v3/view/take.hpp>
#include <range/v3/view/transform.hpp>
#include <span>
#include <string>
#include <vector>

#include "rondo/data/batch.hpp"
#include "rondo/data/shuffle.hpp"
#include "rondo/data/take.hpp"
#include "rondo/data/transform.hpp"
#include "support/catch.hpp"
#include "support/pipelines.hpp"

namespace data_stage_test {

using namespace rondo;

namespace {

template <class Range>
std::vector<int> read(Range&& range) {
  std::vector<int> elements;
  for (auto&& e : range) elements.push_back(e);
  return elements;
}

// A user's own data set: no view, gathers, and wants to know the epoch.
class squares {
 public:
  explicit squares(int size) : values_(static_cast<std::size_t>(size)) {
    for (int i = 0; i < size; ++i) values_[static_cast<std::size_t>(i)] = i * i;
  }
  [[nodiscard]] auto begin() const { return values_.begin(); }
  [[nodiscard]] auto end() const { return values_.end(); }
  [[nodiscard]] std::size_t size() const { return values_.size(); }
  [[nodiscard]] at::Tensor gather(std::span<const std::int64_t> positions) const {
    ++gathered;
    std::vector<int> picked;
    for (const auto position : positions) picked.push_back(values_.at(static_cast<std::size_t>(position)));
    return at::tensor(picked);
  }
  void set_epoch(std::int64_t epoch) { epochs.push_back(epoch); }

  std::vector<std::int64_t> epochs;
  mutable int gathered = 0;

 private:
  std::vector<int> values_;
};

// The smallest input range: one pass, no size, neither copied nor default constructed.
class countdown {
 public:
  explicit countdown(int from) : left_(from) {}
  countdown(const countdown&) = delete;
  countdown& operator=(const countdown&) = delete;

  struct end_mark {};
  class iterator {
   public:
    using value_type = int;
    using difference_type = std::ptrdiff_t;
    using iterator_concept = std::input_iterator_tag;
    using iterator_category = std::input_iterator_tag;
    using reference = int;
    using pointer = void;
    iterator() = default;
    explicit iterator(int* left) : left_(left) {}
    int operator*() const { return *left_; }
    iterator& operator++() {
      --*left_;
      return *this;
    }
    void operator++(int) { ++*this; }
    friend bool operator==(const iterator& i, end_mark) { return *i.left_ == 0; }

   private:
    int* left_ = nullptr;
  };
  iterator begin() { return iterator(&left_); }
  end_mark end() { return {}; }

 private:
  int left_;
};

// The two data sets of docs/data.md.
auto windows(at::Tensor series, std::int64_t width) {
  return ranges::views::iota(std::int64_t{0}, series.size(0) - width) |
         data::transform([=](std::int64_t i) { return data::example(series.narrow(0, i, width), series[i + width]); });
}

struct window_set {
  at::Tensor series;
  std::int64_t width;

  std::int64_t size() const { return series.size(0) - width; }
  auto positions() const { return ranges::iota_view<std::int64_t, std::int64_t>(0, size()); }
  auto begin() const { return positions().begin(); }
  auto end() const { return positions().end(); }
  data::example gather(std::span<const std::int64_t> starts) const {
    const auto first = at::tensor(at::ArrayRef<std::int64_t>(starts.data(), starts.size()));
    const auto index = first.unsqueeze(1) + at::arange(width);
    return {series.index({index}), series.index({first + width})};
  }
};

}  // namespace

TEST_CASE("the data sets of the guide give the same batches", "[data][stage]") {
  const auto series = at::arange(100, at::kFloat).square();
  auto by_function = windows(series, 24) | data::shuffle(5) | data::batch(16);
  auto by_class = window_set{series, 24} | data::shuffle(5) | data::batch(16);
  REQUIRE(by_function.size() == 5);
  REQUIRE(by_class.size() == 5);
  for (int i = 0; i < 5; ++i) {
    const data::example one = by_function.begin()[i];
    const data::example other = by_class.begin()[i];
    REQUIRE(one.data.equal(other.data));
    REQUIRE(one.target.equal(other.target));
  }
}

TEST_CASE("an own data set is referred to, gathered from and told the epoch", "[data][stage]") {
  squares set(10);
  auto batches = set | data::shuffle(4) | data::batch(5);
  const at::Tensor first = *batches.begin();
  REQUIRE(first.sizes() == at::IntArrayRef({5}));
  REQUIRE(set.gathered == 1);
  const auto order = data::shuffled_positions(10, 4, 0);
  for (int i = 0; i < 5; ++i)
    REQUIRE(first[i].item<int>() == order[static_cast<std::size_t>(i)] * order[static_cast<std::size_t>(i)]);
  data::set_epoch(batches, 6);
  REQUIRE(set.epochs == std::vector<std::int64_t>{6});
}

TEST_CASE("a temporary own data set is kept, and shared by copies of the pipeline", "[data][stage]") {
  auto batches = squares(10) | data::batch(5);
  const auto copy = batches;
  REQUIRE((*copy.begin()).equal(at::tensor({0, 1, 4, 9, 16})));
  REQUIRE((*batches.begin()).equal(*copy.begin()));
}

TEST_CASE("an input range that is neither copied nor sized feeds a pipeline", "[data][stage]") {
  countdown numbers(5);
  auto batches = numbers | data::batch(2);
  std::vector<std::vector<int>> found;
  for (auto& b : batches) found.push_back(b);
  REQUIRE(found == std::vector<std::vector<int>>{{5, 4}, {3, 2}, {1}});
}

TEST_CASE("the epoch passes through range-v3's views of one range", "[data][stage]") {
  auto view = ranges::views::iota(0, 30) | data::shuffle(2) | ranges::views::transform([](int n) { return n + 100; }) |
              data::batch(30);
  const auto first = *view.begin();
  data::set_epoch(view, 1);
  REQUIRE(*view.begin() != first);
}

TEST_CASE("the device passes through all stages to whoever wants to know it", "[data][stage]") {
  struct listener : std::vector<int> {
    using std::vector<int>::vector;
    void set_device(c10::Device device) { devices.push_back(device.str()); }
    std::vector<std::string> devices;
  };
  listener set{1, 2, 3};
  auto view = set | data::shuffle(1) | data::transform([](int n) { return n; }) |
              ranges::views::transform([](int n) { return n; }) | data::take(2) | data::batch(2);
  data::set_device(view, c10::Device(c10::kCUDA, 1));
  REQUIRE(set.devices == std::vector<std::string>{"cuda:1"});
  std::list<int> list{1, 2, 3};
  auto stream = list | data::shuffle(1) | data::transform([](int n) { return n; }) | data::take(2) | data::batch(2);
  data::set_device(stream, c10::kCPU);
  REQUIRE(read(stream | data::transform([](const std::vector<int>& b) { return static_cast<int>(b.size()); })) ==
          std::vector{2});
}

TEST_CASE("a stage over a seekable stream begins where it was told to, once", "[data][stage]") {
  auto view = testing::seekable_stream(10) | data::transform([](std::int64_t n, data::place at) {
                return std::vector{n, at.index};
              }) |
              data::batch(2);
  static_assert(decltype(view)::position_fields == 2);
  auto it = view.begin();
  ++it;
  ++it;
  const auto third = view.tell();
  const auto expected = *it;
  REQUIRE(third == std::array<std::int64_t, 2>{47, 4});
  auto copy = view;
  for (auto* each : {&view, &copy}) {
    each->seek(third);
    REQUIRE(*each->begin() == expected);
    REQUIRE((*each->begin()).front() == std::vector<std::int64_t>{0, 0});
  }
}

TEST_CASE("only streams of a seekable range can be told where to begin", "[data][stage]") {
  const auto stages = data::transform([](std::int64_t n) { return n; }) | data::take(3) | data::batch(2);
  static_assert(data::detail::seekable<decltype(testing::seekable_stream() | stages)>);
  static_assert(data::detail::seekable<decltype(testing::wide_stream() | stages)>);
  static_assert(!data::detail::seekable<decltype(testing::number_stream() | stages)>);
  static_assert(!data::detail::seekable<decltype(std::list<std::int64_t>() | stages)>);
  static_assert(data::detail::position_fields<decltype(testing::wide_stream() | stages)> == 4);
  static_assert(data::detail::position_fields<decltype(testing::number_stream() | stages)> == 0);
  REQUIRE((testing::wide_stream(4) | stages).begin() != ranges::default_sentinel_t());
}

TEST_CASE("a range without epochs is left alone", "[data][stage]") {
  std::vector<int> numbers{1, 2, 3};
  data::set_epoch(numbers, 3);
  auto view = numbers | data::batch(2);
  data::set_epoch(view, 3);
  REQUIRE(*view.begin() == std::vector{1, 2});
}

TEST_CASE("stages are joined before they meet a range", "[data][stage]") {
  const std::vector<int> numbers{1, 2, 3, 4};
  const auto twice = [](int n) { return 2 * n; };
  const auto own = data::transform(twice) | data::shuffle(1);
  const auto expected = read(numbers | data::transform(twice) | data::shuffle(1));
  REQUIRE(read(numbers | own) == expected);
  REQUIRE(read(std::vector(numbers) | own) == expected);
  REQUIRE(read(numbers | (ranges::views::transform(twice) | data::shuffle(1))) == expected);
  REQUIRE(read(numbers | (data::transform(twice) | ranges::views::take(2))) == std::vector{2, 4});
}

TEST_CASE("a copy of a stream that is being read begins anew", "[data][stage]") {
  std::list<int> numbers{1, 2, 3};
  auto view = numbers | data::transform([](int n) { return n; });
  auto it = view.begin();
  ++it;
  auto copy = view;
  REQUIRE(read(copy) == std::vector{1, 2, 3});
  REQUIRE(*it == 2);
  copy = view;
  REQUIRE(read(copy) == std::vector{1, 2, 3});
}

}  // namespace data_stage_test

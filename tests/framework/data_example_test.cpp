#include "rondo/data/example.hpp"

#include <ATen/Functions.h>

#include <array>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "rondo/data/collate.hpp"
#include "rondo/data/labelled.hpp"
#include "support/catch.hpp"

namespace data_example_test {

using namespace rondo;

namespace sentences {

struct batch {
  int words = 0;
  std::string device;
};

batch to_device(batch moved, at::Device device) {
  moved.device = device.str();
  return moved;
}

std::int64_t item_count(const batch& counted) { return counted.words; }

}  // namespace sentences

namespace {

// A device that exists everywhere, holds no data and shows where a tensor was sent.
const at::Device elsewhere(at::kMeta);

at::Tensor ones(std::initializer_list<std::int64_t> sizes) { return at::ones(at::IntArrayRef(sizes)); }

}  // namespace

TEST_CASE("to_device moves every tensor of the batches it knows", "[data][example]") {
  SECTION("tensor") { REQUIRE(data::to_device(ones({2, 3}), elsewhere).device() == elsewhere); }
  SECTION("example") {
    const auto moved = data::to_device(data::example(ones({2, 3}), at::zeros({2}, at::kLong)), elsewhere);
    REQUIRE(moved.data.device() == elsewhere);
    REQUIRE(moved.target.device() == elsewhere);
    REQUIRE(moved.target.scalar_type() == at::kLong);
    REQUIRE(moved.data.sizes() == at::IntArrayRef({2, 3}));
  }
  SECTION("example without target") {
    REQUIRE(data::to_device(torch::data::TensorExample(ones({2})), elsewhere).data.device() == elsewhere);
  }
  SECTION("pair, tuple and vector, nested") {
    const auto moved =
        data::to_device(std::pair(std::vector<at::Tensor>{ones({2}), ones({3})}, std::tuple(ones({1}), 7)), elsewhere);
    REQUIRE(moved.first.at(0).device() == elsewhere);
    REQUIRE(moved.first.at(1).device() == elsewhere);
    REQUIRE(std::get<0>(moved.second).device() == elsewhere);
    REQUIRE(std::get<1>(moved.second) == 7);
  }
}

TEST_CASE("to_device leaves alone what needs no move", "[data][example]") {
  const auto here = ones({2});
  REQUIRE(data::to_device(here, at::kCPU).is_same(here));
  REQUIRE_FALSE(data::to_device(at::Tensor(), elsewhere).defined());
  REQUIRE(data::to_device(std::string("text"), elsewhere) == "text");
  REQUIRE(data::to_device(std::vector<bool>{true, false}, elsewhere) == std::vector<bool>{true, false});
}

TEST_CASE("item_count is the number of samples", "[data][example]") {
  REQUIRE(data::item_count(ones({5, 2})) == 5);
  REQUIRE(data::item_count(at::scalar_tensor(1.0)) == 1);
  REQUIRE(data::item_count(at::Tensor()) == 1);
  REQUIRE(data::item_count(data::example(ones({4, 2}), ones({4}))) == 4);
  REQUIRE(data::batch_size(data::example(ones({4, 2}), ones({4}))) == 4);
  REQUIRE(data::item_count(std::pair(ones({3, 1}), ones({3}))) == 3);
  REQUIRE(data::item_count(std::tuple(ones({6}), 1, 2)) == 6);
  REQUIRE(data::item_count(std::tuple<>()) == 1);
  REQUIRE(data::item_count(std::vector<int>{1, 2, 3}) == 3);
  REQUIRE(data::item_count(std::vector<at::Tensor>{ones({8, 2}), ones({8, 3})}) == 8);
  REQUIRE(data::item_count(std::vector<at::Tensor>{}) == 0);
  REQUIRE(data::item_count(std::string("text")) == 1);
}

namespace {

struct sample {
  at::Tensor image;
  std::map<std::string, at::Tensor> more;
  std::optional<at::Tensor> mask;
  std::array<at::Tensor, 2> corners;
  std::string name;
  bool flipped = false;
};

struct points {
  at::Tensor x, y;
  std::tuple<at::Tensor, at::Tensor> z;
};

struct target_first {
  at::Tensor target, image;
};

struct target_last {
  at::Tensor image, target;
};

class sealed {
 public:
  explicit sealed(int) {}
};

struct holds_sealed {
  at::Tensor x;
  sealed inside;
};

}  // namespace

TEST_CASE("a plain struct is moved and counted by its members", "[data][example]") {
  const sample one{ones({5, 2}), {{"a", ones({5})}}, ones({5}), {ones({1}), ones({2})}, "cat", true};
  REQUIRE(data::item_count(one) == 5);
  const auto moved = data::to_device(one, elsewhere);
  REQUIRE(moved.image.device() == elsewhere);
  REQUIRE(moved.more.at("a").device() == elsewhere);
  REQUIRE(moved.mask->device() == elsewhere);
  REQUIRE(moved.corners[0].device() == elsewhere);
  REQUIRE(moved.corners[1].device() == elsewhere);
  REQUIRE(moved.name == "cat");
  REQUIRE(moved.flipped);
  REQUIRE_FALSE(data::to_device(sample(), elsewhere).mask);
  REQUIRE(data::item_count(std::map<int, at::Tensor>{{1, ones({3})}}) == 3);
  REQUIRE(data::item_count(std::array{ones({4, 2}), ones({4})}) == 4);
}

TEST_CASE("a loop knows what it cannot move", "[data][example]") {
  using data::detail::whole_batch;
  STATIC_REQUIRE(whole_batch<sample>);
  STATIC_REQUIRE(whole_batch<points>);
  STATIC_REQUIRE(whole_batch<int>);
  STATIC_REQUIRE(whole_batch<sentences::batch>);
  STATIC_REQUIRE(whole_batch<std::vector<sentences::batch>>);
  STATIC_REQUIRE_FALSE(whole_batch<sealed>);
  STATIC_REQUIRE_FALSE(whole_batch<std::pair<at::Tensor, sealed>>);
  STATIC_REQUIRE_FALSE(whole_batch<holds_sealed>);
}

TEST_CASE("plain structs of tensors are stacked member by member", "[data][example]") {
  const auto one = [](double v) {
    return points{at::full({2}, v), at::scalar_tensor(v), {at::full({1}, -v), ones({3})}};
  };
  const auto batch = data::collate(std::vector{one(1), one(2), one(3)});
  REQUIRE(batch.x.sizes() == at::IntArrayRef({3, 2}));
  REQUIRE(batch.x[2][0].item<double>() == 3);
  REQUIRE(batch.y.sizes() == at::IntArrayRef({3}));
  REQUIRE(std::get<0>(batch.z)[1][0].item<double>() == -2);
  const auto others = data::collate(std::vector{sample(), sample()});
  REQUIRE(others.size() == 2);
}

TEST_CASE("what goes into a model and what should come out", "[data][example]") {
  const auto a = ones({2}), b = ones({3}), c = ones({4});
  SECTION("data and target") {
    const data::example batch(a, b);
    REQUIRE(data::input_of(batch).is_same(a));
    REQUIRE(data::target_of(batch).is_same(b));
  }
  SECTION("a pair") {
    const std::pair batch(a, b);
    REQUIRE(data::input_of(batch).is_same(a));
    REQUIRE(data::target_of(batch).is_same(b));
  }
  SECTION("a tuple") {
    const std::tuple batch(a, b, c);
    REQUIRE(std::get<1>(data::input_of(batch)).is_same(b));
    REQUIRE(data::target_of(batch).is_same(c));
  }
  SECTION("a struct") {
    const points batch{a, b, {c, c}};
    REQUIRE(std::get<0>(data::input_of(batch)).is_same(a));
    REQUIRE(std::get<0>(data::target_of(batch)).is_same(c));
  }
  SECTION("a struct whose target is not where it is looked for") {
    REQUIRE_THROWS_AS(data::input_of(target_first{a, b}), rondo::error);
    REQUIRE(data::input_of(target_last{a, b}).is_same(a));
  }
  STATIC_REQUIRE_FALSE(data::labelled<at::Tensor>);
  STATIC_REQUIRE_FALSE(data::labelled<torch::data::TensorExample>);
  STATIC_REQUIRE_FALSE(data::labelled<std::vector<data::example>>);
  STATIC_REQUIRE_FALSE(data::labelled<std::tuple<at::Tensor>>);
}

TEST_CASE("a type with functions of its own is moved and counted by them", "[data][example]") {
  const sentences::batch batch{12, "cpu"};
  REQUIRE(data::to_device(batch, elsewhere).device == "meta");
  REQUIRE(data::item_count(batch) == 12);
  REQUIRE(data::to_device(std::vector{batch, batch}, elsewhere).at(1).device == "meta");
}

}  // namespace data_example_test

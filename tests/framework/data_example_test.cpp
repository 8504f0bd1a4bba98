#include "rondo/data/example.hpp"

#include <ATen/Functions.h>

#include <string>

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

TEST_CASE("a type with functions of its own is moved and counted by them", "[data][example]") {
  const sentences::batch batch{12, "cpu"};
  REQUIRE(data::to_device(batch, elsewhere).device == "meta");
  REQUIRE(data::item_count(batch) == 12);
  REQUIRE(data::to_device(std::vector{batch, batch}, elsewhere).at(1).device == "meta");
}

}  // namespace data_example_test

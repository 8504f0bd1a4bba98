#include "rondo/data/tensor_dataset.hpp"

#include <ATen/Functions.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <range/v3/range/concepts.hpp>
#include <string>
#include <vector>

#include "rondo/error.hpp"
#include "support/catch.hpp"

namespace data_tensor_dataset_test {

using namespace rondo;

static_assert(ranges::random_access_range<const data::tensor_dataset>);
static_assert(ranges::sized_range<const data::tensor_dataset>);
static_assert(ranges::view_<data::tensor_dataset>);

namespace {

data::tensor_dataset numbers(std::int64_t count) {
  const auto options = at::TensorOptions().dtype(at::kLong);
  return {at::arange(count * 2, at::kFloat).reshape({count, 2}), at::arange(count, options)};
}

}  // namespace

TEST_CASE("a tensor data set is a random access range of examples", "[data][tensor_dataset]") {
  const auto set = numbers(5);
  REQUIRE(set.size() == 5);
  REQUIRE(set.end() - set.begin() == 5);
  std::int64_t i = 0;
  for (const auto& e : set) {
    REQUIRE(e.data.equal(at::tensor({2.0F * static_cast<float>(i), 2.0F * static_cast<float>(i) + 1.0F})));
    REQUIRE(e.target.item<std::int64_t>() == i);
    ++i;
  }
  REQUIRE(i == 5);
  REQUIRE(set.begin()[3].target.item<std::int64_t>() == 3);
  REQUIRE((*(set.begin() + 4)).target.item<std::int64_t>() == 4);
}

TEST_CASE("changing an example leaves the data set as it is", "[data][tensor_dataset]") {
  const auto set = numbers(3);
  auto one = set[1];
  one.data.zero_();
  one.target.zero_();
  REQUIRE(set[1].data[0].item<float>() == 2.0F);
  REQUIRE(set[1].target.item<std::int64_t>() == 1);
}

TEST_CASE("gather makes a batch in the order of the positions", "[data][tensor_dataset]") {
  const auto set = numbers(5);
  const auto batch = set.gather(std::vector<std::int64_t>{4, 0, 4});
  REQUIRE(batch.target.equal(at::tensor({4, 0, 4}, at::kLong)));
  REQUIRE(batch.data.equal(at::tensor({8.0F, 9.0F, 0.0F, 1.0F, 8.0F, 9.0F}).reshape({3, 2})));
  REQUIRE(set.gather({}).data.sizes() == at::IntArrayRef({0, 2}));
  REQUIRE(data::tensor_dataset().gather({}).data.defined() == false);
}

TEST_CASE("positions outside the data set are refused", "[data][tensor_dataset]") {
  const auto set = numbers(5);
  REQUIRE_THROWS_AS(set[5], c10::IndexError);
  REQUIRE_THROWS_AS(set[-1], c10::IndexError);
  REQUIRE_THROWS_AS(set.gather(std::vector<std::int64_t>{1, 5}), std::exception);
}

TEST_CASE("tensors that do not fit together are refused", "[data][tensor_dataset]") {
  const auto option_of = [](at::Tensor data, at::Tensor target) -> std::string {
    try {
      static_cast<void>(data::tensor_dataset(std::move(data), std::move(target)));
    } catch (const option_error& e) {
      return e.option();
    }
    return "none";
  };
  REQUIRE(option_of(at::ones({3, 2}), at::ones({3})) == "none");
  REQUIRE(option_of(at::ones({3, 2}), at::ones({4})) == "target");
  REQUIRE(option_of(at::ones({3, 2}), at::Tensor()) == "target");
  REQUIRE(option_of(at::Tensor(), at::ones({4})) == "data");
  REQUIRE(option_of(at::scalar_tensor(1), at::ones({1})) == "data");
}

TEST_CASE("a copy of a data set shares its tensors", "[data][tensor_dataset]") {
  const auto set = numbers(5);
  const auto copy = set;
  REQUIRE(copy.tensors().data.is_same(set.tensors().data));
}

}  // namespace data_tensor_dataset_test

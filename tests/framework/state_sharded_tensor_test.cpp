#include "rondo/state/sharded_tensor.hpp"

#include <torch/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "rondo/error.hpp"
#include "support/catch.hpp"

namespace state_sharded_tensor_test {

using namespace rondo;
using state::sharded_tensor;

namespace {

using numbers = std::vector<std::int64_t>;

state::tuple tuple_of(const numbers& values) {
  state::tuple result;
  for (const auto n : values) result.items.emplace_back(n);
  return result;
}

state::value written(const state::value& sizes, const state::value& dtype, const state::value& pieces) {
  return state::dict{{"rondo.sharded", state::dict{{"sizes", sizes}, {"dtype", dtype}, {"pieces", pieces}}}};
}

/// One part of a float tensor of sizes (4, 3).
state::value with_part(const numbers& offsets, const at::Tensor& tensor) {
  return written(tuple_of({4, 3}), "float32",
                 state::list{state::dict{{"offsets", tuple_of(offsets)}, {"tensor", tensor}}});
}

std::string refusal(const state::value& v) {
  try {
    static_cast<void>(sharded_tensor::from(v));
  } catch (const state_error& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a sharded tensor in a state tree is a dict with one key", "[state][sharded]") {
  const sharded_tensor one{{1000, 10}, at::kFloat, {{{10, 0}, at::ones({5, 10})}, {{990, 2}, at::zeros({10, 8})}}};
  const auto v = one.to_value();
  const auto expected =
      written(tuple_of({1000, 10}), "float32",
              state::list{state::dict{{"offsets", tuple_of({10, 0})}, {"tensor", at::ones({5, 10})}},
                          state::dict{{"offsets", tuple_of({990, 2})}, {"tensor", at::zeros({10, 8})}}});
  CHECK(state::equal(v, expected));
  CHECK(sharded_tensor::is(v));
}

TEST_CASE("a sharded tensor is the same after writing and reading, for every dtype", "[state][sharded]") {
  for (const auto dtype : {at::kByte, at::kChar, at::kShort, at::kInt, at::kLong, at::kHalf, at::kFloat, at::kDouble,
                           at::kComplexFloat, at::kComplexDouble, at::kBool, at::kBFloat16}) {
    CAPTURE(c10::toString(dtype));
    const auto tensor = at::ones({2, 3}, dtype);
    const sharded_tensor one{{5, 3}, dtype, {{{3, 0}, tensor}}};
    const auto read = sharded_tensor::from(one.to_value());
    CHECK(read.sizes == one.sizes);
    CHECK(read.dtype == dtype);
    REQUIRE(read.pieces.size() == 1);
    CHECK(read.pieces[0].offsets == numbers{3, 0});
    CHECK(read.pieces[0].tensor.is_same(tensor));  // the very tensor: state trees alias what they describe
  }
}

TEST_CASE("a rank may have no part, a tensor no dimensions, and a part no memory", "[state][sharded]") {
  const auto none = sharded_tensor::from(sharded_tensor{{7}, at::kLong, {}}.to_value());
  CHECK(none.sizes == numbers{7});
  CHECK(none.pieces.empty());

  const auto number = sharded_tensor::from(sharded_tensor{{}, at::kFloat, {{{}, at::scalar_tensor(2.5)}}}.to_value());
  CHECK(number.sizes.empty());
  REQUIRE(number.pieces.size() == 1);
  CHECK(number.pieces[0].tensor.item<float>() == 2.5F);

  const auto meta = at::empty({2, 3}, at::kMeta);
  const auto wish = sharded_tensor::from(with_part({2, 0}, meta));
  CHECK(wish.pieces.at(0).tensor.is_meta());

  const auto end = sharded_tensor::from(with_part({4, 3}, at::empty({0, 0})));
  CHECK(end.pieces.size() == 1);
}

TEST_CASE("only dicts with exactly that key stand for sharded tensors", "[state][sharded]") {
  CHECK_FALSE(sharded_tensor::is(nullptr));
  CHECK_FALSE(sharded_tensor::is(at::ones({2})));
  CHECK_FALSE(sharded_tensor::is(state::dict()));
  CHECK_FALSE(sharded_tensor::is(state::dict{{"sharded", 1}}));
  auto two = with_part({0, 0}, at::ones({1, 3}));
  two.as<state::dict>().insert_or_assign("more", 1);
  CHECK_FALSE(sharded_tensor::is(two));
  CHECK_THROWS_AS(sharded_tensor::from(two), state_error);
  CHECK_THROWS_AS(sharded_tensor::from(at::ones({2})), state_error);
}

TEST_CASE("a part that does not fit its tensor is an error", "[state][sharded]") {
  CHECK(refusal(with_part({1, 0}, at::ones({3, 3}))).empty());
  CHECK_FALSE(refusal(with_part({2, 0}, at::ones({3, 3}))).empty());
  CHECK_FALSE(refusal(with_part({0, 1}, at::ones({1, 3}))).empty());
  CHECK_FALSE(refusal(with_part({-1, 0}, at::ones({1, 3}))).empty());
  CHECK_FALSE(refusal(with_part({0}, at::ones({1, 3}))).empty());
  CHECK_FALSE(refusal(with_part({0, 0, 0}, at::ones({1, 3}))).empty());
  CHECK_FALSE(refusal(with_part({0}, at::ones({3}))).empty());
  CHECK_FALSE(refusal(with_part({std::int64_t{1} << 62, 0}, at::ones({1, 3}))).empty());
  CHECK_FALSE(refusal(with_part({0, 0}, at::ones({1, 3}, at::kDouble))).empty());
  CHECK_FALSE(refusal(with_part({0, 0}, at::Tensor())).empty());
  // The message tells both sides.
  const auto what = refusal(with_part({2, 0}, at::ones({3, 3})));
  CHECK(what.find("[3, 3]") != std::string::npos);
  CHECK(what.find("[4, 3]") != std::string::npos);
}

TEST_CASE("a dict that is written wrongly is an error", "[state][sharded]") {
  const state::list no_parts;
  CHECK_THROWS_AS(sharded_tensor::from(state::dict{{"rondo.sharded", 1}}), state_error);
  CHECK_THROWS_AS(sharded_tensor::from(state::dict{{"rondo.sharded", state::dict()}}), state_error);
  CHECK_THROWS_AS(sharded_tensor::from(written(state::list{4, 3}, "float32", no_parts)), state_error);
  CHECK_THROWS_AS(sharded_tensor::from(written(state::tuple{{4, 3.0}}, "float32", no_parts)), state_error);
  CHECK_THROWS_AS(sharded_tensor::from(written(tuple_of({4, 3}), "float7", no_parts)), state_error);
  CHECK_THROWS_AS(sharded_tensor::from(written(tuple_of({4, 3}), 6, no_parts)), state_error);
  CHECK_THROWS_AS(sharded_tensor::from(written(tuple_of({4, 3}), "float32", nullptr)), state_error);
  CHECK_THROWS_AS(sharded_tensor::from(written(tuple_of({4, 3}), "float32", state::list{at::ones({4, 3})})),
                  state_error);
  sharded_tensor quantized{{4}, at::kQInt8, {}};
  CHECK_THROWS_AS(quantized.to_value(), state_error);
}

}  // namespace state_sharded_tensor_test

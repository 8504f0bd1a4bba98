#include <torch/types.h>

#include <limits>

#include "rondo/state/digest.hpp"
#include "rondo/state/value.hpp"
#include "support/catch.hpp"

namespace state_value_test {

namespace {

using namespace rondo;

state::value sample() {
  return state::dict{{"weight", torch::arange(6, torch::kFloat).view({2, 3})},
                     {"step", 7},
                     {3, state::list{true, nullptr, "text", 0.5}},
                     {"betas", state::tuple{{0.9, 0.999}}},
                     {"blob", state::bytes{{std::byte{1}, std::byte{0}}}}};
}

TEST_CASE("equal compares trees down to the bits", "[state][value]") {
  CHECK(state::equal(sample(), sample()));
  SECTION("a changed leaf") {
    auto other = sample();
    other.as<state::dict>()["step"] = 8;
    CHECK_FALSE(state::equal(sample(), other));
  }
  SECTION("an int is not the float of the same value, a list not the tuple") {
    CHECK_FALSE(state::equal(1, 1.0));
    CHECK_FALSE(state::equal(state::list{1}, state::tuple{{1}}));
  }
  SECTION("floats by their bits") {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    CHECK(state::equal(nan, nan));
    CHECK_FALSE(state::equal(0.0, -0.0));
    CHECK(state::equal(torch::full({2}, nan), torch::full({2}, nan)));
    CHECK_FALSE(state::equal(torch::zeros(1), -torch::zeros(1)));
  }
  SECTION("tensors by dtype, sizes and elements, not by strides") {
    const auto t = torch::arange(6, torch::kFloat).view({2, 3});
    CHECK(state::equal(t, t.t().contiguous().t()));
    CHECK_FALSE(state::equal(t, t.view({3, 2})));
    CHECK_FALSE(state::equal(t, t.to(torch::kDouble)));
    CHECK(state::equal(torch::empty({0, 3}), torch::empty({0, 3})));
    CHECK_FALSE(state::equal(at::Tensor(), torch::empty(0)));
    CHECK(state::equal(at::Tensor(), at::Tensor()));
  }
  SECTION("keys in order, and no prefix equals the whole") {
    CHECK_FALSE(state::equal(state::dict{{"a", 1}, {"b", 2}}, state::dict{{"b", 2}, {"a", 1}}));
    CHECK_FALSE(state::equal(state::list{1, 2}, state::list{1}));
    CHECK_FALSE(state::equal(state::dict{{"1", 1}}, state::dict{{1, 1}}));
  }
}

TEST_CASE("clone shares no memory with the original", "[state][value]") {
  const auto weight = torch::ones({2, 2}, torch::requires_grad());
  const state::value original = state::dict{{"nested", state::list{weight, state::tuple{{weight, "x"}}}}};
  const state::value copy = state::clone(original);
  REQUIRE(state::equal(original, copy));
  {
    torch::NoGradGuard no_grad;
    weight.fill_(5);
  }
  CHECK_FALSE(state::equal(original, copy));
  const auto& cloned = copy.at("nested").as<state::list>()[0].as<at::Tensor>();
  CHECK(torch::equal(cloned, torch::ones({2, 2})));
  CHECK_FALSE(cloned.requires_grad());
}

TEST_CASE("a digest depends on the contents only", "[state][digest]") {
  const std::string digest = state::digest_of(sample());
  CHECK(digest.size() == 32);
  CHECK(digest.find_first_not_of("0123456789abcdef") == std::string::npos);
  CHECK(digest == state::digest_of(state::clone(sample())));

  SECTION("it is the same in every run and on every machine") {
    CHECK(state::digest_of(state::dict{{"a", 1}, {"t", torch::arange(4)}}) == "854cbfa12a3c332bfb87db927c1d76b5");
  }
  SECTION("strides, storages and the order of keys do not matter") {
    const auto t = torch::arange(6, torch::kFloat).view({2, 3});
    CHECK(state::digest_of(t) == state::digest_of(t.t().contiguous().t()));
    const auto big = torch::arange(12, torch::kFloat);
    CHECK(state::digest_of(t) == state::digest_of(big.slice(0, 0, 6).view({2, 3})));
    CHECK(state::digest_of(state::dict{{"a", 1}, {2, t}}) == state::digest_of(state::dict{{2, t}, {"a", 1}}));
  }
  SECTION("an undefined tensor is None") { CHECK(state::digest_of(at::Tensor()) == state::digest_of(nullptr)); }
}

TEST_CASE("different trees have different digests", "[state][digest]") {
  const auto t = torch::arange(6, torch::kFloat);
  const std::vector<state::value> all{nullptr,
                                      false,
                                      true,
                                      0,
                                      1,
                                      0.0,
                                      -0.0,
                                      "",
                                      "0",
                                      state::bytes{},
                                      state::list{},
                                      state::tuple{},
                                      state::dict{},
                                      state::list{1, 2},
                                      state::list{state::list{1}, 2},
                                      state::list{"ab", "c"},
                                      state::list{"a", "bc"},
                                      state::dict{{1, 1}},
                                      state::dict{{"1", 1}},
                                      state::dict{{"a", 1}, {"b", 2}},
                                      state::dict{{"a", 2}, {"b", 1}},
                                      t,
                                      t.view({2, 3}),
                                      t.view({3, 2}),
                                      t.to(torch::kInt),
                                      t.view(torch::kInt),
                                      t + 1,
                                      torch::empty({0}),
                                      torch::empty({0, 1})};
  for (std::size_t i = 0; i < all.size(); ++i)
    for (std::size_t j = 0; j < i; ++j) {
      CAPTURE(i, j);
      CHECK(state::digest_of(all[i]) != state::digest_of(all[j]));
    }
}

TEST_CASE("a digest can be made in parts and names what it cannot read", "[state][digest]") {
  state::digest parts;
  parts.update(1);
  const std::string after_one = parts.hex();
  CHECK(after_one == state::digest_of(1));
  parts.update(2);
  CHECK(parts.hex() != after_one);

  const state::value sparse = state::dict{{"models", state::dict{{"main", torch::eye(3).to_sparse()}}}};
  try {
    static_cast<void>(state::digest_of(sparse));
    FAIL("a sparse tensor has no plain bytes");
  } catch (const state_error& e) {
    CHECK(e.key() == "models.main");
  }
}

}  // namespace

}  // namespace state_value_test

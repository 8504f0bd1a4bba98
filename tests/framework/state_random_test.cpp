#include <torch/cuda.h>
#include <torch/types.h>

#include "rondo/state/random.hpp"
#include "support/catch.hpp"

namespace state_random_test {

namespace {

using namespace rondo;

TEST_CASE("the random state brings the same numbers back", "[state][random]") {
  torch::manual_seed(11);
  static_cast<void>(torch::randn(3));  // an odd count leaves a cached normal sample behind
  const state::value saved = state::random_state();
  const auto first = torch::cat({torch::randn(37), torch::rand(5), torch::randperm(9).to(torch::kFloat)});
  static_cast<void>(torch::rand(100));
  state::load_random_state(saved);
  const auto again = torch::cat({torch::randn(37), torch::rand(5), torch::randperm(9).to(torch::kFloat)});
  CHECK(torch::equal(first, again));
}

TEST_CASE("the CPU generator's state has Python's layout", "[state][random]") {
  const auto cpu = state::random_state().at("cpu").as<at::Tensor>();
  CHECK(cpu.scalar_type() == torch::kByte);
  CHECK(cpu.sizes() == at::IntArrayRef{5056});
}

TEST_CASE("a wrong random state is refused and changes nothing", "[state][random]") {
  const state::value before = state::clone(state::random_state());
  const auto refused = [](const state::value& v) {
    try {
      state::load_random_state(v);
    } catch (const state_error& e) {
      return e.key();
    }
    return std::string("accepted");
  };
  CHECK(refused(state::dict{{"cpu", torch::zeros(10, torch::kByte)}}) == "cpu");
  CHECK(refused(state::dict{{"cpu", torch::zeros(5056)}}) == "cpu");
  CHECK(refused(state::dict{{"cpu", torch::zeros(5056, torch::kByte)}}) == "cpu");
  CHECK(refused(state::dict{{"cpu", at::Tensor()}}) == "cpu");
  CHECK(refused(state::dict{{"cpu", "state"}}) == "cpu");
  CHECK(refused(state::dict{}) == "cpu");
  CHECK(refused(state::dict{{"cpu", before.at("cpu")}, {"cuda", 1}}) == "cuda");
  CHECK(state::equal(before, state::random_state()));
}

TEST_CASE("states of absent devices are passed over", "[state][random]") {
  state::value saved = state::clone(state::random_state());
  saved.as<state::dict>()["cuda"] = state::list(64, torch::zeros(16, torch::kByte));
  if (!torch::cuda::is_available()) CHECK_NOTHROW(state::load_random_state(saved));
}

}  // namespace

}  // namespace state_random_test

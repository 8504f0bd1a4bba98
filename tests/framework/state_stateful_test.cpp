#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adam.h>
#include <torch/optim/sgd.h>

#include <memory>

#include "rondo/state/random.hpp"
#include "rondo/state/stateful.hpp"
#include "support/catch.hpp"

namespace foreign {
struct point {
  int x = 0;
};
}  // namespace foreign

template <>
struct rondo::state::adapter<foreign::point> {
  static value save(const foreign::point& p) { return dict{{"x", p.x}}; }
  static void load(foreign::point& p, const value& v) { p.x = static_cast<int>(v.get<std::int64_t>("x")); }
};

namespace state_stateful_test {

namespace {

using namespace rondo;

struct counter {
  int count = 0;
  state::dict state_dict() const { return {{"count", count}}; }
  void load_state_dict(const state::value& v) { count = static_cast<int>(v.get<std::int64_t>("count")); }
};

struct counting_linear : torch::nn::LinearImpl {
  using LinearImpl::LinearImpl;
  int count = 0;
  state::value state_dict() const { return state::dict{{"count", count}, {"module", state::module_state(*this)}}; }
  void load_state_dict(const state::value& v) {
    state::load_module_state(*this, v.at("module"));
    count = static_cast<int>(v.get<std::int64_t>("count"));
  }
};

struct forgetful {
  state::dict state_dict() const { return {}; }
};

static_assert(state::stateful<counter>);
static_assert(state::stateful<state::random_generators>);
static_assert(!state::stateful<forgetful>);
static_assert(!state::stateful<torch::nn::LinearImpl>);
static_assert(!state::storable<forgetful>);
static_assert(!std::constructible_from<state::stateful_ref, forgetful&>);
static_assert(!std::constructible_from<state::stateful_ref, counter>, "a temporary would dangle");
static_assert(std::constructible_from<state::stateful_ref, torch::nn::Sequential>);

TEST_CASE("a reference to a stateful object sees and changes it", "[state][stateful]") {
  counter object{3};
  const state::stateful_ref ref(object);
  object.count = 4;
  CHECK(state::equal(ref.save(), state::dict{{"count", 4}}));
  ref.load(state::dict{{"count", 9}});
  CHECK(object.count == 9);
}

TEST_CASE("a shared pointer keeps its object alive", "[state][stateful]") {
  auto object = std::make_shared<counter>(counter{3});
  const std::weak_ptr<counter> watch = object;
  {
    const state::stateful_ref ref(object);
    object.reset();
    CHECK(state::equal(ref.save(), state::dict{{"count", 3}}));
  }
  CHECK(watch.expired());
  CHECK_THROWS_AS(state::stateful_ref(std::shared_ptr<counter>()), state_error);
}

TEST_CASE("modules, module holders and optimizers are stateful as they are", "[state][stateful]") {
  torch::nn::Linear linear(2, 2);
  const state::value expected = state::module_state(*linear);
  CHECK(state::equal(state::stateful_ref(linear).save(), expected));
  CHECK(state::equal(state::stateful_ref(linear.ptr()).save(), expected));
  CHECK(state::equal(state::stateful_ref(*linear).save(), expected));
  CHECK(state::equal(state::save(*linear), expected));
  CHECK_THROWS_AS(state::stateful_ref(torch::nn::Linear(nullptr)), state_error);

  torch::nn::Linear other(2, 2);
  state::stateful_ref(other).load(expected);
  CHECK(state::equal(state::module_state(*other), expected));

  torch::optim::SGD sgd(linear->parameters(), 0.25);
  torch::optim::Optimizer& base = sgd;
  CHECK(state::equal(state::stateful_ref(base).save(), state::optimizer_state(sgd)));
  CHECK(state::equal(state::stateful_ref(sgd).save(), state::optimizer_state(sgd)));
}

TEST_CASE("a module's own state_dict comes first", "[state][stateful]") {
  auto module = std::make_shared<counting_linear>(2, 2);
  module->count = 5;
  const state::value saved = state::clone(state::stateful_ref(module).save());
  CHECK(saved.get<std::int64_t>("count") == 5);
  counting_linear other(2, 2);
  state::load(other, saved);
  CHECK(other.count == 5);
  CHECK(state::equal(state::save(other), saved));
}

TEST_CASE("an adapter or two functions make any type stateful", "[state][stateful]") {
  foreign::point p{2};
  const state::stateful_ref ref(p);
  CHECK(state::equal(ref.save(), state::dict{{"x", 2}}));
  ref.load(state::dict{{"x", 8}});
  CHECK(p.x == 8);

  int number = 1;
  const state::stateful_ref functions([&] { return state::value(number); },
                                      [&](const state::value& v) { number = static_cast<int>(v.as<std::int64_t>()); });
  functions.load(6);
  CHECK(number == 6);
  CHECK(state::equal(functions.save(), 6));
}

}  // namespace

}  // namespace state_stateful_test

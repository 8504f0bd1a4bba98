#include <string>
#include <vector>

#include "rondo/event/value_trigger.hpp"
#include "rondo/extensions/call.hpp"
#include "support/bare_loop.hpp"
#include "support/catch.hpp"

namespace ext_call_test {

using namespace rondo;
using namespace rondo::literals;
using namespace rondo::testing;

namespace {

const auto nothing = [](context&, int) {};

}  // namespace

TEST_CASE("call calls a function at the iterations of its trigger", "[extensions][call]") {
  std::vector<std::int64_t> with_context;
  int without = 0;
  auto l = bare_loop(5, nothing, {.max_epochs = 2});
  l | call(every(3_iterations), [&](context& ctx) { with_context.push_back(ctx.iteration()); }) |
      call("epochs", every(1_epochs), [&] { ++without; });
  l.run();
  CHECK(with_context == std::vector<std::int64_t>{3, 6, 9});
  CHECK(without == 2);
}

TEST_CASE("call waits for a coroutine", "[extensions][call]") {
  std::vector<std::string> order;
  auto l = bare_loop(2, [&](context&, int) { order.push_back("step"); }, {.max_epochs = 1});
  l | call(every(1_iterations), [&](context& ctx) -> task<> {
    auto work = [] { return 7; };
    const int result = co_await ctx.offload(work);
    order.push_back("called " + std::to_string(result));
  });
  l.run();
  CHECK(order == std::vector<std::string>{"step", "called 7", "step", "called 7"});
}

TEST_CASE("call: what the function throws ends the training", "[extensions][call]") {
  auto l = bare_loop(5, nothing, {.max_epochs = 1});
  l | call(rondo::at({2_iterations}), [] { throw std::domain_error("enough"); });
  CHECK_THROWS_AS(l.run(), std::domain_error);
}

TEST_CASE("call: two of one name are refused before training", "[extensions][call]") {
  int steps = 0;
  auto l = bare_loop(5, [&](context&, int) { ++steps; }, {.max_epochs = 1});
  l | call(every(1_iterations), [] {}) | call(every(2_iterations), [] {});
  CHECK_THROWS_AS(l.run(), option_error);
  CHECK(steps == 0);
}

TEST_CASE("call: the memory of the trigger comes back with the state", "[extensions][call]") {
  const std::vector<double> losses{5, 3, 4, 2, 3, 1};
  const auto step = [&](context& ctx, int i) { ctx.report("loss", losses[static_cast<std::size_t>(i)]); };
  const auto fired = [&](std::optional<state::value> start, std::optional<state::value>& kept) {
    std::vector<std::int64_t> iterations;
    auto l = bare_loop(6, step, {.max_epochs = 1});
    l | call("best", min_value("loss", every(1_iterations)),
             [&](context& ctx) { iterations.push_back(ctx.iteration()); });
    l | (start ? restore_state(*start) : keep_state(2, kept));
    l.run();
    return iterations;
  };
  std::optional<state::value> kept;
  CHECK(fired(std::nullopt, kept) == std::vector<std::int64_t>{1, 2, 4, 6});
  CHECK(fired(kept, kept) == std::vector<std::int64_t>{4, 6});
}

static_assert(!extensions::callback<decltype([](int) {})>);
static_assert(!extensions::callback<decltype([](context&) { return 1; })>);

}  // namespace ext_call_test

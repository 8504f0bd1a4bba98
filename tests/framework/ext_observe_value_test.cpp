#include "rondo/extensions/observe_value.hpp"

#include <torch/types.h>

#include <map>

#include "rondo/error.hpp"
#include "support/bare_loop.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"

namespace ext_observe_value_test {

using namespace rondo;
using namespace rondo::literals;
using namespace rondo::testing;

namespace {

std::map<std::int64_t, double> seen_with(const extension& e, const char* key) {
  std::map<std::int64_t, double> seen;
  auto l = bare_loop(3, [](context&, int) {}, {.max_epochs = 2});
  l | e | make_extension("seen", [&](context& ctx) {
    ctx.on<event::iteration_completed>([&] {
      if (const auto* found = ctx.reported().find(key)) seen[ctx.iteration()] = found->value();
    });
  });
  l.run();
  return seen;
}

}  // namespace

TEST_CASE("observe_value reports what a function gives", "[ext][observe_value]") {
  using seen = std::map<std::int64_t, double>;
  CHECK(seen_with(observe_value("twice", [](context& ctx) { return 2.0 * static_cast<double>(ctx.iteration()); }),
                  "twice") == seen{{3, 6.0}, {6, 12.0}});
  int calls = 0;
  CHECK(seen_with(observe_value("calls", [&] { return torch::tensor(++calls); }).triggered(every(2_iterations)),
                  "calls") == seen{{2, 1.0}, {4, 2.0}, {6, 3.0}});
  CHECK(observe_value("x", [] { return 1.0; }).name() == "observe_x");
  CHECK(observe_value("x", [] { return 1.0; }).priority() == priority::writer);
}

TEST_CASE("observe_lr reports a learning rate", "[ext][observe_value]") {
  CHECK(seen_with(observe_lr(), "lr") == std::map<std::int64_t, double>{{3, 0.1}, {6, 0.1}});
  CHECK(seen_with(observe_lr({.key = "rate"}).triggered(every(5_iterations)), "rate") ==
        std::map<std::int64_t, double>{{5, 0.1}});
  CHECK(contains(message_of<option_error>([] { seen_with(observe_lr({.group = 1}), "lr"); }), "has 1 groups"));
  CHECK(contains(message_of<option_error>([] { seen_with(observe_lr({.optimizer = "adam"}), "lr"); }), "main"));
}

}  // namespace ext_observe_value_test

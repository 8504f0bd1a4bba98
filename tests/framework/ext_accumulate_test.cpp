#include "rondo/extensions/accumulate.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "rondo/error.hpp"
#include "rondo/event/once.hpp"
#include "rondo/report/observations.hpp"
#include "support/bare_loop.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"
#include "support/ranks.hpp"

namespace ext_accumulate_test {

using namespace rondo;
using namespace rondo::literals;
using namespace rondo::testing;

namespace {

using results = std::map<std::int64_t, double>;

const std::vector<double> numbers{1e8, 1e8 + 1, 1e8 + 2, 4.0, 6.0, 11.0};

/// What is reported as "y" after which iteration, of six in two epochs, that report the numbers as "x".
results seen_with(const extension& e, const std::optional<state::value>& from = std::nullopt,
                  std::optional<state::value>* kept = nullptr, std::int64_t keep_at = 0) {
  results seen;
  auto l = bare_loop(3,
                     [](context& ctx, int) {
                       ctx.report("x", numbers.at(static_cast<std::size_t>(ctx.iteration())));
                       ctx.report("one", 1.0);
                     },
                     {.max_epochs = 2});
  l | e | make_extension("seen", [&](context& ctx) {
    ctx.on<event::iteration_completed>([&] {
      if (const auto* found = ctx.reported().find("y")) seen[ctx.iteration()] = found->value();
    });
  });
  if (kept != nullptr) l | keep_state(keep_at, *kept);
  if (from) l | restore_state(*from);
  l.run();
  return seen;
}

}  // namespace

TEST_CASE("observations are gathered over each interval", "[ext][accumulate]") {
  CHECK(seen_with(average_accumulate({.source = "x", .target = "y"})) == results{{3, 1e8 + 1}, {6, 7.0}});
  CHECK(seen_with(max_accumulate({.source = "x", .target = "y"})) == results{{3, 1e8 + 2}, {6, 11.0}});
  CHECK(seen_with(min_accumulate({.source = "x", .target = "y", .trigger = every(2_iterations)})) ==
        results{{2, 1e8}, {4, 4.0}, {6, 6.0}});
  CHECK(seen_with(micro_average({.numerator_key = "x", .denominator_key = "one", .result_key = "y"})) ==
        results{{3, 1e8 + 1}, {6, 7.0}});
}

TEST_CASE("ppe defect 36: deviations of large numbers do not cancel", "[ext][accumulate][ppe]") {
  const auto deviations = seen_with(standard_deviation_accumulate({.source = "x", .target = "y"}));
  CHECK(deviations.at(3) == Approx(std::sqrt(2.0 / 3.0)));
  CHECK(deviations.at(6) == Approx(std::sqrt((9.0 + 1.0 + 16.0) / 3.0)));
  const auto unbiased = seen_with(unbiased_standard_deviation_accumulate({.source = "x", .target = "y"}));
  CHECK(unbiased.at(3) == Approx(1.0));
  const auto single =
      seen_with(unbiased_standard_deviation_accumulate({.source = "x", .target = "y", .trigger = every(1_iterations)}));
  CHECK(std::isnan(single.at(1)));
}

TEST_CASE("what was gathered survives a resume", "[ext][accumulate][resume]") {
  const auto make = [] {
    return standard_deviation_accumulate({.source = "x", .target = "y", .trigger = every(4_iterations) || once()});
  };
  const auto unbroken = seen_with(make());
  REQUIRE(unbroken.size() == 2);
  for (const std::int64_t at : {1, 2, 3, 5}) {
    INFO("interrupted after " << at);
    std::optional<state::value> kept;
    seen_with(make(), std::nullopt, &kept, at);
    auto rest = seen_with(make(), kept);
    for (const auto& [iteration, value] : unbroken)
      if (iteration > at) CHECK(rest.at(iteration) == value);
    CHECK(rest.size() == static_cast<std::size_t>(std::count_if(unbroken.begin(), unbroken.end(),
                                                                [&](const auto& one) { return one.first > at; })));
  }
}

TEST_CASE("ppe defect 27: what nobody has reported is an error that says what there is", "[ext][accumulate][ppe]") {
  const auto message =
      message_of<observation_error>([] { seen_with(average_accumulate({.source = "loss", .target = "y"})); });
  CHECK(contains(message, "loss"));
  CHECK(contains(message, "x"));
  CHECK_THROWS_AS(average_accumulate({.source = "", .target = "y"}), option_error);
  CHECK_THROWS_AS(max_accumulate({.source = "x", .target = ""}), option_error);
}

TEST_CASE("several ranks gather together, also one without observations", "[ext][accumulate][ranks]") {
  std::vector<results> seen(2);
  on_ranks(2, [&](const distributed::rank_group& group) {
    auto& mine = seen[static_cast<std::size_t>(group.rank())];
    auto l = bare_loop(3,
                       [&](context& ctx, int i) {
                         if (ctx.group().rank() == 0) ctx.report("x", i + 1.0);
                       },
                       {.max_epochs = 1, .group = group});
    l | average_accumulate({.source = "x", .target = "y"}) | make_extension("seen", [&](context& ctx) {
      ctx.on<event::iteration_completed>([&] {
        if (const auto* found = ctx.reported().find("y")) mine[ctx.iteration()] = found->value();
      });
    });
    l.run();
  });
  CHECK(seen[0] == results{{3, 2.0}});
  CHECK(seen[1] == results{{3, 2.0}});
}

}  // namespace ext_accumulate_test

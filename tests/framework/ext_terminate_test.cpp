#include "rondo/extensions/terminate.hpp"

#include <optional>

#include "rondo/error.hpp"
#include "support/bare_loop.hpp"
#include "support/catch.hpp"

namespace ext_terminate_test {

using namespace rondo;
using namespace rondo::literals;
using namespace rondo::testing;
using namespace std::chrono_literals;

namespace {

run_result run_with(const extension& e, std::int64_t iterations, const std::optional<state::value>& from = std::nullopt,
                    std::optional<state::value>* kept = nullptr) {
  auto l = bare_loop(3, [](context& ctx, int i) { ctx.report("loss", 1.0 / (i + 1)); }, {.max_iterations = iterations});
  l | e;
  if (kept != nullptr) l | keep_state(1, *kept);
  if (from) l | restore_state(*from);
  return l.run();
}

}  // namespace

TEST_CASE("terminate_on ends training after the iteration in which it is true", "[ext][terminate]") {
  const auto low = [](context& ctx) { return ctx.observed("loss") < 0.4; };
  const auto result = run_with(terminate_on(low, "the loss is low"), 9);
  CHECK(result.iteration == 3);
  CHECK(result.stop_reason == "the loss is low");
  CHECK(run_with(terminate_on(low).triggered(every(2_iterations)), 9).iteration == 6);
  CHECK(run_with(terminate_on([](context&) { return false; }), 4).iteration == 4);
}

TEST_CASE("time_limit ends training when its time is over", "[ext][terminate]") {
  const auto over = run_with(time_limit(1ns), 9);
  CHECK(over.iteration == 1);
  CHECK(over.stop_reason.starts_with("time limit of"));
  CHECK(run_with(time_limit(24h), 4).iteration == 4);
  CHECK_THROWS_AS(time_limit(0s), option_error);
}

TEST_CASE("time_limit counts earlier runs, unless told otherwise", "[ext][terminate][resume]") {
  std::optional<state::value> kept;
  run_with(time_limit(24h), 1, std::nullopt, &kept);
  REQUIRE(kept);
  auto& ours = kept->as<state::dict>().find("rondo")->as<state::dict>();
  REQUIRE(ours.contains("elapsed_time"));
  ours.insert_or_assign("elapsed_time", 7200.0);
  CHECK(run_with(time_limit(1h), 9, kept).iteration == 2);
  CHECK(run_with(time_limit(1h, {.this_run_only = true}), 9, kept).iteration == 9);
}

}  // namespace ext_terminate_test

#include "rondo/extensions/profile_report.hpp"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "rondo/async/trace.hpp"
#include "rondo/error.hpp"
#include "support/bare_loop.hpp"
#include "support/catch.hpp"
#include "support/small_loops.hpp"
#include "support/temporary_directory.hpp"

namespace ext_profile_report_test {

using namespace rondo;
using namespace rondo::literals;
using namespace rondo::testing;

namespace {

std::vector<nlohmann::json> lines(const std::filesystem::path& file) {
  std::vector<nlohmann::json> all;
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) all.push_back(nlohmann::json::parse(line));
  return all;
}

/// What lies under the keys of all lines but for the times.
std::vector<std::pair<int, int>> places(const std::filesystem::path& file) {
  std::vector<std::pair<int, int>> all;
  for (const auto& line : lines(file)) all.emplace_back(line["epoch"], line["iteration"]);
  return all;
}

}  // namespace

TEST_CASE("profile_report measures phases, events, extensions and spans of the user", "[ext][profile_report]") {
  temporary_directory dir;
  const problem p;
  auto l = p.loop({.max_epochs = 2, .out = dir.path()});
  l | profile_report() | make_extension("slow", [](context& ctx) {
    ctx.on<event::iteration_completed>([] { const trace::span mine("mine"); });
  });
  l.run();
  const auto all = lines(dir / "profile.jsonl");
  REQUIRE(all.size() == 2);
  // The iteration that the report belongs to is still going on.
  CHECK(all[0]["loop/iteration"]["count"] == 7);
  CHECK(all[1]["loop/iteration"]["count"] == 8);
  CHECK(all[0]["loop/step"]["count"] == 8);
  CHECK(all[0]["loop/update"]["count"] == 8);
  CHECK(all[1]["extension/slow"]["count"] == 8);
  CHECK(all[1]["user/mine"]["count"] == 8);
  CHECK(all[1].contains("event/iteration_completed"));
  CHECK(all[0]["spans_lost"] == 0);
  const auto& step = all[0]["loop/step"];
  CHECK(step["min"].get<double>() > 0.0);
  CHECK(step["min"] <= step["mean"]);
  CHECK(step["mean"] <= step["max"]);
  CHECK(step["total"].get<double>() == Approx(8 * step["mean"].get<double>()));
  CHECK(step["percent"].get<double>() > 0.0);
  CHECK(step["percent"].get<double>() < 100.0);
  CHECK(all[0]["extension/slow"]["total"] >= all[0]["user/mine"]["total"]);
}

TEST_CASE("profile_report: what is stored, what is reported, and the table", "[ext][profile_report]") {
  temporary_directory dir;
  std::ostringstream out;
  auto l = bare_loop(4, [](context&, int) { const trace::span mine("mine"); }, {.max_epochs = 1, .out = dir.path()});
  l | profile_report({.store_keys = {"loop", "user/mine"},
                      .report_keys = {"user", "loop/step"},
                      .trigger = every(2_iterations),
                      .filename = "p",
                      .out = &out});
  l.run();
  const auto all = lines(dir / "p");
  REQUIRE(all.size() == 2);
  CHECK(all[0].contains("user/mine"));
  CHECK(all[0].contains("loop/step"));
  CHECK_FALSE(all[0].contains("loop/iteration"));
  CHECK(all[0].size() == 6);
  CHECK(out.str().find("user/mine") != std::string::npos);
  CHECK(out.str().find("mean ms") != std::string::npos);
}

TEST_CASE("profile_report loses nothing in a long time between two lines", "[ext][profile_report]") {
  temporary_directory dir;
  const int n = 3 * static_cast<int>(trace::ring_capacity);
  auto l = bare_loop(n, [](context&, int) {}, {.max_epochs = 1, .out = dir.path()});
  l | profile_report({.store_keys = {"loop/step"}});
  l.run();
  const auto all = lines(dir / "profile.jsonl");
  REQUIRE(all.size() == 1);
  CHECK(all[0]["loop/step"]["count"] == n);
  CHECK(all[0]["spans_lost"] == 0);
}

TEST_CASE("profile_report: a killed and resumed run has the lines of the unbroken one", "[ext][profile_report]") {
  const auto run = [](const std::filesystem::path& out, std::int64_t iterations, std::int64_t keep,
                      std::optional<state::value>& kept, bool resume) {
    auto l = bare_loop(5, [](context&, int) {}, {.max_iterations = iterations, .out = out});
    l | profile_report({.trigger = every(3_iterations) || every(1_epochs)});
    if (resume)
      l | restore_state(*kept);
    else
      l | keep_state(keep, kept);
    l.run();
  };
  std::optional<state::value> none;
  temporary_directory whole;
  run(whole.path(), 14, 100, none, false);
  const auto expected = places(whole / "profile.jsonl");
  REQUIRE(expected.size() == 6);
  for (std::int64_t k = 1; k <= 13; k += 2) {
    CAPTURE(k);
    temporary_directory dir;
    std::optional<state::value> kept;
    run(dir.path(), std::min<std::int64_t>(k + 2, 14), k, kept, false);
    run(dir.path(), 14, 0, kept, true);
    CHECK(places(dir / "profile.jsonl") == expected);
    // What had been measured before the snapshot is there again, but for the iteration that was still open.
    if (k == 7) CHECK(lines(dir / "profile.jsonl").at(3)["loop/step"]["count"] == 3);
  }
}

TEST_CASE("profile_report: a fresh run replaces the file, or adds to it", "[ext][profile_report]") {
  temporary_directory dir;
  for (const bool append : {false, false, true}) {
    auto l = bare_loop(2, [](context&, int) {}, {.max_epochs = 1, .out = dir.path()});
    l | profile_report({.append = append});
    l.run();
    CHECK(lines(dir / "profile.jsonl").size() == (append ? 2 : 1));
  }
}

TEST_CASE("profile_report refuses what makes no sense", "[ext][profile_report]") {
  for (const auto* name : {"", "..", "a/b"}) {
    try {
      (void)profile_report({.filename = name});
      FAIL("no error");
    } catch (const option_error& e) {
      CHECK(e.option() == "filename");
    }
  }
  temporary_directory dir;
  std::optional<state::value> kept;
  auto first = bare_loop(2, [](context&, int) {}, {.max_epochs = 1, .out = dir.path()});
  first | profile_report() | keep_state(1, kept);
  first.run();
  auto& mine = kept->as<state::dict>()["extensions"].as<state::dict>()["profile_report"].as<state::dict>();
  mine["extension"].as<state::dict>()["position"] = -1;
  auto resumed = bare_loop(2, [](context&, int) {}, {.max_epochs = 2, .out = dir.path()});
  resumed | profile_report() | restore_state(*kept, {.strict_memory = true});
  try {
    resumed.run();
    FAIL("no error");
  } catch (const state_error& e) {
    CHECK(e.key() == "extensions.profile_report.extension");
    CHECK(std::string(e.what()).find("position") != std::string::npos);
  }
}

}  // namespace ext_profile_report_test

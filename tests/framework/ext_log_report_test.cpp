#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <string>
#include <vector>

#include "rondo/error.hpp"
#include "rondo/extensions/log_report.hpp"
#include "support/bare_loop.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/temporary_directory.hpp"

namespace ext_log_report_test {

using namespace rondo;
using namespace rondo::literals;
using namespace rondo::testing;

namespace {

const auto nothing = [](context&, int) {};

std::string content(const std::filesystem::path& file) {
  std::ifstream in(file);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write(const std::filesystem::path& file, const std::string& text) { std::ofstream(file) << text; }

std::vector<nlohmann::json> lines(const std::filesystem::path& file) {
  std::vector<nlohmann::json> all;
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) all.push_back(nlohmann::json::parse(line));
  return all;
}

std::string without_time(const std::string& log) {
  return std::regex_replace(log, std::regex(R"("elapsed_time":[0-9.e+-]+)"), R"("elapsed_time":0)");
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("log_report writes weighted means, one JSON object per line", "[extensions][log_report]") {
  temporary_directory dir;
  const std::vector<double> values{1, 2, 6};
  auto l = bare_loop(3,
                     [&](context& ctx, int i) {
                       ctx.report("loss", values[static_cast<std::size_t>(i)], i == 2 ? 2.0 : 1.0);
                       if (i == 1) ctx.report("rare", 0.5);
                     },
                     {.max_epochs = 2, .out = dir.path()});
  l | log_report();
  l.run();
  const std::string first = R"({"loss":3.75,"rare":0.5,"epoch":1,"iteration":3,"elapsed_time":)";
  CHECK(content(dir / "log").substr(0, first.size()) == first);
  const auto all = lines(dir / "log");
  REQUIRE(all.size() == 2);
  CHECK(all[1]["loss"] == 3.75);
  CHECK(all[1]["epoch"] == 2);
  CHECK(all[1]["iteration"] == 6);
  CHECK(all[1]["elapsed_time"].get<double>() >= all[0]["elapsed_time"].get<double>());
}

TEST_CASE("log_report writes null for what JSON has no number for", "[extensions][log_report]") {
  temporary_directory dir;
  std::vector<double> emitted;
  auto l = bare_loop(1,
                     [](context& ctx, int) {
                       ctx.report("nan", std::nan(""));
                       ctx.report("inf", std::numeric_limits<double>::infinity());
                       ctx.report("one", 1);
                     },
                     {.max_epochs = 1, .out = dir.path()});
  l | log_report() | make_extension("reader", [&](context& ctx) {
    ctx.on<extensions::log_entry>([&](const extensions::log_entry& entry) {
      CHECK(entry.source == "log_report");
      emitted = {entry.values.at("nan").number(), entry.values.at("one").number()};
    });
  });
  l.run();
  const auto all = lines(dir / "log");
  REQUIRE(all.size() == 1);
  CHECK(all[0]["nan"].is_null());
  CHECK(all[0]["inf"].is_null());
  CHECK(all[0]["one"] == 1.0);
  REQUIRE(emitted.size() == 2);
  CHECK(std::isnan(emitted[0]));
  CHECK(emitted[1] == 1.0);
}

TEST_CASE("log_report sees what is reported at the end of an epoch", "[extensions][log_report]") {
  temporary_directory dir;
  auto l = bare_loop(2, nothing, {.max_epochs = 1, .out = dir.path()});
  l | log_report() | make_extension("at_end", [](context& ctx) {
                       ctx.on<event::epoch_completed>([&ctx] { ctx.report("late", 4); });
                     }).at_priority(priority::editor);
  l.run();
  CHECK(lines(dir / "log").at(0)["late"] == 4.0);
}

TEST_CASE("log_report: append keeps the lines of an earlier training, but for a torn one", "[extensions][log_report]") {
  temporary_directory dir;
  const auto run = [&](bool append) {
    auto l = bare_loop(2, [](context& ctx, int i) { ctx.report("loss", i); }, {.max_epochs = 2, .out = dir.path()});
    l | log_report({.append = append});
    l.run();
  };
  write(dir / "log", "{\"epoch\":7}\n{\"epo");
  run(true);
  auto all = lines(dir / "log");
  REQUIRE(all.size() == 3);
  CHECK(all[0].at("epoch") == 7);
  CHECK(all[1].at("epoch") == 1);
  run(true);
  CHECK(lines(dir / "log").size() == 5);
  run(false);
  CHECK(lines(dir / "log").size() == 2);
}

TEST_CASE("log_report: chosen keys, another trigger, file and entry", "[extensions][log_report]") {
  temporary_directory dir;
  auto l = bare_loop(10,
                     [](context& ctx, int i) {
                       ctx.report("a", i);
                       ctx.report("b", i);
                       ctx.report("c", i);
                     },
                     {.max_iterations = 4, .out = dir.path()});
  l | log_report({.filename = "my.jsonl",
                  .trigger = every(2_iterations),
                  .keys = {"c", "a"},
                  .postprocess = [](state::dict& entry) {
                    entry.insert_or_assign("note", state::list{"x", 1, true, nullptr});
                  }});
  l.run();
  const auto text = content(dir / "my.jsonl");
  CHECK(text.starts_with(R"({"c":0.5,"a":0.5,"epoch":0,"iteration":2,)"));
  CHECK(contains(text, R"("note":["x",1,true,null]})"));
  CHECK(lines(dir / "my.jsonl").size() == 2);
}

TEST_CASE("log_report warns once of a key that nobody reports, and leaves it out", "[extensions][log_report]") {
  temporary_directory dir;
  captured_stderr said;
  auto l = bare_loop(1, [](context& ctx, int) { ctx.report("train/loss", 1); }, {.max_epochs = 3, .out = dir.path()});
  l | log_report({.keys = {"train/loss", "trian/loss"}});
  l.run();
  const auto text = said.text();
  CHECK(contains(text, "nobody has reported trian/loss so far; there are: train/loss"));
  CHECK(text.find("trian/loss") == text.rfind("trian/loss"));
  CHECK_FALSE(lines(dir / "log").at(0).contains("trian/loss"));
}

namespace {

/// Keys come and go, and where two come together, the later-known one is reported first.
void report_something(context& ctx, int i) {
  const double x = std::sin(static_cast<double>(ctx.iteration()) * 1.7);
  if (i == 3) ctx.report("every 5th", x * 3);
  if (i % 2 == 1) ctx.report("odd", x / 7);
  ctx.report("always", x, 1.0 + i);
  if (ctx.iteration() > 6) ctx.report("late", 1 / x);
}

loop logging_loop(const std::filesystem::path& out, std::int64_t iterations) {
  auto l = bare_loop(5, report_something, {.max_iterations = iterations, .out = out});
  l | log_report({.trigger = every(3_iterations) || every(1_epochs)});
  return l;
}

std::string unbroken_log(std::int64_t iterations) {
  temporary_directory dir;
  auto l = logging_loop(dir.path(), iterations);
  l.run();
  return without_time(content(dir / "log"));
}

}  // namespace

TEST_CASE("log_report: the log of a killed and resumed run equals the unbroken one", "[extensions][log_report]") {
  const auto expected = unbroken_log(14);
  REQUIRE(std::count(expected.begin(), expected.end(), '\n') == 6);
  for (std::int64_t k = 1; k <= 13; ++k) {
    for (const std::int64_t beyond : {0, 1, 4}) {  // iterations after the snapshot, which are lost
      CAPTURE(k, beyond);
      temporary_directory dir;
      std::optional<state::value> kept;
      auto killed = logging_loop(dir.path(), k + beyond);
      killed | keep_state(k, kept);
      killed.run();
      REQUIRE(kept);
      auto resumed = logging_loop(dir.path(), 14);
      resumed | restore_state(*kept);
      resumed.run();
      CHECK(without_time(content(dir / "log")) == expected);
    }
  }
}

TEST_CASE("log_report: a torn last line is cut off", "[extensions][log_report]") {
  const auto expected = unbroken_log(14);
  temporary_directory dir;
  std::optional<state::value> kept;
  auto killed = logging_loop(dir.path(), 7);
  killed | keep_state(7, kept);
  killed.run();
  write(dir / "log", content(dir / "log") + R"({"always":0.12)");
  auto resumed = logging_loop(dir.path(), 14);
  resumed | restore_state(*kept);
  resumed.run();
  CHECK(without_time(content(dir / "log")) == expected);
}

TEST_CASE("log_report: a log shorter than the snapshot says goes on at its last whole line",
          "[extensions][log_report]") {
  temporary_directory dir;
  std::optional<state::value> kept;
  auto killed = logging_loop(dir.path(), 7);
  killed | keep_state(7, kept);
  killed.run();
  const auto whole = content(dir / "log");
  const auto first = whole.substr(0, whole.find('\n') + 1);
  write(dir / "log", whole.substr(0, first.size() + 5));

  captured_stderr said;
  auto resumed = logging_loop(dir.path(), 9);
  resumed | restore_state(*kept);
  resumed.run();
  CHECK(contains(said.text(), "bytes when the snapshot was taken"));
  const auto log = content(dir / "log");
  CHECK(log.starts_with(first + "{"));
  const auto all = lines(dir / "log");
  REQUIRE(all.size() == 2);
  CHECK(all[1]["iteration"] == 9);
}

TEST_CASE("log_report: a fresh run replaces the log, a resumed one without a memory adds to it",
          "[extensions][log_report]") {
  temporary_directory dir;
  write(dir / "log", "{\"old\":1}\n");
  SECTION("fresh") {
    logging_loop(dir.path(), 3).run();
    CHECK(lines(dir / "log").size() == 1);
    CHECK_FALSE(contains(content(dir / "log"), "old"));
  }
  SECTION("resumed") {
    std::optional<state::value> kept;
    auto without_log = bare_loop(5, nothing, {.max_iterations = 2, .out = dir.path()});
    without_log | keep_state(2, kept);
    without_log.run();
    auto resumed = logging_loop(dir.path(), 3);
    resumed | restore_state(*kept);
    resumed.run();
    CHECK(lines(dir / "log").size() == 2);
    CHECK(contains(content(dir / "log"), "old"));
  }
}

TEST_CASE("log_report refuses file names that are none", "[extensions][log_report]") {
  for (const auto* name : {"", ".", "..", "a/b", "/tmp/log"}) {
    CAPTURE(name);
    try {
      (void)log_report({.filename = name});
      FAIL("no error");
    } catch (const option_error& e) {
      CHECK(e.option() == "filename");
      CHECK(contains(e.found(), name));
    }
  }
}

TEST_CASE("log_report fails before training when its file cannot be had", "[extensions][log_report]") {
  temporary_directory dir;
  int steps = 0;
  auto l = bare_loop(1, [&](context&, int) { ++steps; }, {.max_epochs = 1, .out = dir.path()});
  SECTION("a link") {
    write(dir / "elsewhere", "precious");
    std::filesystem::create_symlink(dir / "elsewhere", dir / "log");
    l | log_report();
    CHECK_THROWS_AS(l.run(), io_error);
    CHECK(content(dir / "elsewhere") == "precious");
  }
  SECTION("a directory") {
    std::filesystem::create_directory(dir / "log");
    l | log_report();
    CHECK_THROWS_AS(l.run(), io_error);
  }
  SECTION("another log") {
    l | log_report() | log_report().named("second");
    try {
      l.run();
      FAIL("no error");
    } catch (const io_error& e) {
      CHECK(contains(e.what(), "a file of its own"));
    }
  }
  CHECK(steps == 0);
}

TEST_CASE("log_report: postprocess may only add what JSON can hold", "[extensions][log_report]") {
  temporary_directory dir;
  auto l = bare_loop(1, nothing, {.max_epochs = 1, .out = dir.path()});
  l | log_report({.postprocess = [](state::dict& entry) { entry.insert_or_assign("t", at::Tensor()); }});
  try {
    l.run();
    FAIL("no error");
  } catch (const option_error& e) {
    CHECK(e.option() == "postprocess");
    CHECK(contains(e.found(), "Tensor under 't'"));
  }
}

TEST_CASE("log_report: a state that does not fit is refused", "[extensions][log_report]") {
  temporary_directory dir;
  std::optional<state::value> kept;
  auto first = logging_loop(dir.path(), 4);
  first | keep_state(4, kept);
  first.run();
  const auto log = content(dir / "log");
  kept->as<state::dict>()["extensions"]
      .as<state::dict>()["log_report"]
      .as<state::dict>()["extension"]
      .as<state::dict>()["position"] = -1;
  auto resumed = logging_loop(dir.path(), 9);
  resumed | restore_state(*kept, {.strict_memory = true});
  try {
    resumed.run();
    FAIL("no error");
  } catch (const state_error& e) {
    CHECK(e.key() == "extensions.log_report.extension");
    CHECK(contains(e.what(), "position"));
  }
  CHECK(content(dir / "log") == log);
}

}  // namespace ext_log_report_test

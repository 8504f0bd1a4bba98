#include "rondo/extensions/timeline_trace.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "rondo/async/trace.hpp"
#include "rondo/error.hpp"
#include "rondo/extensions/snapshot/snapshot.hpp"
#include "rondo/writing/thread_writer.hpp"
#include "support/bare_loop.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/small_loops.hpp"
#include "support/temporary_directory.hpp"

namespace ext_timeline_trace_test {

using namespace rondo;
using namespace rondo::literals;
using namespace rondo::testing;
using nlohmann::json;

namespace {

std::vector<json> events(const std::filesystem::path& file) {
  std::ifstream in(file);
  return json::parse(in)["traceEvents"];
}

std::int64_t count(const std::vector<json>& all, const std::string& category, const std::string& name) {
  return std::count_if(all.begin(), all.end(), [&](const json& e) {
    return e["ph"] != "e" && e["ph"] != "M" && e["cat"] == category && e["name"] == name;
  });
}

/// Each inside of another or apart from it.
bool nests(std::vector<json> spans) {
  std::sort(spans.begin(), spans.end(),
            [](const json& a, const json& b) { return a["ts"] != b["ts"] ? a["ts"] < b["ts"] : a["dur"] > b["dur"]; });
  constexpr double rounding = 0.0015;  // microseconds: each number has three decimals
  std::vector<double> ends;
  for (const auto& span : spans) {
    const double begin = span["ts"];
    const double end = begin + span["dur"].get<double>();
    while (!ends.empty() && ends.back() <= begin + rounding) ends.pop_back();
    if (!ends.empty() && end > ends.back() + rounding) return false;
    ends.push_back(end);
  }
  return true;
}

}  // namespace

TEST_CASE("timeline_trace shows loop, extensions, snapshots, writer and data workers", "[ext][timeline_trace]") {
  temporary_directory dir;
  const problem p;
  auto batches = data::tensor_dataset(p.x, p.y) | data::shuffle(7) | data::batch(4) | data::prefetch(3, 2);
  rondo::loop l(p.model, p.optimizer, batches, torch::nn::functional::mse_loss, {.max_epochs = 2, .out = dir.path()});
  l | timeline_trace() | snapshot({.writer = writers::thread()}) | make_extension("user's \"own\"", [](context& ctx) {
    ctx.on<event::iteration_completed>([] { const trace::span mine("mine"); });
  });
  l.run();
  const auto all = events(dir / "trace.json");
  CHECK(count(all, "loop", "iteration") == 16);
  CHECK(count(all, "loop", "batch") == 16);
  CHECK(count(all, "loop", "step") == 16);
  CHECK(count(all, "loop", "update") == 16);
  CHECK(count(all, "event", "iteration_completed") >= 16);
  CHECK(count(all, "extension", "user's \"own\"") == 16);
  CHECK(count(all, "extension", "snapshot") >= 2);
  CHECK(count(all, "user", "mine") == 16);
  CHECK(count(all, "data", "make") == 16);
  CHECK(count(all, "snapshot", "snapshot") == 2);
  CHECK(count(all, "snapshot", "plan") >= 2);
  CHECK(count(all, "snapshot", "capture") == 2);
  CHECK(count(all, "snapshot", "copy") == 2);
  for (const auto* phase : {"write", "sync", "commit"}) CHECK(count(all, "writer", phase) >= 2);

  std::map<int, std::vector<json>> by_thread;
  std::map<int, std::string> names;
  std::map<std::string, int> begun;
  for (const auto& e : all) {
    CHECK(e["pid"] == 0);
    if (e["ph"] == "X") by_thread[e["tid"]].push_back(e);
    if (e["ph"] == "M" && e["name"] == "thread_name") names[e["tid"]] = e["args"]["name"];
    if (e["ph"] == "b") ++begun[e["id"].dump()];
    if (e["ph"] == "e") --begun[e["id"].dump()];
  }
  for (const auto& [thread, spans] : by_thread) {
    CAPTURE(thread, names[thread]);
    CHECK(nests(spans));
    CHECK(names.contains(thread));
  }
  for (const auto& [id, open] : begun) CHECK(open == 0);
  std::set<std::string> kinds;
  for (const auto& [thread, name] : names) kinds.insert(name.substr(0, name.find_last_not_of("0123456789") + 1));
  for (const auto* name : {"training", "writer", "copier", "rondo-data-"}) CHECK(kinds.contains(name));
}

TEST_CASE("timeline_trace: enabled and disabled by triggers", "[ext][timeline_trace]") {
  temporary_directory dir;
  bool on_in_third = true;
  auto l = bare_loop(10,
                     [&](context& ctx, int) {
                       if (ctx.iteration() == 2) on_in_third = trace::on();
                     },
                     {.max_epochs = 1, .out = dir.path()});
  l | timeline_trace({.enable = rondo::at({3_iterations}), .disable = rondo::at({6_iterations})});
  l.run();
  std::vector<int> iterations;
  for (const auto& e : events(dir / "trace.json"))
    if (e["name"] == "iteration") iterations.push_back(e["args"]["iteration"]);
  CHECK(iterations == std::vector<int>{4, 5});
  CHECK_FALSE(on_in_third);
}

TEST_CASE("timeline_trace ends with a warning when it has enough", "[ext][timeline_trace]") {
  temporary_directory dir;
  captured_stderr said;
  auto l = bare_loop(50, [](context&, int) {}, {.max_epochs = 2, .out = dir.path()});
  l | timeline_trace({.max_events = 20});
  l.run();
  const auto all = events(dir / "trace.json");
  CHECK(std::count_if(all.begin(), all.end(), [](const json& e) { return e["ph"] != "M" && e["ph"] != "e"; }) == 20);
  const auto text = said.text();
  const std::string warning = "20 spans have been recorded";
  CHECK(text.find(warning) != std::string::npos);
  CHECK(text.find(warning) == text.rfind(warning));
}

TEST_CASE("timeline_trace: the file is valid all the time, and goes on when a run is resumed",
          "[ext][timeline_trace]") {
  temporary_directory dir;
  std::optional<state::value> kept;
  std::size_t sizes = 0;
  auto first = bare_loop(5, [](context&, int) {}, {.max_iterations = 8, .out = dir.path()});
  first | timeline_trace({.trigger = every(1_iterations)}) | keep_state(6, kept) |
      make_extension("reader", [&](context& ctx) {
        ctx.on<event::iteration_completed>([&] {
          if (std::filesystem::exists(dir / "trace.json")) sizes += events(dir / "trace.json").size();
        });
      });
  first.run();
  const auto before = events(dir / "trace.json");
  auto resumed = bare_loop(5, [](context&, int) {}, {.max_iterations = 12, .out = dir.path()});
  resumed | timeline_trace({.trigger = every(1_iterations)}) | restore_state(*kept);
  resumed.run();
  const auto all = events(dir / "trace.json");
  std::vector<int> iterations;
  for (const auto& e : all)
    if (e["name"] == "iteration") iterations.push_back(e["args"]["iteration"]);
  CHECK(std::is_sorted(iterations.begin(), iterations.end()));
  CHECK(iterations.back() == 12);
  CHECK(std::set<int>(iterations.begin(), iterations.end()).size() == iterations.size());
  CHECK(all.front() == before.front());
}

TEST_CASE("timeline_trace refuses options that make no sense", "[ext][timeline_trace]") {
  const auto refused = [](timeline_trace_options options) -> std::string {
    try {
      (void)timeline_trace(std::move(options));
      return "nothing";
    } catch (const option_error& e) {
      return e.option();
    }
  };
  CHECK(refused({.filename = "a/b"}) == "filename");
  CHECK(refused({.max_events = 0}) == "max_events");
}

TEST_CASE("a training that cannot begin fails with its own error, traced or not", "[ext][timeline_trace]") {
  const temporary_directory dir;
  std::ofstream(dir / "file").put('x');
  const problem p;
  auto l = p.loop({.max_epochs = 1, .out = dir / "file" / "out"});
  l | timeline_trace();
  CHECK_THROWS_AS(l.run(), option_error);
}

}  // namespace ext_timeline_trace_test

// One extension object in two loops, one after the other, as in a sweep: the second run begins anew.

#include <torch/nn/functional/loss.h>
#include <torch/types.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rondo/event/early_stopping.hpp"
#include "rondo/event/once.hpp"
#include "rondo/event/time_interval.hpp"
#include "rondo/event/value_trigger.hpp"
#include "rondo/extensions.hpp"
#include "support/catch.hpp"
#include "support/small_loops.hpp"
#include "support/temporary_directory.hpp"

namespace ext_twice_test {

using namespace rondo;
using namespace rondo::literals;
using rondo::testing::problem;
using rondo::testing::temporary_directory;
namespace fs = std::filesystem;

namespace {

/// What takes part in a run, and where it prints to.
using cast = std::vector<extension>;

/// What a run leaves behind, without what depends on time.
struct outcome {
  std::string weights;
  std::map<std::string, std::string> files;
  state::dict memories;
};

bool depends_on_time(const std::string& file) {
  return file.starts_with("profile") || file.starts_with("timeline") || file.starts_with("events.out");
}

std::string text_of(const fs::path& file) {
  std::ifstream from(file);
  std::ostringstream text;
  for (std::string line; std::getline(from, line); text << '\n') {
    if (file.filename() != "log") {
      text << line;
      continue;
    }
    auto entry = nlohmann::ordered_json::parse(line);
    entry.erase("elapsed_time");
    text << entry;
  }
  return text.str();
}

/// A log's lines hold times, so that their lengths differ.
state::value without_place(const state::value& memory) {
  auto copy = state::clone(memory);
  auto* const own = copy.as<state::dict>()["extension"].get_if<state::dict>();
  if (own != nullptr && own->contains("position")) own->insert_or_assign("position", 0);
  return copy;
}

outcome train(const cast& all, std::int64_t iterations) {
  const temporary_directory out;
  problem p;
  auto l = p.loop({.max_iterations = iterations, .out = out.path()});
  outcome left;
  for (const auto& one : all) l | one;
  l | make_extension("memories", [&](context& ctx) {
        ctx.on<event::training_completed>([&] {
          const auto whole = ctx.state_dict();
          for (const auto& [name, memory] : whole.at("extensions").as<state::dict>())
            if (name.str() != "profile_report" && name.str() != "timeline_trace")
              left.memories.insert_or_assign(name, without_place(memory));
        });
      }).at_priority(priority::reader + 50);
  l.run();
  left.weights = p.digest();
  for (const auto& entry : fs::recursive_directory_iterator(out.path())) {
    const auto name = entry.path().filename().string();
    if (!entry.is_regular_file()) continue;
    const bool by_content = name == "log";
    left.files[name.starts_with("events.out") ? "events" : name] =
        by_content && !depends_on_time(name) ? text_of(entry.path()) : "is there";
  }
  return left;
}

void require_equal(const outcome& again, const outcome& fresh) {
  CHECK(again.weights == fresh.weights);
  CHECK(again.files == fresh.files);
  for (const auto& [name, memory] : fresh.memories) {
    INFO(name.str());
    CHECK(state::equal(again.memories.at(name), memory));
  }
}

data::tensor_dataset some_data() { return data::tensor_dataset(torch::ones({8, 1}), torch::ones({8, 1})); }

/// A log, for those that have something to say to one.
extension frequent_log() { return log_report({.trigger = every(3_iterations)}).named("frequent"); }

std::ostringstream& sink() {
  static std::ostringstream text;
  return text;
}

extension with_writer(std::shared_ptr<writing::writer> writer) {
  return snapshot({.n_retains = 2, .writer = std::move(writer)}).triggered(every(4_iterations));
}

}  // namespace

TEST_CASE("every ready-made extension begins anew in a second loop", "[extension][twice]") {
  using make = std::function<cast()>;
  const auto [name, made] = GENERATE(table<std::string, make>({
      {"log_report", [] { return cast{log_report({.trigger = every(5_iterations)})}; }},
      {"log_report with a writer",
       [] { return cast{log_report({.trigger = every(5_iterations), .writer = writers::tensorboard()})}; }},
      {"print_report",
       [] {
         return cast{log_report(), print_report({}, {.out = &sink()})};
       }},
      {"progress_bar", [] { return cast{progress_bar({.out = &sink()})}; }},
      {"dashboard", [] { return cast{dashboard({.out = &sink()})}; }},
      {"lr_scheduler",
       [] {
         return cast{
             lr_scheduler(schedules::warm_up(
                 3_iterations,
                 schedules::chained({schedules::cosine(20_iterations),
                                     schedules::reduce_on_plateau(
                                         {.monitor = "train/loss", .patience = 0, .check = every(2_iterations)})}))),
             log_report({.trigger = every(1_iterations)})};
       }},
      {"evaluator",
       [] {
         return cast{evaluator(some_data() | data::batch(3), {.final = true}).triggered(every(5_iterations) || once()),
                     log_report({.trigger = every(5_iterations), .final = true})};
       }},
      {"accumulators",
       [] {
         const accumulate_options mean{.source = "train/loss", .target = "mean", .trigger = every(4_iterations)};
         return cast{average_accumulate(mean), log_report({.trigger = every(1_iterations)})};
       }},
      {"freeze_until", [] { return cast{freeze_until("bias", rondo::at({5_iterations}))}; }},
      {"ema", [] { return cast{ema({.decay = 0.9, .warm_up = true})}; }},
      {"swa", [] { return cast{swa({.every = 3_iterations})}; }},
      {"observers",
       [] {
         return cast{observe_lr(), log_report({.trigger = every(1_iterations)})};
       }},
      {"guards",
       [] {
         return cast{fail_on_non_number(), time_limit(std::chrono::hours(1)),
                     terminate_on([](context& ctx) { return ctx.iteration() == 9; })};
       }},
      {"profile_report", [] { return cast{profile_report({.trigger = every(5_iterations)})}; }},
      {"timeline_trace", [] { return cast{timeline_trace()}; }},
      {"a value trigger",
       [] { return cast{snapshot({.filename = "best"}).triggered(min_value("train/loss", every(1_iterations)))}; }},
      {"a time trigger",
       [] {
         return cast{frequent_log(), snapshot().triggered(time_interval(std::chrono::hours(1)))};
       }},
      {"snapshot by retention",
       [] { return cast{snapshot({.retain = retain::best(2, "train/loss")}).triggered(every(2_iterations))}; }},
      {"snapshot, simple writer", [] { return cast{with_writer(writers::simple())}; }},
      {"snapshot, thread writer", [] { return cast{with_writer(writers::thread())}; }},
      {"snapshot, thread queue", [] { return cast{with_writer(writers::thread_queue())}; }},
      {"snapshot, process writer", [] { return cast{with_writer(writers::process())}; }},
      {"snapshot, process queue", [] { return cast{with_writer(writers::process_queue())}; }},
  }));
  CAPTURE(name);
  const auto fresh = train(made(), 12);
  const auto used = made();
  static_cast<void>(train(used, 17));
  require_equal(train(used, 12), fresh);
}

TEST_CASE("an extension that is renamed from itself keeps its name", "[extension][twice]") {
  auto e = log_report();
  e = std::move(e).triggered(every(1_iterations));
  CHECK(e.name() == "log_report");
  e = std::move(e).at_priority(7);
  CHECK(e.name() == "log_report");
  CHECK(e.priority() == 7);
}

TEST_CASE("the tail after the last line is logged and evaluated when training ends, if asked for",
          "[extension][final]") {
  const auto lines = [](bool final) {
    const temporary_directory out;
    problem p;
    auto l = p.loop({.max_iterations = 20, .out = out.path()});
    l | evaluator(some_data() | data::batch(3), {.final = final}).triggered(every(7_iterations));
    l | log_report({.trigger = every(7_iterations), .final = final});
    std::ostringstream table;
    l | print_report({"iteration", "validation/loss"}, {.out = &table});
    l.run();
    std::ifstream file(out / "log");
    std::vector<std::int64_t> iterations;
    for (std::string line; std::getline(file, line);) {
      const auto entry = nlohmann::json::parse(line);
      CHECK(entry.contains("validation/loss"));
      CHECK(entry.contains("train/loss"));
      iterations.push_back(entry["iteration"]);
      CHECK(table.str().find(std::to_string(iterations.back())) != std::string::npos);
    }
    return iterations;
  };
  CHECK(lines(false) == std::vector<std::int64_t>{7, 14});
  CHECK(lines(true) == std::vector<std::int64_t>{7, 14, 20});
}

TEST_CASE("a finished run that is started again logs and evaluates nothing", "[extension][final][resume]") {
  const temporary_directory out;
  const auto run = [&] {
    problem p;
    auto l = p.loop({.max_iterations = 20, .out = out.path()});
    l | evaluator(some_data() | data::batch(3), {.final = true}).triggered(every(10_iterations));
    l | log_report({.trigger = every(10_iterations), .final = true});
    l | snapshot({.filename = "last", .autoload = true, .final = true});
    l.run();
    std::ifstream file(out / "log");
    std::vector<std::int64_t> iterations;
    for (std::string line; std::getline(file, line);) iterations.push_back(nlohmann::json::parse(line)["iteration"]);
    return iterations;
  };
  CHECK(run() == std::vector<std::int64_t>{10, 20});
  CHECK(run() == std::vector<std::int64_t>{10, 20});
}

TEST_CASE("one extension under two names in a loop is two", "[extension][twice]") {
  const temporary_directory out;
  problem p;
  auto l = p.loop({.max_iterations = 4, .out = out.path()});
  const auto e = average_accumulate({.source = "train/loss", .target = "mean", .trigger = every(2_iterations)});
  l | e | extension(e).named("other") | log_report({.trigger = every(1_iterations)});
  l.run();
  std::ifstream file(out / "log");
  std::string line;
  while (std::getline(file, line)) CHECK(nlohmann::json::parse(line).contains("train/loss"));
}

TEST_CASE("columns that nobody has chosen appear when they come", "[extension][print_report]") {
  const temporary_directory out;
  problem p;
  auto l = p.loop({.max_iterations = 4, .out = out.path()});
  std::ostringstream table;
  l | make_extension("late", [](context& ctx) {
        ctx.on<event::iteration_completed>([&ctx] {
          if (ctx.iteration() >= 3) ctx.report("late/value", 42.0);
        });
      }).at_priority(priority::writer);
  l | log_report({.trigger = every(1_iterations)}) | print_report({}, {.out = &table});
  l.run();
  CHECK(table.str().find("late/value") != std::string::npos);
  CHECK(table.str().find("42") != std::string::npos);
}

TEST_CASE("a longer schedule counts from the first iteration of a resumed run on",
          "[extension][lr_scheduler][resume]") {
  const auto rates = [](period length, trigger when, const state::value* from, state::value* saved, std::int64_t end) {
    problem p;
    std::vector<double> seen;
    auto l = p.loop({.max_iterations = end});
    l | lr_scheduler(schedules::cosine(length)).triggered(std::move(when));
    l | make_extension("look", [&](context& ctx) {
      ctx.on<event::iteration_completed>([&] { seen.push_back(ctx.observed("lr")); });
      if (from != nullptr) ctx.on<event::restoring>([&, from] { ctx.load_state_dict(*from); });
      ctx.on<event::training_completed>([&] {
        if (saved != nullptr) *saved = state::clone(ctx.state_dict());
      });
    });
    l.run();
    return seen;
  };
  for (const auto& when : {every(1_iterations), every(1_epochs)}) {
    INFO(when.str());
    const auto whole = rates(4_epochs, when, nullptr, nullptr, 32);
    state::value saved;
    static_cast<void>(rates(2_epochs, when, nullptr, &saved, 16));
    const auto rest = rates(4_epochs, when, &saved, nullptr, 32);
    CHECK(rest == std::vector<double>(whole.begin() + 16, whole.end()));
  }
}

TEST_CASE("a log whose trigger has changed goes on where it was, without a line twice",
          "[extension][log_report][resume]") {
  const auto policy = GENERATE(state::mismatch::strict, state::mismatch::warn);
  const temporary_directory out;
  const auto run = [&](trigger when, std::int64_t iterations, bool resume) {
    problem p;
    auto l = p.loop({.max_iterations = iterations, .out = out.path()});
    l | log_report({.trigger = std::move(when)});
    l | snapshot({.filename = "last", .autoload = resume, .load = {.on_mismatch = policy}})
            .triggered(rondo::at({4_iterations}));
    l.run();
  };
  run(every(1_iterations), 6, false);
  run(min_value("train/loss", every(1_iterations)) || every(1_iterations), 8, true);
  std::ifstream file(out / "log");
  std::vector<std::int64_t> iterations;
  for (std::string line; std::getline(file, line);) iterations.push_back(nlohmann::json::parse(line)["iteration"]);
  CHECK(iterations == std::vector<std::int64_t>{1, 2, 3, 4, 5, 6, 7, 8});
}

TEST_CASE("a log may have a file for each epoch, also over a resume", "[extension][log_report][resume]") {
  const auto files = [](std::int64_t interrupted_at) {
    const temporary_directory out;
    const auto run = [&](std::int64_t iterations) {
      problem p;
      auto l = p.loop({.max_iterations = iterations, .out = out.path()});
      l | log_report({.filename = "log_{epoch:02}", .trigger = every(3_iterations)});
      l | snapshot({.filename = "last", .autoload = true}).triggered(rondo::at({10_iterations, 15_iterations}));
      l.run();
    };
    if (interrupted_at > 0) run(interrupted_at);
    run(24);
    std::map<std::string, std::vector<std::int64_t>> lines;
    for (const auto& entry : fs::directory_iterator(out.path())) {
      const auto name = entry.path().filename().string();
      if (!name.starts_with("log_")) continue;
      std::ifstream file(entry.path());
      for (std::string line; std::getline(file, line);) lines[name].push_back(nlohmann::json::parse(line)["iteration"]);
    }
    return lines;
  };
  using numbers = std::vector<std::int64_t>;
  const auto unbroken = files(0);
  CHECK(unbroken == std::map<std::string, numbers>{
                        {"log_00", {3, 6}}, {"log_01", {9, 12, 15}}, {"log_02", {18, 21}}, {"log_03", {24}}});
  CHECK(files(14) == unbroken);
  CHECK(files(20) == unbroken);
}

}  // namespace ext_twice_test

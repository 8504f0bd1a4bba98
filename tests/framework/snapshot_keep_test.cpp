// What a user keeps stays what it is.

#include <sys/fsuid.h>
#include <torch/types.h>
#include <unistd.h>

#include <csignal>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "rondo/error.hpp"
#include "rondo/event/interval.hpp"
#include "rondo/event/value_trigger.hpp"
#include "rondo/extensions/snapshot/snapshot.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/counting_loop.hpp"
#include "support/default_dispositions.hpp"
#include "support/messages.hpp"
#include "support/temporary_directory.hpp"

namespace snapshot_keep_test {

using namespace rondo;
using namespace rondo::literals;
using rondo::testing::captured_stderr;
using rondo::testing::contains;
using rondo::testing::counting;
using rondo::testing::message_of;
using rondo::testing::temporary_directory;
using rondo::testing::the_number_in;
namespace fs = std::filesystem;

namespace {

/// Reports a loss that is smallest after the second iteration, and does `then` after the fifth.
extension losses(std::function<task<>(context&)> then = nullptr) {
  auto subscribe = [then = std::move(then)](context& ctx) {
    ctx.on<event::iteration_completed>([&ctx, then]() -> task<> {
      ctx.report("validation/loss", ctx.iteration() == 2 ? 1.0 : 5.0);
      if (ctx.iteration() == 5 && then) return then(ctx);
      return acknowledged(std::nullopt);
    });
  };
  return make_extension("losses", subscribe).at_priority(priority::writer);
}

extension best(snapshot_options options = {}) {
  options.filename = "best";
  return snapshot(std::move(options)).named("best").triggered(min_value("validation/loss", every(1_iterations)));
}

task<> ask_by_signal(int number) {
  std::raise(number);
  co_return;
}

task<> ask(context& ctx) {
  ctx.request_snapshot();
  co_return;
}

using asking = std::function<task<>(context&)>;

}  // namespace

TEST_CASE("the best file stays the best, whoever wants a snapshot", "[snapshot][keep]") {
  const auto [what, asks] = GENERATE(table<std::string, asking>({
      {"SIGTERM", [](context&) { return ask_by_signal(SIGTERM); }},
      {"SIGUSR1", [](context&) { return ask_by_signal(SIGUSR1); }},
      {"request_snapshot", [](context& ctx) { return ask(ctx); }},
      {"snapshot", [](context& ctx) { return ctx.snapshot(); }},
  }));
  const bool with_another = GENERATE(false, true);
  CAPTURE(what, with_another);
  const rondo::testing::default_dispositions nobody_else;
  const temporary_directory dir;
  const counting training;
  auto loop = training.loop(dir.path(), 400);
  loop | losses(asks) | best();
  if (with_another) loop | snapshot().triggered(every(300_iterations));
  const auto result = loop.run();
  CHECK(the_number_in(dir / "best") == 2.0);
  const auto preempted = dir / "best.preempted";
  REQUIRE(fs::exists(preempted) == !with_another);
  if (!with_another) {
    CHECK(the_number_in(preempted) >= 5.0);
    if (what == "SIGTERM") CHECK(the_number_in(preempted) == static_cast<double>(result.iteration));
  }
  CHECK((result.signal.has_value()) == (what == "SIGTERM"));
}

TEST_CASE("training goes on from what was taken beside the best one, and removes it when there is a newer one",
          "[snapshot][keep][resume]") {
  const rondo::testing::default_dispositions nobody_else;
  const temporary_directory dir;
  {
    const counting training;
    auto loop = training.loop(dir.path(), 400);
    loop | losses([](context&) { return ask_by_signal(SIGTERM); }) | best();
    CHECK(loop.run().signal == SIGTERM);
  }
  const auto stopped_at = the_number_in(dir / "best.preempted");
  const counting training;
  auto loop = training.loop(dir.path(), 500);
  loop | losses() | best({.autoload = true, .final = true});
  const auto result = loop.run();
  REQUIRE(result.resumed_from);
  CHECK(result.resumed_from->filename() == "best.preempted");
  CHECK(the_number_in(dir / "best") == 2.0);
  CHECK(stopped_at < 500.0);
  CHECK(the_number_in(dir / "best.preempted") == 500.0);
}

TEST_CASE("names with numbers leave one preempted file, which retention does not count", "[snapshot][keep]") {
  const temporary_directory dir;
  const counting training;
  auto loop = training.loop(dir.path(), 12);
  const auto twice = make_extension("twice", [](context& ctx) {
    ctx.on<event::iteration_completed>([&ctx] {
      if (ctx.iteration() == 6 || ctx.iteration() == 9) ctx.request_snapshot();
    });
  });
  loop | losses() | twice | snapshot({.n_retains = 1}).triggered(min_value("validation/loss", every(1_iterations)));
  loop.run();
  CHECK(the_number_in(dir / "snapshot_iter_2") == 2.0);
  CHECK(the_number_in(dir / "snapshot_iter_9.preempted") == 9.0);
  CHECK_FALSE(fs::exists(dir / "snapshot_iter_6.preempted"));
  CHECK_FALSE(fs::exists(dir / "snapshot_iter_1"));
}

TEST_CASE("retention by a value that nobody reports removes nothing, and says so once", "[snapshot][keep]") {
  const bool known = GENERATE(false, true);
  const temporary_directory dir;
  const counting training;
  auto loop = training.loop(dir.path(), 30);  // 10 iterations each epoch
  loop | losses() |
      snapshot({.retain = retain::best(1, known ? "validation/loss" : "validation/acuracy", retain::min)})
          .triggered(every(5_iterations));
  captured_stderr messages;
  loop.run();
  const auto text = messages.text();
  int files = 0;
  for (int iteration = 5; iteration <= 30; iteration += 5)
    files += fs::exists(dir / ("snapshot_iter_" + std::to_string(iteration))) ? 1 : 0;
  CHECK(files == (known ? 1 : 6));
  const auto first = text.find("nobody has reported 'validation/acuracy'");
  CHECK((first == std::string::npos) == known);
  if (known) return;
  CHECK(contains(text, "validation/loss"));
  CHECK(text.find("nobody has reported", first + 1) == std::string::npos);
}

TEST_CASE("two snapshots with one file name are refused before training", "[snapshot][keep]") {
  const temporary_directory dir;
  const counting training;
  int steps = 0;
  auto loop = training.loop(dir.path(), 3, [&](context&) { ++steps; });
  loop | snapshot({.filename = "last"}).named("one") | snapshot({.filename = "last"}).named("other");
  const auto message = message_of<option_error>([&] { loop.run(); });
  CHECK(contains(message, "'last'"));
  CHECK(contains(message, "'one'"));
  CHECK(contains(message, "'other'"));
  CHECK(steps == 0);
}

TEST_CASE("a newest snapshot that may not be read is an error, and no older one is taken", "[snapshot][keep][resume]") {
  const auto mode = GENERATE(snapshot_mode::standard, snapshot_mode::sharded);
  const temporary_directory dir;
  fs::permissions(dir.path(), fs::perms::all);
  const auto train = [&](std::int64_t iterations, bool autoload) {
    const counting training;
    auto loop = training.loop(dir.path(), iterations);
    loop | snapshot({.n_retains = 2, .autoload = autoload, .mode = mode}).triggered(every(1_iterations));
    loop.run();
  };
  train(2, false);
  for (const auto& entry : fs::recursive_directory_iterator(dir.path())) fs::permissions(entry.path(), fs::perms::all);
  fs::permissions(dir / "snapshot_iter_2", fs::perms::none);
  // The superuser may read everything, so he is somebody else for a while: this thread, which reads.
  const bool privileged = ::geteuid() == 0;
  if (privileged) ::setfsuid(65534);
  const auto message = rondo::testing::refusal_of<io_error>([&] { train(4, true); });
  // Whoever does not want to go on from it is not kept from anything.
  const auto afresh = rondo::testing::refusal_of<std::exception>([&] { train(1, false); });
  if (privileged) ::setfsuid(0);
  fs::permissions(dir / "snapshot_iter_2", fs::perms::all);
  CHECK(contains(message, "snapshot_iter_2"));
  CHECK(contains(message, "Permission denied"));
  CHECK(afresh.empty());
}

TEST_CASE("of two snapshots with autoload the newest file counts, whichever is attached first",
          "[snapshot][keep][resume]") {
  const bool best_first = GENERATE(false, true);
  const temporary_directory dir;
  const auto run = [&](std::int64_t iterations) {
    const counting c;
    auto l = c.loop(dir.path(), iterations);
    const auto last = [] { return snapshot({.filename = "last", .autoload = true}).triggered(every(4_iterations)); };
    l | losses();
    if (!best_first) l | last();
    l | best({.autoload = true});
    if (best_first) l | last();
    return l.run();
  };
  static_cast<void>(run(12));  // "best" is of iteration 2, "last" of 12
  const auto result = run(14);
  REQUIRE(result.resumed_from == dir / "last");
  REQUIRE(result.iteration == 14);
}

TEST_CASE("a resume_from comes before every autoload", "[snapshot][keep][resume]") {
  const temporary_directory dir;
  const counting first;
  auto l = first.loop(dir.path(), 12);
  l | snapshot().triggered(every(4_iterations));
  l.run();
  const counting second;
  auto resumed = second.loop(dir.path(), 13);
  resumed | snapshot({.resume_from = dir / "snapshot_iter_4"}).named("other").triggered(every(1000_iterations));
  resumed | snapshot({.filename = "snapshot_iter_{iteration}_", .autoload = true}).triggered(every(1000_iterations));
  REQUIRE(resumed.run().resumed_from == dir / "snapshot_iter_4");
}

TEST_CASE("a newest snapshot that cannot be read for want of resources ends the start", "[snapshot][keep][resume]") {
  const auto want = GENERATE(as<std::string>{}, "memory", "descriptors", "device");
  const temporary_directory dir;
  const counting first;
  auto l = first.loop(dir.path(), 8);
  l | snapshot().triggered(every(4_iterations));
  l.run();
  const counting second;
  auto resumed = second.loop(dir.path(), 12);
  snapshot_options options{.autoload = true};
  options.validator = [&](const fs::path& file, const state::value&) {
    if (want == "memory") throw std::bad_alloc();
    throw io_error("read", file,
                   std::make_error_code(want == "device" ? std::errc::io_error : std::errc::too_many_files_open));
  };
  resumed | snapshot(std::move(options)).triggered(every(4_iterations));
  if (want == "memory")
    REQUIRE_THROWS_AS(resumed.run(), std::bad_alloc);
  else
    REQUIRE_THROWS_AS(resumed.run(), io_error);
}

TEST_CASE("groups that a run has added to its optimizer are added before its state is loaded", "[snapshot][resume]") {
  const temporary_directory dir;
  const auto run = [&](std::int64_t iterations) {
    const counting c(2);
    torch::optim::SGD optimizer({c.model->parameters()[0]}, torch::optim::SGDOptions(1.0));
    auto step = [model = c.model](context&, int&) -> at::Tensor { return model->minus_sum(); };
    rondo::loop l(models{{"main", c.model}}, optimizers(optimizer), ranges::views::ints(0, 10), step,
                  {.max_iterations = iterations, .out = dir.path()});
    const auto add = [&] { optimizer.add_param_group(torch::optim::OptimizerParamGroup({c.model->parameters()[1]})); };
    l | make_extension("grows", [&, add](context& ctx) {
      ctx.on<event::iteration_completed>([&, add] {
        if (ctx.iteration() == 3) add();
      });
      ctx.on<event::state_found>([&, add](const event::state_found& e) {
        const auto& groups = e.state.at("optimizers").at("main").get<state::list>("param_groups");
        while (optimizer.param_groups().size() < groups.size()) add();
      });
    });
    l | snapshot({.autoload = true}).triggered(every(5_iterations));
    const auto result = l.run();
    return std::pair(result.iteration, c.model->parameters()[1][0].item<double>());
  };
  REQUIRE(run(5) == std::pair(std::int64_t{5}, 2.0));
  REQUIRE(run(7) == std::pair(std::int64_t{7}, 4.0));
}

TEST_CASE("who goes on from an .error snapshot does what was left undone", "[snapshot][error][resume]") {
  const std::string where = GENERATE("iteration", "epoch", "posted");
  CAPTURE(where);
  const temporary_directory dir;
  std::vector<std::string> seen;
  const auto run = [&](bool fail, bool resume) {
    const counting c;
    auto l = c.loop(dir.path(), 10);
    struct notice {};
    l | make_extension("before", [&](context& ctx) {
          ctx.on<event::iteration_completed>([&] { seen.push_back("b" + std::to_string(ctx.iteration())); });
          ctx.on<event::epoch_completed>([&] { seen.push_back("be"); });
        }).at_priority(priority::writer);
    l | make_extension("validation", [&, fail](context& ctx) {
          const auto validate = [&, fail](const char* text) {
            if (fail && ctx.iteration() == 10) throw error("a broken disk of the validation set");
            seen.push_back(text + std::to_string(ctx.iteration()));
          };
          if (where == "iteration")
            ctx.on<event::iteration_completed>([validate] { validate("v"); });
          else if (where == "epoch")
            ctx.on<event::epoch_completed>([validate]() -> task<> {
              validate("v");
              co_return;
            });
          else
            ctx.on<notice>([validate] { validate("v"); });
          if (where == "posted") ctx.on<event::iteration_completed>([&ctx] { ctx.post<notice>(); });
        }).at_priority(priority::editor);
    l | make_extension("after", [&](context& ctx) {
      ctx.on<event::iteration_completed>([&] { seen.push_back("a" + std::to_string(ctx.iteration())); });
      ctx.on<event::epoch_completed>([&] { seen.push_back("ae"); });
    });
    snapshot_options options{.snapshot_on_error = true};
    if (resume) options.resume_from = dir / "snapshot_iter_10.error";
    l | snapshot(std::move(options)).triggered(every(1000_iterations));
    return l.run();
  };
  REQUIRE(contains(message_of<error>([&] { static_cast<void>(run(true, false)); }), "a broken disk"));
  REQUIRE(run(false, true).iteration == 10);
  auto first_and_second = std::exchange(seen, {});
  const temporary_directory other;
  static_cast<void>(other);
  static_cast<void>(run(false, false));
  if (where == "posted") {  // it was consumed when it was delivered
    std::erase(seen, "v10");
  }
  REQUIRE(first_and_second == seen);
}

TEST_CASE("names may hold what was observed", "[snapshot][keep]") {
  const temporary_directory dir;
  const auto run = [&](std::int64_t iterations) {
    const counting c;
    auto l = c.loop(dir.path(), iterations);
    l | losses() |
        snapshot({.filename = "at_{iteration}_{validation/loss:.2f}", .n_retains = 2, .autoload = true})
            .triggered(every(1_iterations));
    return l.run();
  };
  static_cast<void>(run(3));
  REQUIRE(fs::exists(dir / "at_2_1.00"));
  REQUIRE(fs::exists(dir / "at_3_5.00"));
  REQUIRE_FALSE(fs::exists(dir / "at_1_5.00"));
  REQUIRE(run(4).resumed_from == dir / "at_3_5.00");
}

TEST_CASE("a name function that makes no file's name fails before training", "[snapshot][options]") {
  const temporary_directory dir;
  const counting c;
  std::int64_t iterations = 0;
  auto l = c.loop(dir.path(), 3, [&](context&) { ++iterations; });
  l | snapshot({.filename = [](const context&) { return std::string("/"); }});
  REQUIRE_THROWS_AS(l.run(), option_error);
  REQUIRE(iterations == 0);
}

TEST_CASE("a snapshot that does not fit says what to do about that kind of misfit", "[snapshot][resume]") {
  const temporary_directory dir;
  const counting first;
  auto l = first.loop(dir.path(), 4);
  l.remember("mine", state::stateful_ref([] { return state::value(1); }, [](const state::value&) {}));
  l | snapshot().triggered(every(4_iterations));
  l.run();
  const auto told = [&](bool remember, std::int64_t elements) {
    const counting second(2, elements);
    auto resumed = second.loop(dir.path(), 8);
    if (remember) resumed.remember("mine", state::stateful_ref([] { return state::value(1); }, [](const state::value&) {}));
    resumed | snapshot({.autoload = true}).triggered(every(4_iterations));
    return message_of<snapshot_error>([&] { resumed.run(); });
  };
  CHECK(contains(told(false, 8), "loop.remember"));
  CHECK(contains(told(true, 9), "load.rename"));
}

}  // namespace snapshot_keep_test

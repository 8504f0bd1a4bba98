#include <chrono>
#include <limits>
#include <range/v3/view/filter.hpp>
#include <sstream>
#include <stdexcept>
#include <string>

#include "rondo/error.hpp"
#include "rondo/extensions/log_report.hpp"
#include "rondo/extensions/print_report.hpp"
#include "rondo/extensions/progress_bar.hpp"
#include "support/bare_loop.hpp"
#include "support/catch.hpp"
#include "support/temporary_directory.hpp"

namespace ext_progress_bar_test {

using namespace rondo;
using namespace rondo::literals;
using namespace rondo::testing;
using namespace std::chrono_literals;

namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("progress_bar draws bars, rate and remaining time on a terminal", "[extensions][progress_bar]") {
  std::ostringstream out;
  double time = 100.0;
  auto l = bare_loop(4, [&](context&, int) { time += 0.5; }, {.max_epochs = 2});
  l | progress_bar(
          {.update_interval = 3s, .bar_length = 20, .out = &out, .terminal = true, .clock = [&] { return time; }});
  l.run();
  CHECK(out.str() ==
        "\x1b[J"
        "     total [###############.....]  75.00%\n"
        "this epoch [##########..........]  50.00%\n"
        "           iteration 6, epoch 1.50 of 2\n"
        "           2 iterations/s, 0:00:01 to go\n"
        "\x1b[4A"
        "\x1b[J"
        "2 epochs completed: 8 iterations in 0:00:04, 2 iterations/s\n");
}

TEST_CASE("progress_bar prints plain lines elsewhere", "[extensions][progress_bar]") {
  std::ostringstream out;
  double time = 0.0;
  auto l = bare_loop(1000, [&](context&, int) { time += 4.0; }, {.max_epochs = 2, .max_iterations = 5});
  l | progress_bar({.out = &out, .clock = [&] { return time; }});
  l.run();
  CHECK(out.str() ==
        "iteration 3 of 5, epoch 0.00 of 2, 60.0%, 0.25 iterations/s, 0:00:08 to go\n"
        "5 iterations completed: 5 iterations in 0:00:20, 0.25 iterations/s\n");
}

TEST_CASE("progress_bar: the rate is that of the last half minute", "[extensions][progress_bar]") {
  std::ostringstream out;
  double time = 0.0;
  auto l =
      bare_loop(1000, [&](context& ctx, int) { time += ctx.iteration() < 20 ? 10.0 : 1.0; }, {.max_iterations = 100});
  l | progress_bar({.out = &out, .clock = [&] { return time; }});
  l.run();
  CHECK(contains(out.str(), "iteration 20 of 100, epoch 0.02, 20.0%, 0.1 iterations/s, 0:13:20 to go\n"));
  CHECK(contains(out.str(), "iteration 90 of 100, epoch 0.09, 90.0%, 1 iterations/s, 0:00:10 to go\n"));
}

TEST_CASE("progress_bar works without any known length", "[extensions][progress_bar]") {
  std::ostringstream out;
  double time = 0.0;
  torch::nn::Linear model(1, 1);
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  auto batches = ranges::views::ints(0, 4) | ranges::views::filter([](int) { return true; });
  const auto step = [&](context&, int&) { time += 1.0; };

  SECTION("ended by a trigger") {
    loop l(models(model), optimizer, batches, step, {.stop_trigger = rondo::at({6_iterations})});
    l | progress_bar(
            {.update_interval = 2s, .bar_length = 4, .out = &out, .terminal = true, .clock = [&] { return time; }});
    l.run();
    CHECK(contains(out.str(), "\x1b[J           iteration 2, epoch 0\n           1 iterations/s\n\x1b[2A"));
    // The length of an epoch is known once the first one is over.
    CHECK(contains(
        out.str(),
        "\x1b[Jthis epoch [####] 100.00%\n           iteration 4, epoch 1.00\n           1 iterations/s\n\x1b[3A"));
  }
  SECTION("ended by epochs") {
    loop l(models(model), optimizer, batches, step, {.max_epochs = 2});
    l | progress_bar({.out = &out, .plain_interval = 2s, .clock = [&] { return time; }});
    l.run();
    CHECK(
        out.str().starts_with("iteration 2, epoch 0 of 2, 0.0%, 1 iterations/s\n"
                              "iteration 4, epoch 1.00 of 2, 50.0%, 1 iterations/s, 0:00:04 to go\n"));
  }
}

TEST_CASE("progress_bar says how training ended", "[extensions][progress_bar]") {
  std::ostringstream out;
  const auto clock = [] { return 0.0; };
  SECTION("asked to stop") {
    auto l = bare_loop(4, [](context& ctx, int) { ctx.stop("good enough"); }, {.max_epochs = 2});
    l | progress_bar({.out = &out, .clock = clock});
    l.run();
    CHECK(out.str() == "good enough: 1 iterations in 0:00:00\n");
  }
  SECTION("by an error") {
    auto l = bare_loop(4,
                       [](context&, int i) {
                         if (i == 2) throw std::runtime_error("no");
                       },
                       {.max_epochs = 2});
    l | progress_bar({.out = &out, .clock = clock});
    CHECK_THROWS_AS(l.run(), std::runtime_error);
    CHECK(out.str() == "ended by an error: 2 iterations in 0:00:00\n");
  }
}

TEST_CASE("progress_bar counts from where a resumed run begins", "[extensions][progress_bar]") {
  std::optional<state::value> kept;
  auto first = bare_loop(4, [](context&, int) {}, {.max_iterations = 6});
  first | keep_state(6, kept);
  first.run();
  std::ostringstream out;
  double time = 0.0;
  auto l = bare_loop(4, [&](context&, int) { time += 1.0; }, {.max_epochs = 3});
  l | restore_state(*kept) | progress_bar({.out = &out, .plain_interval = 4s, .clock = [&] { return time; }});
  l.run();
  CHECK(out.str() ==
        "iteration 10, epoch 2.50 of 3, 83.3%, 1 iterations/s, 0:00:02 to go\n"
        "3 epochs completed: 6 iterations in 0:00:06, 1 iterations/s\n");
}

TEST_CASE("progress_bar makes room for the lines of print_report", "[extensions][progress_bar][print_report]") {
  temporary_directory dir;
  std::ostringstream out;
  double time = 0.0;
  auto l = bare_loop(2, [&](context&, int) { time += 1.0; }, {.max_epochs = 1, .out = dir.path()});
  l | log_report() | print_report({"iteration"}, {.out = &out, .terminal = true}) |
      progress_bar({.update_interval = 2s, .out = &out, .terminal = true, .clock = [&] { return time; }});
  l.run();
  const auto text = out.str();
  const auto bar_ends = text.find("\x1b[4A");
  REQUIRE(bar_ends != std::string::npos);
  CHECK(text.substr(bar_ends) ==
        "\x1b[4A\x1b[Jiteration\n2\n\x1b[J1 epochs completed: 2 iterations in 0:00:02, 1 iterations/s\n");
}

TEST_CASE("progress_bar refuses options that make no sense", "[extensions][progress_bar]") {
  const auto option_of = [](progress_bar_options options) -> std::string {
    try {
      (void)progress_bar(std::move(options));
    } catch (const option_error& e) {
      return e.option();
    }
    return "none";
  };
  CHECK(option_of({}) == "none");
  CHECK(option_of({.update_interval = 0s}) == "update_interval");
  CHECK(option_of({.bar_length = 0}) == "bar_length");
  CHECK(option_of({.out = nullptr}) == "out");
  CHECK(option_of({.plain_interval = std::chrono::duration<double>(std::numeric_limits<double>::infinity())}) ==
        "plain_interval");
}

}  // namespace ext_progress_bar_test

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "rondo/error.hpp"
#include "rondo/extensions/dashboard.hpp"
#include "rondo/extensions/evaluator.hpp"
#include "rondo/extensions/line_chart.hpp"
#include "rondo/extensions/snapshot/snapshot.hpp"
#include "rondo/log.hpp"
#include "support/bare_loop.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"
#include "support/small_loops.hpp"
#include "support/temporary_directory.hpp"
#include "support/terminal.hpp"

namespace ext_dashboard_test {

using namespace rondo;
using namespace rondo::literals;
using namespace rondo::testing;
using namespace std::chrono_literals;

namespace {

std::string joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const auto& line : lines) text += line + '\n';
  return text;
}

std::size_t count_of(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

}  // namespace

TEST_CASE("line_chart draws a curve between labelled axes", "[ext][dashboard]") {
  const std::vector<extensions::chart_curve> diagonal{{{{0, 0}, {1, 1}, {2, 2}, {3, 3}}, "", '*'}};
  SECTION("with marks") {
    const auto lines = extensions::line_chart(diagonal, {.width = 20, .height = 6, .unicode = false, .x_unit = "it"});
    CHECK(joined(lines) ==
          "   3 +            **\n"
          "     |       *****  \n"
          "     |   ****       \n"
          "   0 +***           \n"
          "     +--------------\n"
          "      0         3 it\n");
  }
  SECTION("with braille, of the same width") {
    for (const auto& line : extensions::line_chart(diagonal, {.width = 30, .height = 8, .x_unit = "it"})) {
      const auto characters = std::count_if(line.begin(), line.end(),
                                            [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
      CHECK(characters == 30);
    }
  }
  SECTION("without points, with one, with some that are no numbers") {
    const double nan = std::nan("");
    CHECK(extensions::line_chart({}, {.width = 20, .height = 6}).size() == 6);
    CHECK(contains(joined(extensions::line_chart({{{{1, 5}}}}, {.width = 20, .height = 6, .unicode = false})), "*"));
    const auto lines =
        extensions::line_chart({{{{0, nan}, {1, 5}, {2, INFINITY}, {3, 7}}}}, {.width = 20, .height = 6});
    CHECK(contains(lines[0], "7"));
    CHECK_FALSE(contains(joined(lines), "nan"));
  }
}

TEST_CASE("dashboard shows progress, curves, values, snapshots and what is printed", "[ext][dashboard]") {
  temporary_directory dir;
  const problem p;
  pseudo_terminal terminal(140, 40);  // the rates may have many digits
  auto l = p.loop({.max_epochs = 3, .out = dir.path()});
  l | evaluator(p.batches()) | snapshot() | dashboard({.update_interval = 1us, .unicode = true}) |
      make_extension("chatter", [](context& ctx) {
        ctx.on<event::iteration_completed>([&ctx] {
          if (ctx.iteration() == 5) std::printf("printed by printf\n");
          if (ctx.iteration() == 7) std::cout << "printed by cout, without an end";
          if (ctx.iteration() == 9) std::cout << " until here\n\x1b[2J\x1b[31mred\x1b[0m\n" << std::flush;
          if (ctx.iteration() == 11) rondo::log::warn("a warning");
        });
      });
  l.run();
  std::printf("printed afterwards\n");
  const auto& seen = terminal.close();
  const auto text = joined(seen.all());
  INFO(text);
  for (const char* part : {"training, 0:00:0", "100.00%  iteration 24, epoch 3.00 of 3", "samples/s", "━ train/loss",
                           "━ validation/loss", "24 iterations", "last", "mean", "best", "snapshot_iter_24  ", " KiB  ",
                           "3 epochs completed: 24 iterations in 0:00:0"})
    CHECK(contains(text, part));
  // Everything once, in order, above the picture; of the picture one is left.
  for (const char* part : {"printed by printf\n", "printed by cout, without an end until here\n", "\nred\n",
                           "[rondo] warning: a warning\n", "printed afterwards\n", "training, "})
    CHECK(count_of(text, part) == 1);
  CHECK(text.find("a warning") < text.find("training, "));
  CHECK(text.find("printed afterwards") > text.find("3 epochs completed"));
  CHECK(seen.all().back() == "printed afterwards");
  CHECK_FALSE(seen.cursor_hidden());
  CHECK_FALSE(seen.erased_whole());
  CHECK_FALSE(contains(text, "?"));
}

TEST_CASE("dashboard gives the terminal back after an error", "[ext][dashboard]") {
  pseudo_terminal terminal(80, 24);
  auto l = bare_loop(10,
                     [](context& ctx, int) {
                       ctx.report("loss", 1.0);
                       std::fputs("unfinished", stderr);
                       if (ctx.iteration() == 3) throw std::runtime_error("broken");
                     },
                     {.max_epochs = 1});
  l | dashboard({.update_interval = 1us, .unicode = false});
  std::string message;
  try {
    l.run();
  } catch (const std::exception& e) {
    message = e.what();
  }
  std::fputs("after\n", stderr);
  const auto& seen = terminal.close();
  CHECK(message == "broken");
  const auto text = joined(seen.all());
  CHECK(contains(text, "unfinishedunfinishedunfinishedunfinished\n"));
  CHECK(contains(text, "ended by an error: 3 iterations in 0:00:00"));
  CHECK(seen.all().back() == "after");
}

TEST_CASE("dashboard stays readable with 30 keys, on small terminals and on one that changes", "[ext][dashboard]") {
  const auto sizes = std::vector<std::pair<int, int>>{{120, 50}, {80, 24}, {40, 12}, {20, 3}};
  for (const auto& [columns, rows] : sizes) {
    pseudo_terminal terminal(columns, rows);
    auto l = bare_loop(50,
                       [&](context& ctx, int i) {
                         for (int k = 0; k < 30; ++k)
                           ctx.report(fmt::format("group{}/value{}", k % 3, k / 3), std::sin(i * 0.1 + k));
                         if (ctx.iteration() == 30) terminal.resize(columns, rows);
                       },
                       {.max_epochs = 1});
    l | dashboard({.update_interval = 1us, .unicode = false});
    l.run();
    const auto& seen = terminal.close();
    const auto all = seen.all();
    // One picture and the line below it, which may need several lines: nothing has scrolled away or been left behind.
    CHECK(count_of(joined(all), "training, 0:00:00") == 1);
    CHECK(static_cast<int>(all.size()) <= rows + (columns == 20 ? 2 : 0));
    if (columns == 120) {
      CHECK(contains(joined(all), "group2/value9"));
      CHECK(contains(joined(all), "* group0/value0  + group1/value0"));
    }
  }
}

TEST_CASE("dashboard keeps few points of a long curve", "[ext][dashboard]") {
  pseudo_terminal terminal(80, 30);
  auto l = bare_loop(3000, [](context& ctx, int i) { ctx.report("up", i); }, {.max_epochs = 1});
  double time = 0.0;
  l | dashboard({.update_interval = 1s, .unicode = false, .clock = [&] { return time += 1.0; }});
  l.run();
  const auto text = joined(terminal.close().all());
  CHECK(contains(text, "3000 iterations"));
  CHECK(contains(text, "2999"));
}

TEST_CASE("a process that dies while a dashboard runs says its last words", "[ext][dashboard]") {
  pseudo_terminal terminal(80, 24);
  const auto child = ::fork();
  if (child == 0) {
    for (const int number : {SIGABRT}) std::signal(number, SIG_DFL);
    auto l = bare_loop(10,
                       [](context& ctx, int) {
                         if (ctx.iteration() == 3) {
                           std::fputs("last words\n", stderr);
                           std::abort();
                         }
                       },
                       {.max_epochs = 1, .handle_signals = false});
    l | dashboard({.update_interval = 1us, .unicode = false});
    l.run();
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  const auto text = joined(terminal.close().all());
  CHECK(WIFSIGNALED(status));
  CHECK(WTERMSIG(status) == SIGABRT);
  CHECK(contains(text, "last words\n"));
}

TEST_CASE("dashboard prints plain lines elsewhere", "[ext][dashboard]") {
  std::ostringstream out;
  double time = 0.0;
  auto l = bare_loop(1000,
                     [&](context& ctx, int i) {
                       time += 4.0;
                       ctx.report("loss", i);
                       ctx.report("other", 2.0);
                     },
                     {.max_iterations = 5});
  l | dashboard({.curves = {"loss"}, .out = &out, .clock = [&] { return time; }});
  l.run();
  CHECK(out.str() ==
        "iteration 3 of 5, epoch 0.00, 60.0%, 0.25 iterations/s, 0:00:08 to go, loss 2\n"
        "5 iterations completed: 5 iterations in 0:00:20, 0.25 iterations/s\n");
}

TEST_CASE("dashboard says what is wrong", "[ext][dashboard]") {
  const auto option_of = [](dashboard_options options) -> std::string {
    try {
      (void)dashboard(std::move(options));
    } catch (const option_error& e) {
      return e.option();
    }
    return "none";
  };
  CHECK(option_of({}) == "none");
  CHECK(option_of({.update_interval = 0s}) == "update_interval");
  CHECK(option_of({.log_lines = 0}) == "log_lines");
  CHECK(option_of({.snapshots = -1}) == "snapshots");
  CHECK(option_of({.out = nullptr}) == "out");
  CHECK(option_of({.plain_interval = std::chrono::duration<double>(std::numeric_limits<double>::infinity())}) ==
        "plain_interval");
  std::ostringstream out;
  captured_stderr said;
  auto l = bare_loop(2, [](context& ctx, int) { ctx.report("loss", 1.0); }, {.max_epochs = 1});
  l | dashboard({.curves = {"lsos"}, .out = &out});
  l.run();
  CHECK(contains(said.text(), "nobody has reported lsos; there are: loss"));
}

}  // namespace ext_dashboard_test

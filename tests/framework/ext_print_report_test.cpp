#include <cmath>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "rondo/error.hpp"
#include "rondo/extensions/call.hpp"
#include "rondo/extensions/log_report.hpp"
#include "rondo/extensions/print_report.hpp"
#include "support/bare_loop.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/temporary_directory.hpp"

namespace ext_print_report_test {

using namespace rondo;
using namespace rondo::literals;
using namespace rondo::testing;

namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

void report_losses(context& ctx, int i) {
  ctx.report("train/loss", 2.0 / 3.0);
  if (i == 1) ctx.report("validation/accuracy", -1.234567e-5);
}

std::vector<std::string> split(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

}  // namespace

TEST_CASE("print_report prints an aligned table, the header once", "[extensions][print_report]") {
  temporary_directory dir;
  std::ostringstream out;
  auto l = bare_loop(2, report_losses, {.max_epochs = 2, .out = dir.path()});
  l | log_report({.trigger = every(1_iterations)}) |
      print_report({"iteration", "validation/accuracy", "train/loss"}, {.out = &out});
  l.run();
  CHECK(out.str() ==
        "iteration   validation/accuracy  train/loss\n"
        "1                                0.666667\n"
        "2           -1.23457e-05         0.666667\n"
        "3                                0.666667\n"
        "4           -1.23457e-05         0.666667\n");
}

TEST_CASE("print_report takes its columns from the first entry", "[extensions][print_report]") {
  temporary_directory dir;
  std::ostringstream out;
  auto l = bare_loop(1,
                     [](context& ctx, int) {
                       ctx.report("loss", ctx.iteration() == 0 ? 1.0 : -1.234567e-5);
                       ctx.report("nan", std::nan(""));
                     },
                     {.max_epochs = 2, .out = dir.path()});
  l |
      log_report({.postprocess =
                      [](state::dict& entry) {
                        entry.insert_or_assign("elapsed_time", nullptr);
                        entry.insert_or_assign("note", "ok");
                      }}) |
      print_report({}, {.out = &out});
  l.run();
  CHECK(out.str() ==
        "loss        nan         epoch       iteration   elapsed_time  note\n"
        "1           nan         1           1                         ok\n"
        "-1.235e-05  nan         2           2                         ok\n");
}

TEST_CASE("print_report keeps many columns in line", "[extensions][print_report]") {
  temporary_directory dir;
  std::ostringstream out;
  auto l = bare_loop(1,
                     [](context& ctx, int) {
                       for (int i = 0; i < 40; ++i)
                         ctx.report("column/" + std::to_string(i), std::pow(-10.0, i - 20) / 3);
                     },
                     {.max_epochs = 3, .out = dir.path()});
  l | log_report() | print_report({}, {.out = &out});
  l.run();
  const auto table = split(out.str());
  REQUIRE(table.size() == 4);
  for (int i = 1; i < 40; ++i) {
    const auto column = table[0].find("column/" + std::to_string(i));
    for (std::size_t row = 1; row < table.size(); ++row) {
      CHECK(table[row].substr(column - 2, 2) == "  ");
      CHECK(table[row][column] != ' ');
    }
  }
}

TEST_CASE("print_report reads one log of several", "[extensions][print_report]") {
  temporary_directory dir;
  std::ostringstream out;
  auto l = bare_loop(4, report_losses, {.max_epochs = 1, .out = dir.path()});
  l | log_report({.filename = "fine", .trigger = every(1_iterations)}).named("fine") | log_report() |
      print_report({"iteration"}, {.out = &out, .log_report = "log_report"});
  l.run();
  CHECK(out.str() == "iteration\n4\n");
}

TEST_CASE("print_report clears a progress bar away on a terminal only", "[extensions][print_report]") {
  temporary_directory dir;
  std::ostringstream out;
  auto l = bare_loop(1, report_losses, {.max_epochs = 1, .out = dir.path()});
  l | log_report() | print_report({"epoch"}, {.out = &out, .terminal = true});
  l.run();
  CHECK(out.str() == "\x1b[Jepoch\n1\n");
}

TEST_CASE("print_report warns of what it could not print", "[extensions][print_report]") {
  temporary_directory dir;
  std::ostringstream out;
  captured_stderr said;
  auto l = bare_loop(1, report_losses, {.max_epochs = 1, .out = dir.path()});
  SECTION("anything") {
    l | print_report({}, {.out = &out});
    l.run();
    CHECK(out.str().empty());
    CHECK(contains(said.text(), "print_report has printed nothing"));
  }
  SECTION("a column") {
    l | log_report() | print_report({"epoch", "trian/loss"}, {.out = &out});
    std::string at_once;
    l | call(every(1_epochs), [&](context&) { at_once = said.text(); }).at_priority(priority::snapshot);
    l.run();
    CHECK(contains(at_once, "the first entry has no 'trian/loss', but 'train/loss'"));
    CHECK(contains(said.text(), "no entry had 'trian/loss'; there are: elapsed_time, epoch, iteration, train/loss"));
  }
}

TEST_CASE("print_report goes on with the columns of the first entry, and warns of nothing that was printed before",
          "[extensions][print_report][resume]") {
  temporary_directory dir;
  const auto step = [](context& ctx, int index) {
    ctx.report("late", index);
    if (ctx.iteration() == 0) ctx.report("early", 1);
  };
  const auto train = [&](std::int64_t iterations, std::vector<std::string> columns, const state::value* from,
                         std::optional<state::value>* kept) {
    std::ostringstream out;
    auto l = bare_loop(2, step, {.max_iterations = iterations, .out = dir.path()});
    l |
        log_report({.trigger = every(1_iterations),
                    .postprocess =
                        [](state::dict& entry) {
                          state::dict shown;
                          for (const char* key : {"early", "late"})
                            if (const auto* found = entry.find(key)) shown.insert_or_assign(key, *found);
                          entry = shown;
                        }}) |
        print_report(std::move(columns), {.out = &out});
    if (from != nullptr) l | restore_state(*from);
    if (kept != nullptr) l | keep_state(iterations, *kept);
    l.run();
    return out.str();
  };
  for (const auto& columns : {std::vector<std::string>(), std::vector<std::string>{"early", "late"}}) {
    captured_stderr said;
    std::optional<state::value> kept;
    CHECK(train(1, columns, nullptr, &kept) == "early       late\n1           0\n");
    CHECK(train(2, columns, &kept.value(), nullptr) == "early       late\n            1\n");
    CHECK_FALSE(contains(said.text(), "no entry had"));
    // Columns that are chosen now are taken.
    CHECK(train(2, {"late"}, &kept.value(), nullptr) == "late\n1\n");
  }
}

TEST_CASE("a resumed run that prints nothing more is not warned about", "[extensions][print_report][resume]") {
  temporary_directory dir;
  std::ostringstream out;
  std::optional<state::value> kept;
  captured_stderr said;
  const auto train = [&](std::int64_t iterations, const state::value* from) {
    auto l = bare_loop(2, report_losses, {.max_iterations = iterations, .out = dir.path()});
    l | log_report() | print_report({"epoch"}, {.out = &out});
    if (from != nullptr) l | restore_state(*from);
    l | keep_state(iterations, kept).named("keep");
    l.run();
  };
  train(1, nullptr);
  CHECK(contains(said.text(), "print_report has printed nothing"));
  train(2, nullptr);
  const auto before = said.text();
  const auto saved = *kept;
  train(3, &saved);
  CHECK(said.text().find("print_report", before.size()) == std::string::npos);
}

TEST_CASE("print_report refuses to print nowhere", "[extensions][print_report]") {
  CHECK_THROWS_AS(print_report({}, {.out = nullptr}), option_error);
}

}  // namespace ext_print_report_test

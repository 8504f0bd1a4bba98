#include <chrono>
#include <functional>
#include <vector>

#include "rondo/event/early_stopping.hpp"
#include "rondo/event/interval.hpp"
#include "rondo/event/once.hpp"
#include "rondo/event/time_interval.hpp"
#include "rondo/event/value_trigger.hpp"
#include "rondo/event/when.hpp"
#include "rondo/report/observations.hpp"
#include "support/catch.hpp"

namespace event_trigger_test {

using namespace rondo;
using namespace rondo::literals;

namespace {

/// The moment after iteration `i` (from 1) of epochs of `length` iterations.
moment after(std::int64_t i, std::int64_t length) {
  moment m;
  m.iteration = i;
  m.epoch_index = (i - 1) / length;
  m.iteration_in_epoch = (i - 1) % length + 1;
  m.epoch_end = m.iteration_in_epoch == length;
  m.epoch_length = length;
  return m;
}

std::vector<std::int64_t> firings(trigger t, std::int64_t length, std::int64_t until) {
  std::vector<std::int64_t> all;
  for (std::int64_t i = 1; i <= until; ++i)
    if (t.due(after(i, length))) all.push_back(i);
  return all;
}

using list = std::vector<std::int64_t>;

template <class F>
std::string message_of(F f) {
  try {
    f();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "nothing was thrown";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("every fires at the multiples and not at iteration 0", "[event][trigger]") {
  REQUIRE(firings(every(3_iterations), 10, 10) == list{3, 6, 9});
  REQUIRE(firings(every(1_epochs), 4, 12) == list{4, 8, 12});
  REQUIRE(firings(every(2_epochs), 4, 20) == list{8, 16});
  REQUIRE(firings(every(0.5_epochs), 4, 9) == list{2, 4, 6, 8});
  REQUIRE(firings(every(0.5_epochs), 5, 10) == list{3, 5, 8, 10});
  REQUIRE(firings(every(1.5_epochs), 4, 12) == list{6, 12});
  moment start;
  start.epoch_length = 4;
  REQUIRE_FALSE(trigger(every(1_iterations)).due(start));
  REQUIRE_FALSE(trigger(every(0.5_epochs)).due(start));
}

TEST_CASE("ppe defect 40: fractional epochs are exact, and a list of points fires", "[event][trigger][ppe]") {
  REQUIRE(firings(rondo::at({0.29_epochs}), 100, 100) == list{29});
  REQUIRE(firings(rondo::at({2_iterations, 1_epochs, 0.29_epochs}), 100, 200) == list{2, 29, 100});

  // No firing is lost for any period and epoch length: as many as there are whole multiples.
  for (std::int64_t length = 1; length <= 120; ++length) {
    for (std::int64_t hundredths : {1, 7, 10, 29, 30, 33, 57, 58, 70, 99, 110, 115}) {
      const epochs p(static_cast<double>(hundredths) / 100.0);
      const std::int64_t until = length * 7;
      std::int64_t expected = 0;  // iterations i with a multiple m: i - 1 < m * p * length <= i
      for (std::int64_t i = 1; i <= until; ++i)
        expected += (i * 100 / (hundredths * length)) > ((i - 1) * 100 / (hundredths * length)) ? 1 : 0;
      INFO(length << " iterations, every " << hundredths << "/100 epochs");
      REQUIRE(static_cast<std::int64_t>(firings(every(p), length, until).size()) == expected);
    }
  }

  int asked = 0;
  trigger predicate = when([&asked] {
    ++asked;
    return false;
  });
  static_cast<void>(firings(predicate || every(2_iterations), 10, 5));
  REQUIRE(asked == 5);
}

TEST_CASE("a decimal literal means exactly what it says", "[event][trigger]") {
  REQUIRE((0.29_epochs).numerator() == 29);
  REQUIRE((0.29_epochs).denominator() == 100);
  REQUIRE(epochs(0.29).numerator() == 29);
  REQUIRE(epochs(0.1).denominator() == 10);
  REQUIRE(epochs(3).whole());
  REQUIRE((2.50_epochs).denominator() == 2);
  REQUIRE((0.125_epochs).str() == "0.125");
  REQUIRE_THROWS_AS(epochs("1e3"), option_error);
  REQUIRE_THROWS_AS(epochs(1.0 / 3.0), option_error);
  REQUIRE_THROWS_AS(epochs(std::numeric_limits<double>::quiet_NaN()), option_error);
}

TEST_CASE("whole epochs work when the length of an epoch is unknown, fractions say what is missing",
          "[event][trigger]") {
  moment m = after(4, 4);
  m.epoch_length.reset();
  REQUIRE(trigger(every(1_epochs)).due(m));
  REQUIRE(trigger(rondo::at({1_epochs})).due(m));
  const auto what = message_of([&] { static_cast<void>(trigger(every(0.5_epochs)).due(m)); });
  REQUIRE(contains(what, "0.5 epochs"));
  REQUIRE(contains(what, "unknown"));
}

TEST_CASE("a trigger of zero or less is refused with its value", "[event][trigger]") {
  REQUIRE_THROWS_AS(every(0_iterations), option_error);
  REQUIRE_THROWS_AS(every(epochs(0)), option_error);
  REQUIRE_THROWS_AS(every(epochs(-1)), option_error);
  REQUIRE_THROWS_AS(rondo::at({}), option_error);
  REQUIRE_THROWS_AS(rondo::at({0_epochs}), option_error);
  REQUIRE_THROWS_AS(time_interval(std::chrono::seconds(0)), option_error);
  REQUIRE_THROWS_AS(early_stopping({.patience = 0}), option_error);
  REQUIRE(contains(message_of([] { static_cast<void>(every(0_iterations)); }), "0 iterations"));
}

TEST_CASE("periods are parsed as command lines write them", "[event][trigger]") {
  REQUIRE(str(parse_period("--x", "100it")) == "100 iterations");
  REQUIRE(str(parse_period("--x", "2ep")) == "2 epochs");
  REQUIRE(str(parse_period("--x", "0.5 epochs")) == "0.5 epochs");
  for (const char* bad :
       {"", "10", "it", "0it", "-1it", "1.5it", "0ep", "1..5ep", "5 parsecs", "99999999999999999999it"}) {
    INFO(bad);
    REQUIRE_THROWS_AS(parse_period("--x", bad), option_error);
    REQUIRE(contains(message_of([&] { static_cast<void>(parse_period("--x", bad)); }), "--x"));
  }
}

TEST_CASE("ppe defect 24: once fires once, and its memory survives a resume", "[event][trigger][ppe]") {
  REQUIRE(firings(once(), 4, 8) == list{1});
  trigger first = once();
  REQUIRE(first.due(after(1, 4)));
  trigger resumed = once();
  resumed.load_state_dict(first.state_dict());
  REQUIRE_FALSE(resumed.due(after(2, 4)));
  trigger again = once(true);
  again.load_state_dict(first.state_dict());
  REQUIRE(again.due(after(2, 4)));
}

TEST_CASE("ppe defect 5: after a stall a time trigger fires once, and it goes by training time over resumes",
          "[event][trigger][ppe]") {
  trigger t = time_interval(std::chrono::seconds(60));
  const auto at_second = [](double s) {
    moment m;
    m.iteration = 1;
    m.elapsed_time = s;
    return m;
  };
  REQUIRE_FALSE(t.due(at_second(59.9)));
  REQUIRE(t.due(at_second(60)));
  REQUIRE_FALSE(t.due(at_second(119)));
  REQUIRE(t.due(at_second(700)));  // ten minutes late
  for (double s = 701; s < 720; ++s) REQUIRE_FALSE(t.due(at_second(s)));
  REQUIRE(t.due(at_second(720)));

  trigger resumed = time_interval(std::chrono::seconds(60));
  resumed.load_state_dict(t.state_dict());
  REQUIRE_FALSE(resumed.due(at_second(779)));  // elapsed time goes on where it was, so the trigger does too
  REQUIRE(resumed.due(at_second(780)));
}

TEST_CASE("combinators", "[event][trigger]") {
  REQUIRE(firings(every(2_iterations) || every(3_iterations), 10, 9) == list{2, 3, 4, 6, 8, 9});
  REQUIRE(firings(every(2_iterations) && every(3_iterations), 10, 12) == list{6, 12});
  REQUIRE(firings(!every(2_iterations), 10, 5) == list{1, 3, 5});
  REQUIRE(firings(never(), 10, 5).empty());
  REQUIRE((every(2_iterations) && !once()).str() == "(every 2 iterations and not once)");

  // Both sides see every iteration: the once below is used up at iteration 1 although the left side does not fire
  // there.
  REQUIRE(firings(every(2_iterations) && once(), 10, 6).empty());

  trigger t = once() || every(4_iterations);
  static_cast<void>(t.due(after(1, 10)));
  trigger resumed = once() || every(4_iterations);
  resumed.load_state_dict(t.state_dict());
  REQUIRE_FALSE(resumed.due(after(2, 10)));
  REQUIRE(resumed.due(after(4, 10)));
}

TEST_CASE("a copy of a trigger has its own memory", "[event][trigger]") {
  trigger a = once();
  trigger b = a;
  REQUIRE(a.due(after(1, 4)));
  REQUIRE(b.due(after(1, 4)));
  REQUIRE_FALSE(a.due(after(2, 4)));
}

TEST_CASE("value triggers compare means over the interval and remember the best", "[event][trigger]") {
  observations seen;
  trigger t = max_value("accuracy");
  const std::vector<double> values = {1, 3, /**/ 0, 2, /**/ 4, 0.1, /**/ 2, 2, /**/ 3, 3};  // means 2, 1, 2.05, 2, 3
  list fired;
  state::value half_way;
  for (std::int64_t i = 1; i <= 10; ++i) {
    if (i == 6) {  // in the middle of an interval
      half_way = t.state_dict();
      t = max_value("accuracy");
      t.load_state_dict(half_way);
    }
    seen.clear();
    seen.report("accuracy", values[static_cast<std::size_t>(i - 1)]);
    moment m = after(i, 2);
    m.observed = &seen;
    if (t.due(m)) fired.push_back(i);
  }
  REQUIRE(fired == list{2, 6, 10});

  trigger lowest = min_value("loss", every(1_iterations));
  seen.clear();
  seen.report("other", 1);
  moment m = after(1, 2);
  m.observed = &seen;
  const auto what = message_of([&] { static_cast<void>(lowest.due(m)); });
  REQUIRE(contains(what, "loss"));
  REQUIRE(contains(what, "other"));
}

TEST_CASE("ppe defect 30: early stopping stops a resumed training where the unbroken one stops",
          "[event][trigger][ppe]") {
  const std::vector<double> losses = {5, 4, 4.5, 4.2, 4.1, 3, 2, 2.5, 2.6, 2.7, 1};
  const auto stop_at = [&](int resume_after) {
    observations seen;
    const early_stopping_options options{.monitor = "validation/loss", .patience = 3, .check = every(1_iterations)};
    trigger t = early_stopping(options);
    for (std::int64_t i = 1; i <= static_cast<std::int64_t>(losses.size()); ++i) {
      seen.clear();
      seen.report("validation/loss", losses[static_cast<std::size_t>(i - 1)]);
      moment m = after(i, 4);
      m.observed = &seen;
      if (t.due(m)) return i;
      if (i == resume_after) {
        const auto saved = t.state_dict();
        t = early_stopping(options);
        t.load_state_dict(saved);
      }
    }
    return std::int64_t{0};
  };
  REQUIRE(stop_at(0) == 5);
  for (int resume_after = 1; resume_after < 5; ++resume_after) REQUIRE(stop_at(resume_after) == 5);
}

TEST_CASE("early stopping knows the direction, ignores small gains and counts NaN as no gain", "[event][trigger]") {
  const auto stop_at = [](early_stopping_options options, const std::vector<double>& values) {
    observations seen;
    options.check = every(1_iterations);
    const std::string key = options.monitor;
    trigger t = early_stopping(std::move(options));
    for (std::int64_t i = 1; i <= static_cast<std::int64_t>(values.size()); ++i) {
      seen.clear();
      seen.report(key, values[static_cast<std::size_t>(i - 1)]);
      moment m = after(i, 100);
      m.observed = &seen;
      if (t.due(m)) return i;
    }
    return std::int64_t{0};
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  REQUIRE(stop_at({.monitor = "validation/accuracy", .patience = 2}, {1, 2, 3, 2, 2, 9}) == 5);
  REQUIRE(stop_at({.monitor = "loss", .patience = 2}, {1, 2, 3, 0, 0, 0}) == 3);
  REQUIRE(stop_at({.monitor = "loss", .patience = 2, .min_delta = 0.5}, {3, 2.9, 2.8}) == 3);
  REQUIRE(stop_at({.monitor = "loss", .patience = 2}, {3, nan, nan}) == 3);
  REQUIRE(stop_at({.monitor = "loss", .patience = 2}, {nan, nan, 1, 1}) == 2);
  REQUIRE(stop_at({.monitor = "score", .patience = 1, .direction = better::higher}, {1, 2, 1}) == 3);
  REQUIRE(stop_at({.monitor = "loss", .patience = 9, .limit = rondo::at({2_iterations})}, {3, 2, 1}) == 2);
}

TEST_CASE("the direction is guessed only from names that tell it", "[trigger]") {
  CHECK(known_higher_is_better("validation/top5_accuracy") == true);
  CHECK(known_higher_is_better("roc_auc") == true);
  CHECK(known_higher_is_better("validation/f1") == true);
  CHECK(known_higher_is_better("accuracy/loss") == false);
  CHECK(known_higher_is_better("validation/rmse") == false);
  CHECK_FALSE(known_higher_is_better("accuracy_loss").has_value());
  CHECK_FALSE(known_higher_is_better("validation/bleu").has_value());
  CHECK_FALSE(known_higher_is_better("val/glossary").has_value());
  CHECK_THROWS_AS(early_stopping({.monitor = "validation/bleu"}), option_error);
  CHECK_NOTHROW(early_stopping({.monitor = "validation/bleu", .direction = better::higher}));
}

TEST_CASE("who asks for what nobody has reported says so, and what to do", "[trigger]") {
  observations nothing;
  nothing.report("train/loss", 1.0);
  moment m = after(1, 100);
  m.observed = &nothing;
  auto stop = early_stopping({.monitor = "validation/loss", .check = every(1_iterations)});
  const auto message = message_of([&] { (void)stop.due(m); });
  CHECK(contains(message, "early_stopping"));
  CHECK(contains(message, "every 1 iterations"));
  CHECK(contains(message, "look less often"));
  CHECK(contains(message, "train/loss"));
  auto best = min_value("validation/loss", every(1_iterations));
  CHECK(contains(message_of([&] { (void)best.due(m); }), "min_value"));
}

}  // namespace event_trigger_test

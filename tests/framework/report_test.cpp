#include <torch/types.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "rondo/report/observations.hpp"
#include "rondo/report/summary.hpp"
#include "support/catch.hpp"

namespace report_test {

using namespace rondo;

namespace {

template <class F>
std::string message_of(F f) {
  try {
    f();
  } catch (const observation_error& e) {
    return e.what();
  }
  FAIL("no observation_error was thrown");
  return "";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

summary summary_of(const std::vector<double>& values) {
  summary s;
  for (const double v : values) s.add(v);
  return s;
}

}  // namespace

TEST_CASE("observations come in the order of their reports, whatever was reported before", "[report][observations]") {
  observations o;
  const auto order = [&o] {
    std::string all;
    o.for_each([&](const std::string& key, const observation& v) {
      all += key + std::to_string(static_cast<int>(v.value())) + " ";
    });
    return all;
  };
  o.report("a", 1);
  o.report("b", 2);
  REQUIRE(order() == "a1 b2 ");
  o.clear();
  REQUIRE(order().empty());
  REQUIRE(o.find("a") == nullptr);
  for (const auto& [key, value] : {std::pair("c", 3), std::pair("b", 4), std::pair("c", 5), std::pair("a", 6)})
    o.report(key, value);
  REQUIRE(order() == "c5 b4 a6 ");
  o.clear();
  o.report("a", 7);
  {
    observations::aside aside(o);
    REQUIRE(order().empty());
    o.report("z", 1);
    o.report("a", 2);
    REQUIRE(order() == "z1 a2 ");
  }
  REQUIRE(order() == "a7 ");
  {
    const observations::scope prefix(o, "v/");
    o.report("a", 8);
  }
  o.report("b", 9);
  REQUIRE(order() == "a7 v/a8 b9 ");
}

TEST_CASE("a key that no log could hold is refused where it is reported", "[report][observations]") {
  observations all;
  CHECK(message_of([&] { all.report("caf\xe9", 1); }) ==
        "observation 'caf\\xe9' is not UTF-8, which no log could hold");
  all.report("café", 1);
  CHECK(all.find("café") != nullptr);
}

TEST_CASE("observations take numbers and tensors of one element", "[report][observations]") {
  observations seen;
  seen.report("double", 0.5);
  seen.report("int", 3, 7.0);
  seen.report("bool", true);
  seen.report("scalar", torch::tensor(2.5));
  seen.report("one element", torch::tensor({{4}}), 2.0);
  REQUIRE(seen.at("double").value() == 0.5);
  REQUIRE(seen.at("double").weight() == 1.0);
  REQUIRE(seen.at("int").value() == 3.0);
  REQUIRE(seen.at("int").weight() == 7.0);
  REQUIRE(seen.at("bool").value() == 1.0);
  REQUIRE(seen.at("scalar").value() == 2.5);
  REQUIRE(seen.at("one element").value() == 4.0);
  REQUIRE(contains(message_of([&] { seen.report("many", torch::zeros(3)); }), "3 elements"));
  REQUIRE(contains(message_of([&] { seen.report("none", torch::Tensor()); }), "undefined"));
}

TEST_CASE("a reported tensor keeps no graph and does not follow later changes", "[report][observations]") {
  observations seen;
  const auto loss = torch::ones({}, torch::requires_grad()) * 2;
  seen.report("loss", loss);
  loss.detach().fill_(9);
  REQUIRE(seen.at("loss").value() == 2.0);
}

TEST_CASE("a device tensor stays on its device until it is read", "[report][observations]") {
  // The meta device has no values at all: reading one is an error, so nothing may read before it is asked to.
  observations seen;
  seen.report("loss", torch::zeros({}, torch::kMeta));
  summary_table table;
  for (int i = 0; i < 20; ++i) table.add(seen);
  REQUIRE(seen.at("loss").on_device() != nullptr);
  REQUIRE(table.keys() == std::vector<std::string>{"loss"});
}

TEST_CASE("the last report of a key counts, and clear forgets all", "[report][observations]") {
  observations seen;
  seen.report("a", 1);
  seen.report("a", 2);
  REQUIRE(seen.at("a").value() == 2.0);
  seen.clear();
  REQUIRE(seen.find("a") == nullptr);
  seen.report("b", 3);
  const auto what = message_of([&] { static_cast<void>(seen.at("a")); });
  REQUIRE(contains(what, "'a'"));
  REQUIRE(contains(what, "b"));
}

TEST_CASE("scopes put prefixes in front (ppe defect 38)", "[report][observations][ppe]") {
  observations seen;
  {
    const observations::scope outer(seen, "main/");
    seen.report("loss", 1);
    {
      const observations::scope inner(seen, "fc1/");
      seen.report("x", 2);
    }
    seen.report("y", 3);
  }
  seen.report("z", 4);
  std::vector<std::string> keys;
  seen.for_each([&](const std::string& key, const observation&) { keys.push_back(key); });
  REQUIRE(keys == std::vector<std::string>{"main/loss", "main/fc1/x", "main/y", "z"});
}

TEST_CASE("reports put aside come back", "[report][observations]") {
  observations seen;
  seen.report("before", 1);
  {
    observations::aside aside(seen);
    REQUIRE(seen.find("before") == nullptr);
    seen.report("within", 2);
    REQUIRE(aside.current().at("within").value() == 2.0);
  }
  REQUIRE(seen.at("before").value() == 1.0);
  REQUIRE(seen.find("within") == nullptr);
}

TEST_CASE("ppe defect 36: deviations do not cancel, weights are not truncated", "[report][summary][ppe]") {
  REQUIRE(summary_of({1e8, 1e8 + 1, 1e8 + 2}).standard_deviation() == Approx(std::sqrt(2.0 / 3.0)).epsilon(1e-12));
  REQUIRE(summary_of({1e8 + .1, 1e8 + .2, 1e8 + .3}).standard_deviation() == Approx(0.0816496).epsilon(1e-5));

  summary light;
  light.add(10, 0.5);
  light.add(20, 0.25);
  REQUIRE(light.mean() == Approx(40.0 / 3.0));
  summary resumed;
  resumed.load_state_dict(light.state_dict());
  REQUIRE(resumed.mean() == light.mean());
  REQUIRE(resumed.weight() == 0.75);
}

TEST_CASE("summaries: weights, extremes, emptiness, NaN", "[report][summary]") {
  summary s;
  REQUIRE(s.empty());
  REQUIRE(std::isnan(s.mean()));
  REQUIRE(std::isnan(s.max()));
  s.add(1, 3);
  s.add(5, 1);
  s.add(99, 0);
  REQUIRE(s.mean() == 2.0);
  REQUIRE(s.variance() == 3.0);
  REQUIRE(s.min() == 1.0);
  REQUIRE(s.max() == 5.0);
  REQUIRE(s.count() == 2);
  REQUIRE(s.weight() == 4.0);
  REQUIRE_THROWS_AS(s.add(1, -1), observation_error);
  REQUIRE_THROWS_AS(s.add(1, std::numeric_limits<double>::infinity()), observation_error);
  s.add(std::numeric_limits<double>::quiet_NaN());
  s.add(0);
  REQUIRE(std::isnan(s.mean()));
  REQUIRE(std::isnan(s.min()));
  REQUIRE(std::isnan(s.max()));
}

TEST_CASE("merging summaries equals adding everything to one, in any split", "[report][summary]") {
  std::mt19937 random(5);
  std::normal_distribution<double> values(1e6, 3.0);
  std::vector<double> all;
  for (int i = 0; i < 200; ++i) all.push_back(values(random));
  const auto whole = summary_of(all);
  for (const std::size_t split : {std::size_t{0}, std::size_t{1}, std::size_t{77}, std::size_t{200}}) {
    const auto middle = all.begin() + static_cast<std::ptrdiff_t>(split);
    auto merged = summary_of({all.begin(), middle});
    merged.merge(summary_of({middle, all.end()}));
    REQUIRE(merged.count() == whole.count());
    REQUIRE(merged.mean() == Approx(whole.mean()).epsilon(1e-14));
    REQUIRE(merged.variance() == Approx(whole.variance()).epsilon(1e-9));
    REQUIRE(merged.min() == whole.min());
    REQUIRE(merged.max() == whole.max());
  }
}

TEST_CASE("a table averages each key over the iterations that reported it (ppe defect 37)", "[report][summary][ppe]") {
  observations seen;
  summary_table table;
  for (int i = 0; i < 4; ++i) {
    seen.clear();
    seen.report("always", i, 1.0);
    if (i < 2) seen.report("sometimes", i == 0 ? 100.0 : 0.0);
    seen.report("weighted", i == 3 ? 0.0 : 1.0, i == 3 ? 1.0 : 4.0);  // a short last batch
    table.add(seen);
  }
  REQUIRE(table.keys() == std::vector<std::string>{"always", "sometimes", "weighted"});
  REQUIRE(table.find("always")->mean() == 1.5);
  REQUIRE(table.find("sometimes")->mean() == 50.0);
  REQUIRE(table.find("weighted")->mean() == Approx(12.0 / 13.0));
  REQUIRE(table.find("never") == nullptr);

  summary_table resumed;
  resumed.load_state_dict(table.state_dict());
  REQUIRE(resumed.keys() == table.keys());
  REQUIRE(resumed.find("weighted")->mean() == table.find("weighted")->mean());
}

TEST_CASE("infinities make means in any order", "[report][summary]") {
  const double inf = std::numeric_limits<double>::infinity();
  const auto mean = [](const std::vector<double>& all) {
    summary whole;
    summary first;
    summary second;
    for (std::size_t i = 0; i < all.size(); ++i) {
      whole.add(all[i]);
      (i < all.size() / 2 ? first : second).add(all[i]);
    }
    first.merge(second);
    CHECK((first.mean() == whole.mean() || (std::isnan(first.mean()) && std::isnan(whole.mean()))));
    return whole.mean();
  };
  CHECK(mean({inf, 1, 1, 1}) == inf);
  CHECK(mean({1, 1, 1, inf}) == inf);
  CHECK(mean({1, -inf, 1, -inf}) == -inf);
  CHECK(std::isnan(mean({inf, 1, -inf, 1})));
  CHECK(std::isnan(mean({1, std::nan(""), inf, 1})));
}

}  // namespace report_test

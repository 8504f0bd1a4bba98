// Metrics give the same for any division of the samples into batches and ranks.
#include "rondo/extensions/metrics.hpp"

#include <torch/types.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "rondo/error.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"

namespace ext_metrics_test {

using namespace rondo;
using rondo::testing::contains;
using rondo::testing::message_of;

namespace {

using torch::tensor;
const auto integers = torch::kLong;

template <class M>
double value_of(M metric, const at::Tensor& output, const at::Tensor& target) {
  metric.reset();
  metric.update(output, target);
  return metric.compute();
}

bool near(double a, double b) { return std::abs(a - b) <= 1e-12 * std::max(1.0, std::abs(b)); }

/// The same samples in uneven batches, and on three ranks, of which the second has none.
template <class M>
void require_divisible(const M& metric, const at::Tensor& output, const at::Tensor& target) {
  const double whole = value_of(metric, output, target);
  REQUIRE(std::isfinite(whole));
  for (const std::int64_t first : {1, 3, 10}) {
    M batches = metric;
    batches.reset();
    const auto rest = output.size(0) - first;
    for (const auto& [from, count] : {std::pair(std::int64_t{0}, first), std::pair(first, rest)})
      batches.update(output.narrow(0, from, count), target.narrow(0, from, count));
    INFO("a first batch of " << first << ": " << batches.compute() << " instead of " << whole);
    CHECK(near(batches.compute(), whole));

    std::vector<std::string> parts;
    for (const auto& [from, count] :
         {std::pair(std::int64_t{0}, first), std::pair(first, std::int64_t{0}), std::pair(first, rest)}) {
      M rank = metric;
      rank.reset();
      if (count > 0) rank.update(output.narrow(0, from, count), target.narrow(0, from, count));
      parts.push_back(rank.pack());
    }
    M joined = metric;
    joined.merge(parts);
    CHECK(near(joined.compute(), whole));
    M again = metric;
    again.merge({joined.pack()});
    CHECK(again.compute() == joined.compute());
  }
}

template <class F>
std::string refused(F f) {
  return message_of<error>([&] { static_cast<void>(f()); });
}

// Answers 0 1 1 2 2 0 for targets 0 1 2 2 2 1.
const at::Tensor& scores() {
  static const auto all = tensor({{3., 1., 0.}, {0., 2., 1.}, {0., 5., 4.}, {0., 1., 2.}, {1., 0., 3.}, {4., 3., 0.}});
  return all;
}
const at::Tensor& truth() {
  static const auto all = tensor({0, 1, 2, 2, 2, 1}, integers);
  return all;
}

}  // namespace

TEST_CASE("a confusion matrix counts targets in rows and answers in columns", "[ext][metrics]") {
  const metrics::confusion_matrix confusion;
  auto used = confusion;
  CHECK_FALSE(confusion.matrix().defined());
  used.update(scores(), truth());
  CHECK(confusion.matrix().equal(tensor({{1, 0, 0}, {1, 1, 0}, {0, 1, 2}}, integers)));
  const auto reported = used.compute();
  REQUIRE(reported.size() == 9);
  CHECK(reported.at("confusion/1/0") == 1.0);
  CHECK(reported.at("confusion/2/2") == 2.0);
  used.update(scores(), truth());
  CHECK(confusion.matrix().sum().item<std::int64_t>() == 12);

  auto large = metrics::confusion_matrix();
  large.update(torch::rand({4, 6}), torch::zeros({4}, integers));
  CHECK(large.compute().empty());
  CHECK(large.matrix().sizes() == at::IntArrayRef({6, 6}));
}

TEST_CASE("precision, recall and F1 of several classes", "[ext][metrics]") {
  using metrics::averaging;
  // Per class: precision 1/2, 1/2, 1; recall 1, 1/2, 2/3; F1 2/3, 1/2, 4/5.
  CHECK(near(value_of(metrics::precision({.average = averaging::macro}), scores(), truth()), 2.0 / 3));
  CHECK(near(value_of(metrics::recall({.average = averaging::macro}), scores(), truth()), 13.0 / 18));
  CHECK(near(value_of(metrics::f1({.average = averaging::macro}), scores(), truth()), (2.0 / 3 + 0.5 + 0.8) / 3));
  CHECK(near(value_of(metrics::f1({.average = averaging::weighted}), scores(), truth()),
             (2.0 / 3 + 2 * 0.5 + 3 * 0.8) / 6));
  CHECK(near(value_of(metrics::precision({.average = averaging::micro}), scores(), truth()), 4.0 / 6));
  CHECK(near(value_of(metrics::recall({.positive = 2}), scores(), truth()), 2.0 / 3));
  CHECK(metrics::f1({.name = "f1/macro"}).name() == "f1/macro");
  CHECK(metrics::recall().name() == "recall");
}

TEST_CASE("scores of two classes are compared with a threshold", "[ext][metrics]") {
  const auto output = tensor({0.9, 0.6, 0.4, 0.2, 0.7});
  const auto target = tensor({1, 0, 1, 0, 1}, integers);
  CHECK(near(value_of(metrics::precision(), output, target), 2.0 / 3));
  CHECK(near(value_of(metrics::recall(), output, target), 2.0 / 3));
  CHECK(value_of(metrics::recall({.threshold = 0.3}), output, target) == 1.0);
}

TEST_CASE("where there is nothing to divide by, the option says what counts", "[ext][metrics]") {
  const auto output = tensor({0.1, 0.2});
  const auto target = tensor({1, 1}, integers);
  CHECK(value_of(metrics::precision(), output, target) == 0.0);
  CHECK(value_of(metrics::precision({.zero_division = 1.0}), output, target) == 1.0);
  CHECK(std::isnan(metrics::precision().compute()));
  CHECK(std::isnan(metrics::mean_squared_error().compute()));
  CHECK(std::isnan(metrics::r2().compute()));
  CHECK(std::isnan(metrics::roc_auc().compute()));
  CHECK(std::isnan(metrics::perplexity().compute()));
  CHECK(std::isnan(metrics::top_k_accuracy(2).compute()));
}

TEST_CASE("top-k accuracy looks at the k greatest outputs", "[ext][metrics]") {
  CHECK(near(value_of(metrics::top_k_accuracy(1), scores(), truth()), 4.0 / 6));
  CHECK(value_of(metrics::top_k_accuracy(2), scores(), truth()) == 1.0);
  CHECK(metrics::top_k_accuracy(5).name() == "top5_accuracy");
  CHECK(contains(refused([] { return value_of(metrics::top_k_accuracy(4), scores(), truth()); }), "3 classes"));
  CHECK_THROWS_AS(metrics::top_k_accuracy(0), option_error);
}

TEST_CASE("the area under the ROC curve is that of the definition", "[ext][metrics]") {
  torch::manual_seed(7);
  const auto output = torch::randint(0, 6, {60}).to(torch::kDouble);  // with many ties
  const auto target = torch::randint(0, 2, {60}, integers);
  double won = 0.0;
  double pairs = 0.0;
  for (std::int64_t i = 0; i < 60; ++i)
    for (std::int64_t j = 0; j < 60; ++j) {
      if (target[i].item<std::int64_t>() != 1 || target[j].item<std::int64_t>() != 0) continue;
      const double a = output[i].item<double>();
      const double b = output[j].item<double>();
      won += a > b ? 1.0 : a == b ? 0.5 : 0.0;
      pairs += 1.0;
    }
  CHECK(near(value_of(metrics::roc_auc(), output, target), won / pairs));
  CHECK(value_of(metrics::roc_auc(), tensor({0.1, 0.4, 0.8}), tensor({0, 0, 1}, integers)) == 1.0);
  CHECK(value_of(metrics::roc_auc(), tensor({0.5, 0.5, 0.5}), tensor({0, 1, 1}, integers)) == 0.5);
  CHECK(std::isnan(value_of(metrics::roc_auc(), tensor({0.5, 0.6}), tensor({1, 1}, integers))));

  const auto two = torch::stack({-output, output}, 1);
  CHECK(near(value_of(metrics::roc_auc(), two, target), won / pairs));
  double mean = 0.0;
  for (std::int64_t c = 0; c < 3; ++c)
    mean += value_of(metrics::roc_auc(), scores().select(1, c), truth().eq(c).to(integers)) / 3;
  CHECK(near(value_of(metrics::roc_auc(), scores(), truth()), mean));
}

TEST_CASE("errors of regressions are over all elements", "[ext][metrics]") {
  const auto output = tensor({{1., 2.}, {3., 5.}});
  const auto target = tensor({{1., 0.}, {2., 5.}});
  CHECK(value_of(metrics::mean_squared_error(), output, target) == 1.25);
  CHECK(near(value_of(metrics::root_mean_squared_error(), output, target), std::sqrt(1.25)));
  CHECK(value_of(metrics::mean_absolute_error(), output, target) == 0.75);
  CHECK(near(value_of(metrics::r2(), output, target), 1.0 - 5.0 / 14.0));

  // Squares of the numbers themselves would lose the deviations altogether.
  const auto far = tensor({1e8, 1e8 + 1, 1e8 + 2}, torch::kDouble);
  CHECK(near(value_of(metrics::r2(), far + tensor({0.5, 0.0, 0.0}, torch::kDouble), far), 1.0 - 0.25 / 2.0));
}

TEST_CASE("perplexity is that of all tokens", "[ext][metrics]") {
  const auto uniform = torch::zeros({2, 5, 3}, torch::kDouble);
  const auto target = torch::randint(0, 5, {2, 3}, integers);
  CHECK(near(value_of(metrics::perplexity(), uniform, target), 5.0));
  auto padded = target.clone();
  padded[1].fill_(-100);
  auto output = uniform.clone();
  output[1] = torch::rand({5, 3}, torch::kDouble) * 100;
  CHECK(near(value_of(metrics::perplexity(), output, padded), 5.0));
}

TEST_CASE("the mean of anything", "[ext][metrics]") {
  const metrics::mean widest("widest",
                             [](const at::Tensor& output, const at::Tensor&) { return std::get<0>(output.max(1)); });
  CHECK(near(value_of(widest, scores(), truth()), (3 + 2 + 5 + 2 + 3 + 4) / 6.0));
  const metrics::mean of_batch("of_batch", [](const at::Tensor& output, const at::Tensor&) { return output.mean(); });
  CHECK(near(value_of(of_batch, scores(), truth()), scores().mean().item<double>()));
  CHECK_THROWS_AS(metrics::mean("", [](const auto& output, const auto&) { return output; }), option_error);
  CHECK_THROWS_AS(metrics::mean("x", nullptr), option_error);
}

TEST_CASE("every metric gives the same for any division into batches and ranks", "[ext][metrics][ranks]") {
  torch::manual_seed(11);
  const auto output = torch::randn({40, 4}, torch::kDouble);
  const auto target = torch::randint(0, 4, {40}, integers);
  using metrics::averaging;
  require_divisible(metrics::top_k_accuracy(2), output, target);
  for (const auto average : {averaging::binary, averaging::macro, averaging::micro, averaging::weighted}) {
    require_divisible(metrics::precision({.average = average}), output, target);
    require_divisible(metrics::recall({.average = average}), output, target);
    require_divisible(metrics::f1({.average = average}), output, target);
  }
  require_divisible(metrics::roc_auc(), output, target);
  require_divisible(metrics::perplexity(), output, target);
  require_divisible(metrics::mean("largest", [](const auto& o, const auto&) { return std::get<0>(o.max(1)); }), output,
                    target);
  const auto numbers = output + torch::randn({40, 4}, torch::kDouble);
  require_divisible(metrics::mean_squared_error(), output, numbers);
  require_divisible(metrics::root_mean_squared_error(), output, numbers);
  require_divisible(metrics::mean_absolute_error(), output, numbers);
  require_divisible(metrics::r2(), output, numbers);
}

TEST_CASE("what does not fit is refused with what was found", "[ext][metrics]") {
  const auto column = torch::zeros({4, 1});
  const auto row = torch::zeros({4});
  for (const auto& message : {refused([&] { return value_of(metrics::mean_squared_error(), column, row); }),
                              refused([&] { return value_of(metrics::r2(), column, row); })}) {
    CHECK(contains(message, "[4, 1]"));
    CHECK(contains(message, "[4]"));
  }
  CHECK(contains(refused([&] { return value_of(metrics::f1(), scores(), truth().to(torch::kFloat)); }), "Float"));
  CHECK(contains(refused([&] { return value_of(metrics::f1(), scores(), truth() + 1); }), "there is a target 3"));
  CHECK(contains(refused([&] { return value_of(metrics::recall({.positive = 3}), scores(), truth()); }), "class 3"));
  CHECK(contains(refused([&] { return value_of(metrics::perplexity(), scores(), truth().view({2, 3})); }), "[2, 3]"));
  metrics::precision changing;
  changing.update(scores(), truth());
  CHECK(contains(refused([&] {
                   changing.update(torch::rand({2, 7}), torch::zeros({2}, integers));
                   return 0;
                 }),
                 "[3, 3]"));
}

}  // namespace ext_metrics_test

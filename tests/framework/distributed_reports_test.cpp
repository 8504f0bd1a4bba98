// What extensions tell where several ranks train together.

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>
#include <torch/types.h>

#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "rondo/extensions.hpp"
#include "rondo/rondo.hpp"
#include "support/catch.hpp"
#include "support/ranks.hpp"
#include "support/temporary_directory.hpp"

namespace distributed_reports_test {

namespace {

using namespace rondo;
using rondo::testing::on_ranks;
using rondo::testing::temporary_directory;

data::tensor_dataset points(std::int64_t count) {
  const auto x = torch::arange(count, torch::kFloat).div(static_cast<double>(count)).unsqueeze(1);
  return {x, x * 3 - 1};
}

/// How many answers are not zero, which is no mean.
class hits {
 public:
  [[nodiscard]] std::string name() const { return "hits"; }
  void reset() { count_ = 0; }
  void update(const at::Tensor& output, const at::Tensor&) { count_ += output.numel(); }
  [[nodiscard]] double compute() const { return static_cast<double>(count_); }
  [[nodiscard]] at::Tensor sums() const { return torch::tensor({count_}, torch::kInt64); }
  void set_sums(const at::Tensor& sums) { count_ = sums.item<std::int64_t>(); }

 private:
  std::int64_t count_ = 0;
};

/// A mean without sums.
class spread {
 public:
  void reset() { sum_ = 0, count_ = 0; }
  void update(const at::Tensor&, const at::Tensor& target) {
    sum_ += target.abs().sum().item<double>();
    count_ += target.numel();
  }
  [[nodiscard]] std::map<std::string, double> compute() const {
    return {{"spread", sum_ / static_cast<double>(count_)}};
  }

 private:
  double sum_ = 0;
  std::int64_t count_ = 0;
};

struct seen_values {
  std::map<std::string, double> values;
  std::string table;
  std::string progress;
};

/// Trains four epochs on `ranks` ranks, each with its share, and gives what every rank has seen.
std::vector<seen_values> train(int ranks, const std::filesystem::path& out, std::int64_t test_samples,
                               const trigger& log_when = every(epochs(1)), std::int64_t epochs = 4) {
  std::vector<seen_values> all(static_cast<std::size_t>(ranks));
  on_ranks(ranks, [&](const distributed::rank_group& group) {
    auto& mine = all[static_cast<std::size_t>(group.rank())];
    auto model = std::make_shared<torch::nn::LinearImpl>(1, 1);
    {
      const torch::NoGradGuard no_gradients;
      model->weight.fill_(0.5);
      model->bias.fill_(0.25);
    }
    torch::optim::SGD optimizer(model->parameters(), 0.1);
    const auto train_points = points(24);
    const auto test_points = points(test_samples);
    auto batches = train_points | data::distributed(group.rank(), ranks) | data::batch(12 / ranks);
    auto test = test_points | data::distributed(group.rank(), ranks, {.even = false}) | data::batch(2);
    loop training(model, optimizer, batches, torch::nn::functional::mse_loss,
                  {.max_epochs = epochs, .out = out, .group = group});
    std::ostringstream table;
    std::ostringstream bar;
    training | evaluator(test, hits(), spread()) | log_report({.trigger = log_when}) |
        print_report({}, {.out = &table, .terminal = false}) | progress_bar({.out = &bar, .terminal = false}) |
        snapshot({.autoload = true}).triggered(every(iterations(3))) | make_extension("watcher", [&mine](context& ctx) {
          ctx.on<extensions::log_entry>([&mine](const extensions::log_entry& entry) {
            for (const auto& [key, value] : entry.values) mine.values[key.str()] = value.number();
          });
        });
    training.run();
    mine.table = table.str();
    mine.progress = bar.str();
  });
  return all;
}

std::vector<nlohmann::json> lines_of(const std::filesystem::path& file) {
  std::ifstream in(file);
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(in, line);) {
    lines.push_back(nlohmann::json::parse(line));
    lines.back().erase("elapsed_time");
  }
  return lines;
}

}  // namespace

TEST_CASE("all ranks report what one process would", "[ranks][reports]") {
  const temporary_directory alone;
  const auto expected = train(1, alone.path(), 13).at(0).values;
  CHECK(expected.at("validation/hits") == 13.0);
  for (const int ranks : {2, 3}) {
    const temporary_directory out;
    const auto all = train(ranks, out.path(), 13);
    for (const auto& one : all) {
      CHECK(one.values == all[0].values);
      REQUIRE(one.values.size() == expected.size());
      for (const auto& [key, value] : expected)
        if (key != "elapsed_time") CHECK(one.values.at(key) == Approx(value).epsilon(1e-6));
    }
    CHECK(lines_of(out.path() / "log").size() == 4);
  }
}

TEST_CASE("a rank without anything to evaluate reports with the others", "[ranks][reports]") {
  const temporary_directory alone;
  const auto expected = train(1, alone.path(), 2).at(0).values;
  const temporary_directory out;
  const auto all = train(3, out.path(), 2);
  for (const auto& one : all) {
    CHECK(one.values.at("validation/hits") == 2.0);
    CHECK(one.values.at("validation/loss") == Approx(expected.at("validation/loss")).epsilon(1e-6));
    CHECK(one.values.at("validation/spread") == Approx(expected.at("validation/spread")).epsilon(1e-6));
  }
}

TEST_CASE("no rank has anything to evaluate", "[ranks][reports]") {
  const temporary_directory out;
  CHECK_THROWS_AS(train(2, out.path(), 0), option_error);
}

TEST_CASE("rank 0 alone writes, prints and shows", "[ranks][reports]") {
  const temporary_directory out;
  const auto all = train(2, out.path(), 4);
  CHECK(all[0].table.find("validation/loss") != std::string::npos);
  CHECK(!all[0].progress.empty());
  CHECK(all[1].table.empty());
  CHECK(all[1].progress.empty());
}

TEST_CASE("a resumed log of several ranks is that of an unbroken run", "[ranks][reports][resume]") {
  const auto when = every(iterations(5));
  const temporary_directory unbroken;
  const auto expected = train(2, unbroken.path(), 4, when, 6);
  const temporary_directory broken;
  // Two iterations an epoch and a snapshot every third: in the middle of a line.
  train(2, broken.path(), 4, when, 4);
  const auto resumed = train(2, broken.path(), 4, when, 6);
  CHECK(lines_of(broken.path() / "log") == lines_of(unbroken.path() / "log"));
  CHECK(resumed[1].values.at("train/loss") == expected[1].values.at("train/loss"));
}

TEST_CASE("a value of each rank's own is judged as one", "[ranks][reports]") {
  // Rank 0 sees improvement where there is none over both.
  std::array<std::int64_t, 2> stopped{};
  on_ranks(2, [&](const distributed::rank_group& group) {
    const temporary_directory out;
    auto model = std::make_shared<torch::nn::LinearImpl>(1, 1);
    torch::optim::SGD optimizer(model->parameters(), 0.1);
    const auto some = points(16);
    auto batches = some | data::distributed(group.rank(), 2) | data::batch(2);
    loop training(model, optimizer, batches, torch::nn::functional::mse_loss,
                  {.max_epochs = 10,
                   .stop_trigger = early_stopping(
                       {.monitor = "own", .patience = 3, .direction = better::lower, .check = every(iterations(1))}),
                   .out = out.path(),
                   .group = group});
    training | make_extension("own", [&group](context& ctx) {
                 ctx.on<event::iteration_completed>([&ctx, &group] {
                   const auto i = static_cast<double>(ctx.iteration());
                   ctx.report("own", group.rank() == 0 ? 10.0 - i : 10.0 + 2 * i);
                 });
               }).at_priority(priority::writer);
    stopped[static_cast<std::size_t>(group.rank())] = training.run().iteration;
  });
  CHECK(stopped[0] == 4);
  CHECK(stopped[1] == 4);
}

TEST_CASE("shares for evaluation leave nothing out and use nothing twice", "[data][distributed]") {
  for (std::int64_t size = 0; size < 9; ++size)
    for (std::int64_t ranks = 1; ranks < 5; ++ranks) {
      std::vector<std::int64_t> numbers(static_cast<std::size_t>(size));
      for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<std::int64_t>(i);
      std::multiset<std::int64_t> used;
      for (std::int64_t rank = 0; rank < ranks; ++rank) {
        std::int64_t count = 0;
        for (const auto number : numbers | data::distributed(rank, ranks, {.even = false}))
          used.insert(number), ++count;
        CHECK(count >= size / ranks);
        CHECK(count <= size / ranks + 1);
      }
      CHECK(used == std::multiset<std::int64_t>(numbers.begin(), numbers.end()));
    }
  CHECK_THROWS_AS(data::distributed(0, 2, {.drop_last = true, .even = false}), option_error);
}

}  // namespace distributed_reports_test

#include <torch/types.h>

#include <filesystem>
#include <range/v3/view/filter.hpp>
#include <range/v3/view/iota.hpp>
#include <string>
#include <vector>

#include "rondo/data/data.hpp"
#include "rondo/extensions/evaluator.hpp"
#include "rondo/extensions/log_report.hpp"
#include "rondo/extensions/modes.hpp"
#include "rondo/extensions/snapshot/snapshot.hpp"
#include "support/catch.hpp"
#include "support/small_loops.hpp"
#include "support/temporary_directory.hpp"

namespace ext_modes_test {

using namespace rondo;
using namespace rondo::testing;

namespace {

/// What each epoch gives.
template <class Range>
std::vector<std::vector<std::int64_t>> epochs_of(Range range, std::int64_t count) {
  std::vector<std::vector<std::int64_t>> all;
  for (std::int64_t epoch = 0; epoch < count; ++epoch) {
    data::set_epoch(range, epoch);
    auto& seen = all.emplace_back();
    for (auto&& value : range) seen.push_back(value);
  }
  return all;
}

}  // namespace

TEST_CASE("overfit_batches gives the same batches in every epoch", "[ext][modes]") {
  const auto numbers = ranges::views::iota(std::int64_t{0}, std::int64_t{20});
  SECTION("of a shuffled data set, those of its first epoch") {
    const auto shuffled = epochs_of(numbers | data::shuffle(5), 2);
    REQUIRE(shuffled[0] != shuffled[1]);
    const std::vector<std::int64_t> first(shuffled[0].begin(), shuffled[0].begin() + 3);
    for (const auto& epoch : epochs_of(numbers | data::shuffle(5) | overfit_batches(3), 3)) CHECK(epoch == first);
  }
  SECTION("of a stream") {
    auto stream = numbers | ranges::views::filter([](std::int64_t i) { return i % 2 == 0; }) | overfit_batches(2);
    for (const auto& epoch : epochs_of(stream, 2)) CHECK(epoch == std::vector<std::int64_t>{0, 2});
  }
  SECTION("all, if there are fewer") { CHECK(epochs_of(numbers | overfit_batches(100), 1)[0].size() == 20); }
  SECTION("with its size, constant time and batches made at once") {
    const auto set = data::tensor_dataset(torch::arange(12), torch::arange(12));
    const auto batches = set | data::shuffle(1) | data::batch(4) | overfit_batches(2);
    CHECK(batches.size() == 2);
    const auto examples = set | data::shuffle(1) | overfit_batches(5) | data::batch(4);
    REQUIRE(examples.size() == 2);
    CHECK(examples[1].data.numel() == 1);
  }
  CHECK_THROWS_AS(overfit_batches(0), option_error);
}

TEST_CASE("a loop over overfit_batches learns its batches by heart", "[ext][modes]") {
  const problem p;
  loop l(p.model, p.optimizer, p.batches() | overfit_batches(2), torch::nn::functional::mse_loss, {.max_epochs = 300});
  double loss = 1.0;
  l | make_extension("watch", [&](context& ctx) {
    ctx.on<event::epoch_completed>([&] {
      loss = ctx.observed("train/loss");
      CHECK(ctx.iteration() == 2 * ctx.epoch());
    });
  });
  l.run();
  CHECK(loss < 1e-3);
}

TEST_CASE("a fast run goes through everything once and leaves nothing behind", "[ext][modes]") {
  const problem p;
  temporary_directory dir;
  std::filesystem::path out;
  std::int64_t evaluated = 0;
  {
    const fast_run fast({.batches = 2});
    const auto options = fast.options({.max_epochs = 50, .max_iterations = 1, .out = dir.path()});
    out = options.out;
    loop l(p.model, p.optimizer, p.batches() | fast.limit(), torch::nn::functional::mse_loss, options);
    l | evaluator(p.batches() | fast.limit()) | log_report() | snapshot({.autoload = true}) |
        make_extension("watch", [&](context& ctx) { ctx.on<event::evaluation_completed>([&] { ++evaluated; }); });
    const auto result = l.run();
    CHECK(result.iteration == 2);
    CHECK(result.stop_reason == "1 epochs completed");
    CHECK(std::filesystem::exists(out / "snapshot_iter_2"));
    CHECK(std::filesystem::file_size(out / "log") > 0);
  }
  CHECK(evaluated == 1);
  CHECK_FALSE(std::filesystem::exists(out));
  CHECK(std::filesystem::is_empty(dir.path()));
}

TEST_CASE("a fast run that is none changes nothing", "[ext][modes]") {
  const fast_run fast({.enabled = false});
  const problem p;
  const auto options = fast.options({.max_epochs = 2, .out = "elsewhere"});
  CHECK(options.max_epochs == 2);
  CHECK(options.out == "elsewhere");
  loop l(p.model, p.optimizer, p.batches() | fast.limit(), torch::nn::functional::mse_loss, options);
  CHECK(l.run().iteration == 16);
}

TEST_CASE("a fast run may be told where its files go", "[ext][modes]") {
  temporary_directory dir;
  { CHECK(fast_run({.out = dir.path()}).options({.max_epochs = 9}).out == dir.path()); }
  CHECK(std::filesystem::exists(dir.path()));
  CHECK_THROWS_AS(fast_run({.batches = 0}), option_error);
}

}  // namespace ext_modes_test

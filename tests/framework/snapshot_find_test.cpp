#include "rondo/extensions/snapshot/find.hpp"

#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>
#include <torch/types.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "rondo/extensions.hpp"
#include "rondo/rondo.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"
#include "support/temporary_directory.hpp"

namespace snapshot_find_test {

using namespace rondo;
using namespace rondo::literals;
using rondo::testing::captured_stderr;
using rondo::testing::contains;
using rondo::testing::message_of;
using rondo::testing::temporary_directory;
namespace fs = std::filesystem;

namespace {

/// Trains five iterations, in which the weight becomes 1 to 5 and a score 3, 5, 5, 1, 2 is reported.
void train(const fs::path& out, snapshot_options options = {}) {
  torch::nn::Linear model(1, 1);
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  const std::vector<int> batches{1, 2, 3, 4, 5};
  auto step = [&](context& ctx, int& n) {
    const torch::NoGradGuard no_grad;
    model->weight.fill_(n);
    const std::vector<double> scores{3, 5, 5, 1, 2};
    ctx.report("validation/accuracy", scores[static_cast<std::size_t>(n - 1)]);
    ctx.report("validation/loss", scores[static_cast<std::size_t>(n - 1)]);
  };
  rondo::loop training(model, optimizer, batches, step, {.max_epochs = 1, .out = out});
  training | snapshot(std::move(options)).triggered(every(1_iterations));
  training.run();
}

retention all_with_scores() {
  return retain::last(10) | retain::best(1, "validation/accuracy") | retain::best(1, "validation/loss");
}

double weight_in(const fs::path& snapshot) {
  torch::nn::Linear model(1, 1);
  load_model(model, snapshot);
  return model->weight.item<double>();
}

void damage(const fs::path& file) {
  std::fstream bytes(file, std::ios::in | std::ios::out | std::ios::binary);
  bytes.seekp(static_cast<std::streamoff>(fs::file_size(file) / 2));
  bytes.put('\x55');
  bytes.put('\xaa');
}

}  // namespace

TEST_CASE("the newest sound snapshot is found", "[snapshot][find]") {
  const temporary_directory out;
  CHECK_FALSE(latest_snapshot(out.path()));
  train(out.path());
  CHECK(latest_snapshot(out.path()) == out / "snapshot_iter_5");
  CHECK_FALSE(latest_snapshot(out.path(), "somebody"));
  CHECK(latest_snapshot(out.path(), "snapshot") == out / "snapshot_iter_5");
  CHECK(weight_in(*latest_snapshot(out.path())) == 5);
  damage(out / "snapshot_iter_5");
  const captured_stderr said;
  CHECK(latest_snapshot(out.path()) == out / "snapshot_iter_4");
  CHECK(contains(said.text(), "snapshot_iter_5' is passed over"));
  CHECK_THROWS_AS(latest_snapshot(out / "nowhere"), io_error);
}

TEST_CASE("the best sound snapshot is found", "[snapshot][find]") {
  const temporary_directory out;
  train(out.path(), {.retain = all_with_scores()});
  CHECK(best_snapshot(out.path(), "validation/accuracy") == out / "snapshot_iter_3");
  CHECK(best_snapshot(out.path(), "validation/loss") == out / "snapshot_iter_4");
  CHECK(best_snapshot(out.path(), "validation/loss", better::higher) == out / "snapshot_iter_3");
  damage(out / "snapshot_iter_3");
  const captured_stderr said;
  CHECK(best_snapshot(out.path(), "validation/accuracy") == out / "snapshot_iter_2");
  const auto told = message_of<option_error>([&] { (void)best_snapshot(out.path(), "validation/acuracy"); });
  CHECK(contains(told, "'validation/accuracy', 'validation/loss'"));
}

TEST_CASE("without values of it there is no best snapshot", "[snapshot][find]") {
  const temporary_directory out;
  CHECK_FALSE(best_snapshot(out.path(), "validation/loss"));
  train(out.path());
  CHECK(
      contains(message_of<option_error>([&] { (void)best_snapshot(out.path(), "validation/loss"); }), "retain::best"));
}

TEST_CASE("a model is loaded without anything else", "[snapshot][find]") {
  const temporary_directory out;
  train(out.path());
  torch::nn::LinearImpl object(1, 1);
  load_model(object, out / "snapshot_iter_2");
  CHECK(object.weight.item<double>() == 2);
  CHECK(contains(message_of<state_error>([&] { load_model(object, out / "snapshot_iter_2", "other"); }), "main"));
  torch::nn::Linear larger(2, 2);
  CHECK_THROWS_AS(load_model(larger, out / "snapshot_iter_2"), state_error);
}

}  // namespace snapshot_find_test

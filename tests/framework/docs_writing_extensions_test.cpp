// The page docs/writing_extensions.md, compiled and run.
#include <fmt/format.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>

#include "rondo/data/data.hpp"
#include "rondo/extensions/call.hpp"
#include "rondo/loop/loop.hpp"
#include "support/catch.hpp"

namespace docs_writing_extensions_test {

using namespace rondo;
using namespace rondo::literals;

namespace {

#include "writing_extensions.inc"

struct line {
  line() {
    torch::manual_seed(4);
    x = torch::rand({64, 1}) * 2 - 1;
    model = torch::nn::Linear(1, 1);
  }

  run_result train(const extension& probe, const std::optional<state::value>& from = std::nullopt) {
    torch::optim::SGD optimizer(model->parameters(), 0.3);
    auto batches = data::tensor_dataset(x, 3 * x - 1) | data::batch(8);
    rondo::loop l(model, optimizer, batches, torch::nn::functional::mse_loss, {.max_epochs = 50});
    attach_all(l);
    l | probe;
    if (from)
      l | make_extension("restore",
                         [&](context& ctx) { ctx.on<event::restoring>([&] { ctx.load_state_dict(*from); }); });
    return l.run();
  }

  torch::Tensor x;
  torch::nn::Linear model{nullptr};
};

}  // namespace

TEST_CASE("the extensions that the documentation shows do what it says", "[docs][extension]") {
  std::map<std::int64_t, double> norms;
  std::map<std::int64_t, double> lowest;
  double last_loss = 1.0;
  state::value saved;
  const auto probe = make_extension("probe", [&](context& ctx) {
                       ctx.on<event::iteration_completed>([&] {
                         last_loss = ctx.observed("train/loss");
                         ctx.reported().for_each([&](const std::string& key, const observation& value) {
                           if (key == "weight_norm") norms[ctx.iteration()] = value.value();
                           if (key == "lowest_loss") lowest[ctx.iteration()] = value.value();
                         });
                       });
                       ctx.on<event::training_completed>([&] { saved = state::clone(ctx.state_dict()); });
                     }).at_priority(0);
  line problem;
  const auto result = problem.train(probe);

  CHECK(result.stop_reason == fmt::format("good enough after {} epochs", result.epoch));
  CHECK(result.epoch < 50);
  CHECK(last_loss < 0.05);
  REQUIRE(norms.size() == static_cast<std::size_t>(result.iteration / 2));
  CHECK(norms.begin()->first == 2);
  REQUIRE(lowest.size() == static_cast<std::size_t>(result.iteration / 5));
  for (auto at = lowest.begin(), next = std::next(at); next != lowest.end(); at = next++)
    CHECK(next->second <= at->second);

  // What the class has seen is part of the snapshot.
  const auto& memory = saved.at("extensions").at("lowest_loss").at("extension");
  CHECK(memory.at("value").number() == lowest.rbegin()->second);
}

}  // namespace docs_writing_extensions_test

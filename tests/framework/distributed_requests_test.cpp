// Stops and wishes for snapshots that one rank has, and all carry out.

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>
#include <torch/types.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>

#include "rondo/extensions.hpp"
#include "rondo/rondo.hpp"
#include "support/catch.hpp"
#include "support/ranks.hpp"
#include "support/temporary_directory.hpp"

namespace distributed_requests_test {

namespace {

using namespace rondo;
using rondo::testing::on_ranks;
using rondo::testing::temporary_directory;

/// Two ranks train ten iterations. While rank 0 waits for rank 1 at the end of the first one, `ask` is called on rank
/// 0. Rank 1 does not come before that.
template <class Ask>
std::array<run_result, 2> ask_during_exchange(const std::filesystem::path& out, Ask ask) {
  std::array<run_result, 2> results;
  std::atomic<bool> asked = false;
  on_ranks(2, [&](const distributed::rank_group& group) {
    auto model = std::make_shared<torch::nn::LinearImpl>(1, 1);
    torch::optim::SGD optimizer(model->parameters(), 0.1);
    const data::tensor_dataset points{torch::ones({20, 1}), torch::ones({20, 1})};
    auto batches = points | data::distributed(group.rank(), 2) | data::batch(1);
    loop training(model, optimizer, batches, torch::nn::functional::mse_loss,
                  {.max_iterations = 10, .out = out, .group = group});
    training | snapshot().triggered(every(iterations(100))) | make_extension("asker", [&, group](context& ctx) {
      ctx.on<event::iteration_completed>([&, group] {
        if (ctx.iteration() != 1) return;
        if (group.rank() == 1) {
          asked.wait(false);
          return;
        }
        // Begins when training waits for the first time, which is for rank 1.
        ctx.spawn([&]() -> task<> {
          ask(ctx);
          asked = true;
          asked.notify_all();
          co_return;
        });
      });
    });
    results[static_cast<std::size_t>(group.rank())] = training.run();
  });
  return results;
}

}  // namespace

TEST_CASE("a stop that one rank asks for while it waits for the others is not lost", "[ranks][requests]") {
  const temporary_directory out;
  const auto results = ask_during_exchange(out.path(), [](context& ctx) { ctx.stop("asked for"); });
  for (const auto& result : results) {
    CHECK(result.stop_reason == "asked for");
    CHECK(result.iteration == 2);
  }
}

TEST_CASE("a snapshot that one rank asks for while it waits for the others is not lost", "[ranks][requests]") {
  const temporary_directory out;
  const auto results = ask_during_exchange(out.path(), [](context& ctx) { ctx.request_snapshot(); });
  for (const auto& result : results) CHECK(result.iteration == 10);
  // On one rank alone, the first one would wait for the others for ever.
  CHECK(std::filesystem::exists(out.path() / "snapshot_iter_2"));
}

TEST_CASE("ranks with different numbers of batches are told so at once, inside of an accumulation window too",
          "[ranks][requests]") {
  const std::int64_t accumulate = GENERATE(1, 3);
  const temporary_directory out;
  const auto failures = rondo::testing::failures_on_ranks(2, [&](const distributed::rank_group& group) {
    auto model = std::make_shared<torch::nn::LinearImpl>(1, 1);
    torch::optim::SGD optimizer(model->parameters(), 0.1);
    const std::int64_t count = group.rank() == 0 ? 7 : 8;
    const data::tensor_dataset points{torch::ones({count, 1}), torch::ones({count, 1})};
    loop training(model, optimizer, points | data::batch(1), torch::nn::functional::mse_loss,
                  {.max_epochs = 2, .out = out.path(), .group = group, .accumulate = accumulate});
    training.run();
  });
  for (const auto& failure : failures) {
    REQUIRE(failure);
    INFO(message_of(failure));
    CHECK(message_of(failure).find("ranks do different things") != std::string::npos);
    CHECK(message_of(failure).find("the same number of batches") != std::string::npos);
  }
}

}  // namespace distributed_requests_test

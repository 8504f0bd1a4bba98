// What a snapshot of several ranks must have before it gets its name.

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>
#include <torch/types.h>

#include <filesystem>
#include <memory>
#include <string>

#include "rondo/extensions.hpp"
#include "rondo/rondo.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"
#include "support/ranks.hpp"
#include "support/temporary_directory.hpp"

namespace distributed_snapshot_test {

using namespace rondo;
using rondo::testing::contains;
using rondo::testing::failures_on_ranks;
using rondo::testing::temporary_directory;

TEST_CASE("a sharded snapshot does not exist where a rank has written its part elsewhere", "[ranks][snapshot]") {
  const temporary_directory shared;
  const temporary_directory own;
  const auto failures = failures_on_ranks(2, [&](const distributed::rank_group& group) {
    auto model = std::make_shared<torch::nn::LinearImpl>(1, 1);
    torch::optim::SGD optimizer(model->parameters(), 0.1);
    const data::tensor_dataset points{torch::ones({4, 1}), torch::ones({4, 1})};
    auto batches = points | data::distributed(group.rank(), 2) | data::batch(1);
    loop training(model, optimizer, batches, torch::nn::functional::mse_loss,
                  {.max_iterations = 2, .out = group.rank() == 0 ? shared.path() : own.path(), .group = group});
    training | snapshot({.mode = snapshot_mode::sharded}).triggered(every(iterations(1)));
    training.run();
  });
  REQUIRE(failures[0]);
  CHECK(contains(message_of(failures[0]), "lacks the part of rank 1"));
  REQUIRE(failures[1]);
  CHECK(contains(message_of(failures[1]), "lacks the part of rank 1"));
  CHECK_FALSE(std::filesystem::exists(shared.path() / "snapshot_iter_1"));
}

}  // namespace distributed_snapshot_test

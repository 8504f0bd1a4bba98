// What is left where LibTorch has no c10d, or there is no Gloo; see tests/CMakeLists.txt.

#include <torch/nn.h>
#include <torch/optim.h>

#include <string>
#include <vector>

#include "rondo/distributed/rank_group.hpp"
#include "rondo/extensions.hpp"
#include "rondo/rondo.hpp"
#include "support/catch.hpp"
#include "support/ranks.hpp"
#include "support/temporary_directory.hpp"

namespace without_backend_test {

using namespace rondo;
using distributed::rank_group;

TEST_CASE("several ranks are an error that says how to get them", "[without_backend]") {
  try {
    static_cast<void>(rank_group::connect(testing::launch_of(0, 2, testing::free_port())));
    FAIL("connected");
  } catch (const option_error& e) {
    INFO(e.what());
#ifdef RONDO_WITH_C10D
    CHECK(std::string(e.what()).find("install libgloo-dev") != std::string::npos);
#else
    CHECK(std::string(e.what()).find("libtorch-dev") != std::string::npos);
#endif
  }
}

TEST_CASE("a single process trains, saves and resumes as ever", "[without_backend]") {
  const testing::temporary_directory directory;
  const auto train = [&](std::int64_t iterations) {
    torch::manual_seed(1);
    torch::nn::Linear model(3, 1);
    torch::optim::SGD optimizer(model->parameters(), 0.1);
    const data::tensor_dataset examples{torch::rand({8, 3}), torch::rand({8, 1})};
    loop training(model, optimizer, examples | data::batch(4), torch::nn::functional::mse_loss,
                  {.max_iterations = iterations, .out = directory.path(), .group = rank_group::connect()});
    training | snapshot({.autoload = true});
    return training.run();
  };
  CHECK_FALSE(train(2).resumed_from);
  const auto resumed = train(4);
  CHECK(resumed.resumed_from);
  CHECK(resumed.iteration == 4);
}

}  // namespace without_backend_test

#include "rondo/extensions/fail_on_non_number.hpp"

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>
#include <torch/types.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <string>

#include "rondo/data/data.hpp"
#include "rondo/extensions/call.hpp"
#include "rondo/extensions/snapshot/snapshot.hpp"
#include "rondo/loop/grad_scaler.hpp"
#include "rondo/loop/loop.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"
#include "support/temporary_directory.hpp"

namespace ext_fail_on_non_number_test {

using namespace rondo;
using namespace rondo::literals;
using namespace rondo::testing;

namespace {

struct network : torch::nn::Module {
  at::Tensor forward(const at::Tensor& x) { return second(first(x)); }
  torch::nn::Linear first{register_module("first", torch::nn::Linear(2, 3))};
  torch::nn::Linear second{register_module("second", torch::nn::Linear(3, 1))};
};

struct training {
  run_result run(const extension& guard, const extension& harm, const std::optional<extension>& also = std::nullopt,
                 const std::filesystem::path& out = "result") {
    torch::manual_seed(1);
    torch::optim::SGD optimizer(net->parameters(), 0.01);
    auto batches = data::tensor_dataset(torch::rand({8, 2}), torch::rand({8, 1})) | data::batch(2);
    rondo::loop l(net, optimizer, batches, torch::nn::functional::mse_loss, {.max_epochs = 2, .out = out});
    l | guard | harm;
    if (also) l | *also;
    return l.run();
  }

  std::shared_ptr<network> net = std::make_shared<network>();
};

/// Puts a value into a parameter, or its gradient, after iteration 3.
extension harm(const std::shared_ptr<network>& net, double value, bool gradient) {
  return call("harm", rondo::at({3_iterations}),
              [=] {
                const torch::NoGradGuard no_grad;
                auto weight = net->second->weight;
                (gradient ? weight.mutable_grad() : weight)[0][1] = value;
              })
      .at_priority(priority::editor);
}

constexpr double infinity = std::numeric_limits<double>::infinity();

}  // namespace

TEST_CASE("a parameter that is no number any more ends training with its name", "[ext][fail_on_non_number]") {
  for (const double value : {std::nan(""), infinity, -infinity}) {
    training t;
    try {
      t.run(fail_on_non_number(), harm(t.net, value, false));
      FAIL("nothing was noticed");
    } catch (const non_number_error& e) {
      CHECK(e.model() == "main");
      CHECK(e.parameter() == "second.weight");
      CHECK_FALSE(e.is_gradient());
      CHECK(contains(e.what(), "iteration 3"));
      CHECK(contains(e.what(), std::isnan(value) ? "1 NaN and 0 infinite" : "0 NaN and 1 infinite"));
    }
  }
}

TEST_CASE("gradients are looked at, unless told otherwise", "[ext][fail_on_non_number]") {
  training t;
  try {
    t.run(fail_on_non_number(), harm(t.net, std::nan(""), true));
    FAIL("nothing was noticed");
  } catch (const non_number_error& e) {
    CHECK(e.is_gradient());
    CHECK(e.parameter() == "second.weight");
  }
  training other;
  CHECK(other.run(fail_on_non_number({.check_gradients = false}), harm(other.net, std::nan(""), true)).iteration == 8);
}

TEST_CASE("with finite numbers training goes on", "[ext][fail_on_non_number]") {
  training t;
  CHECK(t.run(fail_on_non_number(), harm(t.net, 1.5, false)).iteration == 8);
  training frozen;
  for (auto& parameter : frozen.net->first->parameters()) parameter.set_requires_grad(false);
  CHECK(frozen.run(fail_on_non_number(), harm(frozen.net, 0.5, false)).iteration == 8);
}

TEST_CASE("the bad state can be kept, beside the good snapshots", "[ext][fail_on_non_number]") {
  const temporary_directory out;
  training t;
  const auto save = snapshot({.snapshot_on_error = true}).triggered(every(1_iterations));
  CHECK_THROWS_AS(t.run(fail_on_non_number(), harm(t.net, infinity, false), save, out.path()), non_number_error);
  std::vector<std::string> bad;
  for (const auto& entry : std::filesystem::directory_iterator(out.path())) {
    const auto name = entry.path().filename().string();
    if (name.starts_with("snapshot_iter_") && name.find('.') != std::string::npos) bad.push_back(name);
  }
  CHECK(bad.size() == 1);
  CHECK(std::filesystem::exists(out / "snapshot_iter_2"));
  CHECK_FALSE(std::filesystem::exists(out / "snapshot_iter_3"));
}

TEST_CASE("gradients of an update that is skipped are no failure", "[ext][fail_on_non_number]") {
  const auto train = [](loop_options options) {
    auto net = std::make_shared<network>();
    torch::optim::SGD optimizer(net->parameters(), 0.01);
    const auto infinite = std::numeric_limits<float>::infinity();
    auto batches = data::tensor_dataset(torch::full({2, 2}, infinite), torch::rand({2, 1})) | data::batch(2);
    options.max_epochs = 1;
    rondo::loop l(net, optimizer, batches, torch::nn::functional::mse_loss, std::move(options));
    l | fail_on_non_number();
    l.run();
  };
  CHECK_THROWS_AS(train({}), non_number_error);
  CHECK_NOTHROW(train({.on_non_finite_gradients = non_finite_gradients::skip}));
  CHECK_NOTHROW(train({.scaler = std::make_shared<grad_scaler>()}));
}

}  // namespace ext_fail_on_non_number_test

#include <torch/nn/module.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>

#include <string>
#include <vector>

#include "rondo/state/digest.hpp"
#include "rondo/state/module.hpp"
#include "support/catch.hpp"

namespace state_module_test {

namespace {

using namespace rondo;
namespace nn = torch::nn;

struct block_impl : nn::Module {
  block_impl() : first(register_module("0", nn::Linear(4, 3))) {}
  torch::Tensor forward(const torch::Tensor& x) { return first(x); }
  nn::Linear first;
};

struct net_impl : nn::Module {
  net_impl() {
    features = register_module("features", nn::Sequential(nn::Conv2d(nn::Conv2dOptions(1, 2, 3).bias(false)),
                                                          nn::BatchNorm2d(2), std::make_shared<block_impl>()));
    scale = register_parameter("scale", torch::ones({2}));
    mask = register_buffer("the mask", torch::zeros({3}, torch::kBool));
    tied = register_parameter("tied", features->at<block_impl>(2).first->weight);
    register_parameter("absent", torch::Tensor(), false);
  }
  nn::Sequential features{nullptr};
  torch::Tensor scale, mask, tied;
};

std::vector<std::string> names(const state::dict& d) {
  std::vector<std::string> all;
  for (const auto& [name, unused] : d) all.push_back(name.str());
  return all;
}

std::string failure(nn::Module& module, const state::value& v, const state::load_options& options = {}) {
  try {
    state::load_module_state(module, v, options);
  } catch (const state_error& e) {
    return e.what();
  }
  return "loaded";
}

bool mentions(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST_CASE("module_state has Python's names in Python's order", "[state][module]") {
  const net_impl net;
  CHECK(names(state::module_state(net)) ==
        std::vector<std::string>{"scale", "tied", "the mask", "features.0.weight", "features.1.weight",
                                 "features.1.bias", "features.1.running_mean", "features.1.running_var",
                                 "features.1.num_batches_tracked", "features.2.0.weight", "features.2.0.bias"});
}

TEST_CASE("module_state shows the live tensors without copying", "[state][module]") {
  net_impl net;
  const state::dict live = state::module_state(net);
  CHECK(live.at("scale").as<at::Tensor>().data_ptr() == net.scale.data_ptr());
  CHECK_FALSE(live.at("scale").as<at::Tensor>().requires_grad());
  CHECK(live.at("tied").as<at::Tensor>().is_alias_of(live.at("features.2.0.weight").as<at::Tensor>()));
  torch::NoGradGuard no_grad;
  net.scale.fill_(4);
  CHECK(torch::equal(live.at("scale").as<at::Tensor>(), torch::full({2}, 4.0)));
}

TEST_CASE("a module's state can be loaded into another", "[state][module]") {
  torch::manual_seed(1);
  net_impl trained;
  trained.features->forward(torch::randn({2, 1, 6, 6}));
  net_impl fresh;
  void* const storage = fresh.scale.data_ptr();
  const auto tied = fresh.tied;
  REQUIRE(state::digest_of(state::module_state(fresh)) != state::digest_of(state::module_state(trained)));

  state::load_module_state(fresh, state::clone(state::module_state(trained)));
  CHECK(state::equal(state::module_state(fresh), state::module_state(trained)));
  CHECK(fresh.features->named_buffers()["1.num_batches_tracked"].item<std::int64_t>() == 1);
  CHECK(fresh.scale.data_ptr() == storage);
  CHECK(fresh.scale.requires_grad());
  CHECK(fresh.tied.is_alias_of(fresh.named_parameters()["features.2.0.weight"]));
}

TEST_CASE("a failing load lists every problem at once and changes nothing", "[state][module]") {
  net_impl net;
  const std::string before = state::digest_of(state::module_state(net));
  state::dict wrong;
  const state::dict good = state::clone(state::module_state(net_impl())).as<state::dict>();
  for (const auto& [name, tensor] : good)
    if (name.str() != "features.1.bias") wrong.insert_or_assign(name, tensor);
  wrong["scale"] = torch::ones({2, 1});
  wrong["tied"] = wrong["tied"].as<at::Tensor>().to(torch::kDouble);
  wrong["the mask"] = "not a tensor";
  wrong["features.0.weight"] = at::Tensor();
  wrong["intruder"] = torch::ones(1);
  wrong[17] = torch::ones(1);

  const std::string problem = failure(net, wrong);
  CHECK(mentions(problem, "missing in the state (1):\n    features.1.bias: expected shape [2] of Float"));
  CHECK(mentions(problem, "scale: expected shape [2] of Float, found shape [2, 1] of Float"));
  CHECK(mentions(problem, "tied: expected shape [3, 4] of Float, found shape [3, 4] of Double"));
  CHECK(mentions(problem, "the mask: expected Tensor, found str"));
  CHECK(mentions(problem, "features.0.weight: the stored tensor is undefined"));
  CHECK(mentions(problem, "unexpected in the state (2):\n    intruder: found shape [1] of Float\n    17: found"));
  CHECK(mentions(problem, "7 problems"));
  CHECK(state::digest_of(state::module_state(net)) == before);
}

TEST_CASE("a single problem is found under its own key", "[state][module]") {
  net_impl net;
  state::dict v = state::clone(state::module_state(net)).as<state::dict>();
  v["scale"] = torch::ones(5);
  try {
    state::load_module_state(net, v);
    FAIL("the shape is wrong");
  } catch (const state_error& e) {
    CHECK(e.key() == "scale");
  }
  CHECK(mentions(failure(net, 3), "expected dict"));
}

TEST_CASE("another dtype is converted where the options say so", "[state][module]") {
  nn::Linear linear(2, 2);
  const auto weight = torch::full({2, 2}, 3.0, torch::kDouble);
  const state::value wide = state::dict{{"weight", weight}, {"bias", torch::ones(2)}};
  CHECK(mentions(failure(*linear, wide), "found shape [2, 2] of Double"));
  CHECK(failure(*linear, wide, {.convert_dtype = true}) == "loaded");
  CHECK(linear->weight.scalar_type() == torch::kFloat);
  CHECK(torch::equal(linear->weight, weight.to(torch::kFloat)));
}

TEST_CASE("the prefix of a parallel wrapper is passed over on either side", "[state][module]") {
  const auto values = [](const std::string& prefix) {
    return state::dict{{prefix + "weight", torch::full({2, 2}, 3.0)}, {prefix + "bias", torch::ones(2)}};
  };
  SECTION("in the state") {
    nn::Linear linear(2, 2);
    state::load_module_state(*linear, values("module."));
    CHECK(torch::equal(linear->weight, torch::full({2, 2}, 3.0)));
  }
  SECTION("in the module") {
    nn::Module wrapper;
    const auto linear = wrapper.register_module("module", nn::Linear(2, 2));
    state::load_module_state(wrapper, values(""));
    CHECK(torch::equal(linear->weight, torch::full({2, 2}, 3.0)));
  }
  SECTION("but not of some names only") {
    nn::Linear linear(2, 2);
    state::dict mixed{{"module.weight", torch::ones({2, 2})}, {"bias", torch::ones(2)}};
    CHECK(mentions(failure(*linear, mixed), "2 problems"));
  }
}

TEST_CASE("expanded parameters are refused instead of half loaded", "[state][module]") {
  nn::Module module;
  module.register_parameter("a", torch::ones({2}));
  module.register_parameter("b", torch::ones({1}).expand({3}), false);
  CHECK(mentions(failure(module, state::dict{{"a", torch::zeros(2)}, {"b", torch::zeros(3)}}), "b: elements"));
  CHECK(torch::equal(module.named_parameters()["a"], torch::ones(2)));
}

}  // namespace

}  // namespace state_module_test

// A training in which every element of the model counts the updates, so that a mixture of two iterations shows.
#pragma once

#include <torch/nn/module.h>
#include <torch/optim/sgd.h>
#include <torch/types.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <range/v3/view/iota.hpp>
#include <string>
#include <utility>
#include <vector>

#include "rondo/checkpoint/reader.hpp"
#include "rondo/checkpoint/tensors.hpp"
#include "rondo/checkpoint/verify.hpp"
#include "rondo/loop/loop.hpp"

namespace rondo::testing {

/// Parameters "p0", "p1", … of zeros.
struct counting_model : torch::nn::Module {
  counting_model(std::int64_t tensors, std::int64_t elements) {
    for (std::int64_t i = 0; i < tensors; ++i)
      mine_.push_back(register_parameter("p" + std::to_string(i), torch::zeros({elements})));
  }
  /// A loss whose gradients are all -1.
  at::Tensor minus_sum() {
    std::vector<at::Tensor> sums;
    for (const auto& p : mine_) sums.push_back(p.sum());
    return -torch::stack(sums).sum();
  }

 private:
  std::vector<at::Tensor> mine_;
};

/// The model together with an optimizer that adds 1 to every element.
struct counting {
  explicit counting(std::int64_t tensors = 2, std::int64_t elements = 8)
      : model(std::make_shared<counting_model>(tensors, elements)),
        optimizer(std::make_shared<torch::optim::SGD>(model->parameters(), torch::optim::SGDOptions(1.0))) {}

  /// 10 iterations per epoch. `during(context&)` runs in each step, before the gradients are computed.
  template <class During>
  [[nodiscard]] rondo::loop loop(const std::filesystem::path& out, std::int64_t iterations, During during) const {
    auto step = [model = model, during = std::move(during)](context& ctx, int&) mutable -> at::Tensor {
      during(ctx);
      return model->minus_sum();
    };
    return rondo::loop(models{{"main", model}}, optimizers(optimizer), ranges::views::ints(0, 10), std::move(step),
                       {.max_iterations = iterations, .out = out});
  }
  [[nodiscard]] rondo::loop loop(const std::filesystem::path& out, std::int64_t iterations) const {
    return loop(out, iterations, [](context&) {});
  }

  std::shared_ptr<counting_model> model;
  std::shared_ptr<torch::optim::SGD> optimizer;
};

/// The one number that all elements of the model in the file are; -1 when they differ. Throws when the file is damaged.
inline double the_number_in(const std::filesystem::path& file) {
  const auto reader = checkpoint::reader::open(file);
  checkpoint::verify(reader);
  const auto state = checkpoint::materialize(reader);
  double number = -2.0;
  for (const auto& [name, value] : state.at("models").at("main").as<state::dict>()) {
    const auto& tensor = value.as<at::Tensor>();
    const auto first = tensor.min().item<double>();
    if (first != tensor.max().item<double>() || (number != -2.0 && number != first)) return -1.0;
    number = first;
  }
  return number;
}

}  // namespace rondo::testing

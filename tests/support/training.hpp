// A small regression that every kind of optimizer can train, the same in every run.
#pragma once

#include <torch/nn/functional/loss.h>
#include <torch/nn/init.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace rondo::testing {

using optimizer_ptr = std::unique_ptr<torch::optim::Optimizer>;

struct optimizer_case {
  std::string name;
  /// The same optimizer in Python, given `first` and `second` (lists of parameters).
  std::string python;
  std::function<optimizer_ptr(std::vector<at::Tensor>, std::vector<at::Tensor>)> make;
};

/// Two parameter groups that differ in lr.
template <class Optimizer, class Options>
optimizer_ptr grouped(std::vector<at::Tensor> first, std::vector<at::Tensor> second, const Options& options) {
  Options slower = options;
  slower.lr(options.lr() * 0.5);
  std::vector<torch::optim::OptimizerParamGroup> groups;
  groups.emplace_back(std::move(first), std::make_unique<Options>(options));
  groups.emplace_back(std::move(second), std::make_unique<Options>(slower));
  return std::make_unique<Optimizer>(std::move(groups), options);
}

inline optimizer_ptr make_lbfgs(std::vector<at::Tensor> first, const std::vector<at::Tensor>& second,
                                const torch::optim::LBFGSOptions& options) {
  first.insert(first.end(), second.begin(), second.end());
  return std::make_unique<torch::optim::LBFGS>(std::move(first), options);
}

/// Every kind of optimizer that LibTorch has, with the options that give it the most state.
inline const std::vector<optimizer_case>& optimizer_cases() {
  using namespace torch::optim;
  using params = std::vector<at::Tensor>;
  static const auto groups = [](const std::string& lr, const std::string& half) {
    return "[{'params': first, 'lr': " + lr + "}, {'params': second, 'lr': " + half + "}], ";
  };
  static const std::vector<optimizer_case> all{
      {"SGD without momentum", "SGD(" + groups("0.1", "0.05") + "lr=0.1)",
       [](params a, params b) { return grouped<SGD>(a, b, SGDOptions(0.1)); }},
      {"SGD with Nesterov momentum",
       "SGD(" + groups("0.1", "0.05") + "lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)",
       [](params a, params b) {
         return grouped<SGD>(a, b, SGDOptions(0.1).momentum(0.9).nesterov(true).weight_decay(0.01));
       }},
      {"Adam", "Adam(" + groups("0.01", "0.005") + "lr=0.01)",
       [](params a, params b) { return grouped<Adam>(a, b, AdamOptions(0.01)); }},
      {"Adam with amsgrad",
       "Adam(" + groups("0.01", "0.005") + "lr=0.01, amsgrad=True, betas=(0.8, 0.99), weight_decay=0.01)",
       [](params a, params b) {
         const auto options = AdamOptions(0.01).amsgrad(true).betas(std::make_tuple(0.8, 0.99)).weight_decay(0.01);
         return grouped<Adam>(a, b, options);
       }},
      {"AdamW", "AdamW(" + groups("0.01", "0.005") + "lr=0.01, weight_decay=0.1)",
       [](params a, params b) { return grouped<AdamW>(a, b, AdamWOptions(0.01).weight_decay(0.1)); }},
      {"RMSprop, centered, with momentum",
       "RMSprop(" + groups("0.01", "0.005") + "lr=0.01, centered=True, momentum=0.9, weight_decay=0.01)",
       [](params a, params b) {
         return grouped<RMSprop>(a, b, RMSpropOptions(0.01).centered(true).momentum(0.9).weight_decay(0.01));
       }},
      {"Adagrad with lr_decay",
       "Adagrad(" + groups("0.1", "0.05") + "lr=0.1, lr_decay=0.1, initial_accumulator_value=0.2)",
       [](params a, params b) {
         return grouped<Adagrad>(a, b, AdagradOptions(0.1).lr_decay(0.1).initial_accumulator_value(0.2));
       }},
      {"LBFGS", "LBFGS(first + second, lr=0.5, max_iter=4, history_size=5)",
       [](params a, params b) { return make_lbfgs(a, b, LBFGSOptions(0.5).max_iter(4).history_size(5)); }},
      {"LBFGS with line search", "LBFGS(first + second, max_iter=4, history_size=5, line_search_fn='strong_wolfe')",
       [](params a, params b) {
         return make_lbfgs(a, b, LBFGSOptions(1).max_iter(4).history_size(5).line_search_fn("strong_wolfe"));
       }},
  };
  return all;
}

/// A model, its optimizer and one batch.
struct training {
  torch::nn::Sequential model{torch::nn::Linear(8, 16), torch::nn::Tanh(), torch::nn::Linear(16, 4)};
  at::Tensor input = torch::linspace(-1, 1, 5 * 8).view({5, 8});
  at::Tensor target = torch::linspace(0, 1, 5 * 4).view({5, 4}).square();
  optimizer_ptr optimizer;

  /// Starts from the parameters that `seed` gives.
  explicit training(const optimizer_case& kind, std::uint64_t seed = 5, at::ScalarType dtype = at::kFloat) {
    torch::manual_seed(seed);
    for (auto& p : model->parameters()) torch::nn::init::normal_(p, 0, 0.3);
    model->to(dtype);
    input = input.to(dtype);
    target = target.to(dtype);
    const auto p = model->parameters();
    optimizer = kind.make({p[0], p[1]}, {p[2], p[3]});
  }

  void steps(int count) {
    for (int i = 0; i < count; ++i)
      optimizer->step([&] {
        optimizer->zero_grad();
        auto loss = torch::nn::functional::mse_loss(model->forward(input), target);
        loss.backward();
        return loss;
      });
  }
};

}  // namespace rondo::testing

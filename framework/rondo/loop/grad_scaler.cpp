#include "rondo/loop/grad_scaler.hpp"

#include <ATen/ops/_amp_foreach_non_finite_check_and_unscale.h>
#include <ATen/ops/full.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <cmath>
#include <utility>
#include <vector>

#include "rondo/error.hpp"
#include "rondo/loop/gradients.hpp"

namespace rondo {

namespace {

void require(bool fits, const char* option, double found, const char* allowed) {
  if (!fits) throw option_error(option, fmt::format("{}", found), allowed);
}

/// What is stored of a gradient.
at::Tensor values_of(const at::Tensor& gradient) { return gradient.is_sparse() ? gradient._values() : gradient; }

using by_kind =
    std::map<std::pair<at::Device, at::ScalarType>, std::vector<at::Tensor>, decltype([](const auto& a, const auto& b) {
               return std::tuple(a.first.type(), a.first.index(), a.second) <
                      std::tuple(b.first.type(), b.first.index(), b.second);
             })>;

by_kind gradients_of(torch::optim::Optimizer& optimizer) {
  by_kind all;
  for (const auto& one : gradients::of(optimizer)) {
    const auto gradient = values_of(one);
    if (gradient.scalar_type() == at::kHalf)
      throw option_error("grad_scaler", "gradients in float16", "parameters in float32, with computation in float16");
    all[{gradient.device(), gradient.scalar_type()}].push_back(gradient);
  }
  return all;
}

// LibTorch's own kernel for this is there on CUDA only.
void unscale_one_by_one(const std::vector<at::Tensor>& gradients, const at::Tensor& found, float inverse) {
  for (const auto& gradient : gradients) {
    found.logical_or_(at::isfinite(gradient).all().logical_not());
    gradient.mul_(inverse);
  }
}

}  // namespace

grad_scaler::grad_scaler(grad_scaler_options options) : options_(options), scale_(options.initial_scale) {
  const auto& o = options_;
  require(o.initial_scale > 0.0 && std::isfinite(o.initial_scale), "initial_scale", o.initial_scale,
          "a positive finite number");
  require(o.growth_factor > 1.0 && std::isfinite(o.growth_factor), "growth_factor", o.growth_factor,
          "a finite number above 1");
  require(o.backoff_factor > 0.0 && o.backoff_factor < 1.0, "backoff_factor", o.backoff_factor,
          "a number between 0 and 1");
  require(o.growth_interval >= 1, "growth_interval", static_cast<double>(o.growth_interval), "1 or more");
}

at::Tensor grad_scaler::scale(const at::Tensor& loss) const {
  // In float32, where a scale that float16 has no number for is one.
  return (loss.scalar_type() == at::kHalf ? loss.to(at::kFloat) : loss) * scale_;
}

void grad_scaler::unscale(torch::optim::Optimizer& optimizer) {
  if (under_way_.contains(&optimizer)) throw error("grad_scaler: gradients were unscaled twice before update()");
  const c10::AutoGradMode no_gradients(false);
  const auto inverse = static_cast<float>(1.0 / scale_);
  at::Tensor found;
  for (const auto& [kind, gradients] : gradients_of(optimizer)) {
    auto here = at::zeros({1}, at::TensorOptions(at::kFloat).device(kind.first));
    if (kind.first.is_cuda())
      at::_amp_foreach_non_finite_check_and_unscale_(gradients, here, at::full({1}, inverse, here.options()));
    else
      unscale_one_by_one(gradients, here, inverse);
    found = found.defined() ? found + here.to(found.device()) : here;
  }
  if (!found.defined()) found = at::zeros({1});
  under_way_.emplace(&optimizer, progress{found, std::nullopt, false});
}

bool grad_scaler::read(progress& p) {
  if (!p.finite) p.finite = p.found_non_finite.item<double>() == 0.0;
  return *p.finite;
}

bool grad_scaler::is_finite(torch::optim::Optimizer& optimizer) {
  if (!under_way_.contains(&optimizer)) unscale(optimizer);
  return read(under_way_.at(&optimizer));
}

bool grad_scaler::step(torch::optim::Optimizer& optimizer) {
  const bool finite = is_finite(optimizer);
  auto& mine = under_way_.at(&optimizer);
  if (mine.stepped) throw error("grad_scaler: step() was called twice for an optimizer before update()");
  mine.stepped = true;
  if (finite) optimizer.step();
  return finite;
}

void grad_scaler::update(std::optional<double> new_scale) {
  if (new_scale) {
    require(*new_scale > 0.0 && std::isfinite(*new_scale), "new_scale", *new_scale, "a positive finite number");
    scale_ = *new_scale;
    under_way_.clear();
    return;
  }
  if (under_way_.empty()) throw error("grad_scaler: update() without a step() before it");
  bool finite = true;
  for (auto& [optimizer, one] : under_way_) finite = read(one) && finite;
  under_way_.clear();
  if (!finite) {
    scale_ = static_cast<float>(scale_ * options_.backoff_factor);
    growth_tracker_ = 0;
  } else if (++growth_tracker_ == options_.growth_interval) {
    const auto grown = static_cast<float>(scale_ * options_.growth_factor);
    if (std::isfinite(grown)) scale_ = grown;
    growth_tracker_ = 0;
  }
}

state::dict grad_scaler::state_dict() const {
  return {{"scale", scale_},
          {"growth_factor", options_.growth_factor},
          {"backoff_factor", options_.backoff_factor},
          {"growth_interval", options_.growth_interval},
          {"_growth_tracker", growth_tracker_}};
}

void grad_scaler::load_state_dict(const state::value& state) {
  const grad_scaler_options options{state.at("scale").number(), state.at("growth_factor").number(),
                                    state.at("backoff_factor").number(), state.get<std::int64_t>("growth_interval")};
  const auto tracker = state.get<std::int64_t>("_growth_tracker");
  try {
    static_cast<void>(grad_scaler(options));
  } catch (const option_error& e) {
    throw state_error(e.option() == "initial_scale" ? "scale" : e.option(),
                      "is " + e.found() + ", expected " + e.allowed());
  }
  options_.growth_factor = options.growth_factor;
  options_.backoff_factor = options.backoff_factor;
  options_.growth_interval = options.growth_interval;
  scale_ = options.initial_scale;
  growth_tracker_ = tracker;
  under_way_.clear();
}

}  // namespace rondo

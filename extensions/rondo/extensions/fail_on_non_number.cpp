#include "rondo/extensions/fail_on_non_number.hpp"

#include <fmt/format.h>
#include <torch/nn/module.h>
#include <torch/types.h>

#include <limits>
#include <memory>
#include <vector>

#include "rondo/event/priority.hpp"
#include "rondo/loop/context.hpp"

namespace rondo {

namespace {

struct suspect {
  std::string model;
  std::string parameter;
  bool is_gradient;
  at::Tensor tensor;
};

class checker {
 public:
  explicit checker(fail_on_non_number_options options) : options_(options) {}

  void attach(context& ctx) {
    ctx.when_due([this, &ctx] { check(ctx); });
  }

 private:
  void check(const context& ctx) const {
    const torch::NoGradGuard no_grad;
    const auto all = suspects(ctx);
    if (all.empty() || all_finite(all)) return;
    for (const auto& one : all)
      if (!torch::isfinite(one.tensor).all().item<bool>()) fail(ctx, one);
  }

  [[nodiscard]] std::vector<suspect> suspects(const context& ctx) const {
    // Where updates with such gradients are skipped, they are no failure, and are still there now.
    const bool gradients_count = options_.check_gradients && !ctx.options().scaler &&
                                 ctx.options().on_non_finite_gradients != non_finite_gradients::skip;
    std::vector<suspect> all;
    for (const auto& model : ctx.models())
      for (const auto& item : model.module->named_parameters()) {
        const auto& parameter = item.value();
        if (!parameter.defined() || parameter.numel() == 0) continue;
        const auto& gradient = parameter.grad();
        if (gradients_count && gradient.defined()) {
          const auto values = gradient.is_sparse() ? gradient._values() : gradient;
          if (values.numel() > 0) all.push_back({model.name, item.key(), true, values});
        }
        if (at::isFloatingType(parameter.scalar_type())) all.push_back({model.name, item.key(), false, parameter});
      }
    return all;
  }

  // The largest absolute value of each: NaN and infinity are what is left of a tensor that has them.
  static bool all_finite(const std::vector<suspect>& all) {
    std::vector<at::Tensor> largest;
    largest.reserve(all.size());
    const auto device = all.front().tensor.device();
    for (const auto& one : all) {
      const auto norm = one.tensor.norm(std::numeric_limits<double>::infinity());
      largest.push_back(norm.to(torch::TensorOptions(device).dtype(torch::kFloat), true));
    }
    return torch::isfinite(torch::stack(largest)).all().item<bool>();
  }

  [[noreturn]] static void fail(const context& ctx, const suspect& one) {
    const auto nans = torch::isnan(one.tensor).sum().item<std::int64_t>();
    const auto infinities = torch::isinf(one.tensor).sum().item<std::int64_t>();
    throw non_number_error(
        one.model, one.parameter, one.is_gradient,
        fmt::format(
            "iteration {}: {} '{}' of model '{}' has {} NaN and {} infinite values of {}; a lower learning rate "
            "or clipping may help",
            ctx.iteration(), one.is_gradient ? "the gradient of" : "the parameter", one.parameter, one.model, nans,
            infinities, one.tensor.numel()));
  }

  fail_on_non_number_options options_;
};

}  // namespace

extension fail_on_non_number(fail_on_non_number_options options) {
  return make_extension("fail_on_non_number", std::make_shared<checker>(options));
}

}  // namespace rondo

#include "rondo/loop/gradients.hpp"

#include <ATen/ops/isfinite.h>
#include <ATen/ops/norm.h>
#include <ATen/ops/stack.h>
#include <c10/core/GradMode.h>

#include <cmath>
#include <unordered_set>

namespace rondo::gradients {

namespace {

at::Tensor norm_of(const at::Tensor& gradient, double type) {
  const auto values = gradient.is_sparse() ? gradient.coalesce().values() : gradient;
  if (values.numel() == 0) return at::zeros({}, at::TensorOptions(at::kFloat).device(values.device()));
  if (std::isinf(type)) return values.abs().max().to(at::kFloat);
  const bool half = values.scalar_type() == at::kHalf || values.scalar_type() == at::kBFloat16;
  return half ? at::norm(values, type, at::kFloat) : values.norm(type);
}

}  // namespace

std::vector<at::Tensor> parameters_of(const torch::optim::Optimizer& optimizer) {
  std::vector<at::Tensor> all;
  std::unordered_set<const at::TensorImpl*> seen;
  for (const auto& group : optimizer.param_groups())
    for (const auto& parameter : group.params())
      if (parameter.grad().defined() && seen.insert(parameter.unsafeGetTensorImpl()).second) all.push_back(parameter);
  return all;
}

std::vector<at::Tensor> of(const torch::optim::Optimizer& optimizer) {
  auto all = parameters_of(optimizer);
  for (auto& one : all) one = one.grad();
  return all;
}

at::Tensor norm(const std::vector<at::Tensor>& gradients, double type) {
  const c10::AutoGradMode no_gradients(false);
  const auto device = gradients.front().device();
  std::vector<at::Tensor> norms;
  norms.reserve(gradients.size());
  bool wide = false;
  for (const auto& gradient : gradients) {
    norms.push_back(norm_of(gradient, type).to(device));
    wide = wide || norms.back().scalar_type() == at::kDouble;
  }
  if (wide)
    for (auto& one : norms) one = one.to(at::kDouble);
  const auto all = at::stack(norms);
  return std::isinf(type) ? all.max() : all.norm(type);
}

void clip_norm(const std::vector<at::Tensor>& gradients, const at::Tensor& norm, double max_norm) {
  const c10::AutoGradMode no_gradients(false);
  const auto scale = (max_norm / (norm + 1e-6)).clamp_max(1.0);
  for (const auto& gradient : gradients) gradient.mul_(scale.to(gradient.device()));
}

std::optional<std::size_t> first_non_finite(const std::vector<at::Tensor>& gradients) {
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    const auto values = gradients[i].is_sparse() ? gradients[i]._values() : gradients[i];
    if (!at::isfinite(values).all().item<bool>()) return i;
  }
  return std::nullopt;
}

}  // namespace rondo::gradients

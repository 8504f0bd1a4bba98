#include "rondo/extensions/metrics/regression.hpp"

#include <torch/types.h>

#include <array>
#include <cmath>
#include <cstring>

#include "rondo/error.hpp"
#include "rondo/extensions/metrics/shapes.hpp"

namespace rondo::metrics {

namespace {

using detail::nan;

at::Tensor difference(const char* metric, const at::Tensor& output, const at::Tensor& target) {
  detail::require_same_shape(metric, output, target);
  return output.to(torch::kDouble) - target.to(torch::kDouble);
}

at::Tensor with_count(const at::Tensor& sum, std::int64_t count) {
  return torch::stack({sum, torch::full_like(sum, static_cast<double>(count))});
}

double ratio(const at::Tensor& sums) { return sums.defined() ? (sums[0] / sums[1]).item<double>() : nan; }

}  // namespace

void mean_squared_error::update(const at::Tensor& output, const at::Tensor& target) {
  add(with_count(difference("mean_squared_error", output, target).square().sum(), target.numel()));
}

double mean_squared_error::compute() const { return ratio(sums()); }

double root_mean_squared_error::compute() const { return std::sqrt(mean_squared_error::compute()); }

void mean_absolute_error::update(const at::Tensor& output, const at::Tensor& target) {
  add(with_count(difference("mean_absolute_error", output, target).abs().sum(), target.numel()));
}

double mean_absolute_error::compute() const { return ratio(sums()); }

void r2::update(const at::Tensor& output, const at::Tensor& target) {
  const auto missed = difference("r2", output, target).square().sum();
  if (target.numel() == 0) return;
  const auto exact = target.to(torch::kDouble);
  const auto mean = exact.mean();
  add(torch::stack(
      {torch::full_like(mean, static_cast<double>(target.numel())), mean, (exact - mean).square().sum(), missed}));
}

void r2::add(const at::Tensor& other) {
  if (!known_.defined()) {
    known_ = other;
    return;
  }
  const auto count = known_[0] + other[0];
  const auto apart = other[1] - known_[1];
  known_ = torch::stack({count, known_[1] + apart * other[0] / count,
                         known_[2] + other[2] + apart.square() * known_[0] * other[0] / count, known_[3] + other[3]});
}

double r2::compute() const { return known_.defined() ? 1.0 - (known_[3] / known_[2]).item<double>() : nan; }

std::string r2::pack() const {
  if (!known_.defined()) return {};
  const auto plain = known_.to(torch::kCPU).contiguous();
  return {static_cast<const char*>(plain.data_ptr()), plain.nbytes()};
}

void r2::merge(const std::vector<std::string>& parts) {
  reset();
  for (const auto& part : parts) {
    if (part.empty()) continue;
    auto theirs = torch::empty({4}, torch::kDouble);
    if (part.size() != theirs.nbytes()) throw error("metrics::r2: what another rank has sent is damaged");
    std::memcpy(theirs.data_ptr(), part.data(), part.size());
    add(theirs);
  }
}

}  // namespace rondo::metrics

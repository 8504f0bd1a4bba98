#include "rondo/extensions/metrics.hpp"

#include <fmt/format.h>
#include <torch/types.h>

#include <limits>

#include "rondo/data/example.hpp"
#include "rondo/error.hpp"

namespace rondo::metrics {

namespace {

bool fits(const at::Tensor& output, const at::Tensor& target) {
  if (output.dim() < 2 || target.dim() != output.dim() - 1) return false;
  auto positions = output.sizes().vec();
  positions.erase(positions.begin() + 1);
  return target.sizes() == at::IntArrayRef(positions);
}

}  // namespace

void accuracy::reset() {
  right_ = at::Tensor();
  total_ = 0;
}

void accuracy::update(const at::Tensor& output, const at::Tensor& target) {
  if (!fits(output, target))
    throw error(
        fmt::format("metrics::accuracy: outputs of shape [{}] and targets of shape [{}]; needed are outputs "
                    "[n, classes, …] and targets [n, …], which hold the index of the right class",
                    fmt::join(output.sizes(), ", "), fmt::join(target.sizes(), ", ")));
  const auto right = output.argmax(1).eq(target).sum();
  right_ = right_.defined() ? right_ + right : right;
  total_ += target.numel();
}

double accuracy::compute() const {
  if (total_ == 0) return std::numeric_limits<double>::quiet_NaN();
  return static_cast<double>(right_.item<std::int64_t>()) / static_cast<double>(total_);
}

void loss::reset() { sums_.clear(); }

void loss::update(context& ctx, const at::Tensor& output, const at::Tensor& target) {
  const auto value = function_ ? function_(output, target) : ctx.loss(output, target);
  if (!value.defined() || value.numel() != 1)
    throw error(fmt::format("metrics::loss: '{}' is {}; needed is a tensor with one element", name_,
                            value.defined() ? fmt::format("a tensor with {}", value.numel()) : "undefined"));
  sums_.add(name_, observation(value.detach(), static_cast<double>(data::item_count(output))));
}

double loss::compute() const {
  const auto* sum = sums_.find(name_);
  return sum == nullptr ? std::numeric_limits<double>::quiet_NaN() : sum->mean();
}

}  // namespace rondo::metrics

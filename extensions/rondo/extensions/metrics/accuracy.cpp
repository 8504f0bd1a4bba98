#include "rondo/extensions/metrics/accuracy.hpp"

#include <torch/types.h>

#include <limits>

#include "rondo/extensions/metrics/shapes.hpp"

namespace rondo::metrics {

void accuracy::reset() {
  right_ = at::Tensor();
  total_ = 0;
}

void accuracy::update(const at::Tensor& output, const at::Tensor& target) {
  detail::require_classes("accuracy", output, target);
  auto right = output.argmax(1).eq(target);
  if (ignore_index_) right = right.logical_and(target.ne(*ignore_index_));
  right_ = right_.defined() ? right_ + right.sum() : right.sum();
  total_ += ignore_index_ ? target.ne(*ignore_index_).sum().item<std::int64_t>() : target.numel();
}

double accuracy::compute() const {
  if (total_ == 0) return std::numeric_limits<double>::quiet_NaN();
  return static_cast<double>(right_.item<std::int64_t>()) / static_cast<double>(total_);
}

at::Tensor accuracy::sums() const {
  const std::int64_t right = right_.defined() ? right_.item<std::int64_t>() : 0;
  return torch::tensor({right, total_}, torch::kInt64);
}

void accuracy::set_sums(const at::Tensor& sums) {
  right_ = sums[0].clone();
  total_ = sums[1].item<std::int64_t>();
}

}  // namespace rondo::metrics

#include "rondo/extensions/metrics/perplexity.hpp"

#include <ATen/core/Reduction.h>
#include <torch/types.h>

#include <cmath>
#include <limits>

#include "rondo/extensions/metrics/shapes.hpp"

namespace rondo::metrics {

void perplexity::update(const at::Tensor& output, const at::Tensor& target) {
  detail::require_classes("perplexity", output, target);
  detail::require_indices("perplexity", target);
  const auto surprise = torch::cross_entropy_loss(output, target, {}, at::Reduction::None, ignore_index_);
  add(torch::stack({surprise.sum(torch::kDouble), target.ne(ignore_index_).sum().to(torch::kDouble)}));
}

double perplexity::compute() const {
  const auto all = sums();
  return all.defined() ? std::exp((all[0] / all[1]).item<double>()) : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace rondo::metrics

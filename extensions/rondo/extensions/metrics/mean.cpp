#include "rondo/extensions/metrics/mean.hpp"

#include <fmt/format.h>
#include <torch/types.h>

#include <limits>
#include <utility>

#include "rondo/data/example.hpp"
#include "rondo/error.hpp"

namespace rondo::metrics {

mean::mean(std::string name, function f) : name_(std::move(name)), function_(std::move(f)) {
  if (name_.empty()) throw option_error("metrics::mean", "an empty name", "the name under which the mean is reported");
  if (!function_) throw option_error("metrics::mean", "no function", "one that gives a tensor of values");
}

void mean::update(const at::Tensor& output, const at::Tensor& target) {
  const auto values = function_(output, target);
  if (!values.defined()) throw error(fmt::format("metrics::mean: the function of '{}' gives no tensor", name_));
  const bool of_batch = values.dim() == 0;
  const auto count = static_cast<double>(of_batch ? data::item_count(output) : values.numel());
  const auto sum = of_batch ? values.to(torch::kDouble) * count : values.to(torch::kDouble).sum();
  add(torch::stack({sum, torch::full_like(sum, count)}));
}

double mean::compute() const {
  const auto all = sums();
  return all.defined() ? (all[0] / all[1]).item<double>() : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace rondo::metrics

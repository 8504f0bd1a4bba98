#include "rondo/extensions/metrics/loss.hpp"

#include <fmt/format.h>

#include <limits>

#include "rondo/data/example.hpp"
#include "rondo/error.hpp"

namespace rondo::metrics {

namespace {

double samples_in(const at::Tensor& output) { return static_cast<double>(data::item_count(output)); }

}  // namespace

void loss::reset() { sums_.clear(); }

void loss::update(context& ctx, const at::Tensor& output, const at::Tensor& target) {
  const auto& counts = counts_ ? counts_ : ctx.options().counts;
  add(function_ ? function_(output, target) : ctx.loss(output, target), counts ? counts(target) : samples_in(output));
}

void loss::update(const at::Tensor& output, const at::Tensor& target) {
  if (!function_)
    throw option_error("metrics::loss", "without a function, outside of a loop",
                       "one with a function: metrics::loss(torch::nn::functional::cross_entropy)");
  add(function_(output, target), counts_ ? counts_(target) : samples_in(output));
}

void loss::add(const at::Tensor& value, double weight) {
  if (!value.defined() || value.numel() != 1)
    throw error(fmt::format("metrics::loss: '{}' is {}; needed is a tensor with one element", name_,
                            value.defined() ? fmt::format("a tensor with {}", value.numel()) : "undefined"));
  sums_.add(name_, observation(value.detach(), weight));
}

double loss::compute() const {
  const auto* sum = sums_.find(name_);
  return sum == nullptr ? std::numeric_limits<double>::quiet_NaN() : sum->mean();
}

}  // namespace rondo::metrics

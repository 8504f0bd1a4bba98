#include "rondo/extensions/metrics/classification.hpp"

#include <fmt/format.h>
#include <torch/types.h>

#include <utility>

#include "rondo/error.hpp"
#include "rondo/extensions/metrics/shapes.hpp"

namespace rondo::metrics {

namespace {

using detail::nan;

// Only where looking at the numbers costs no wait for a device.
void require_range(const std::string& metric, const at::Tensor& target, std::int64_t classes) {
  if (!target.is_cpu() || target.numel() == 0) return;
  const auto least = target.min().item<std::int64_t>();
  const auto most = target.max().item<std::int64_t>();
  if (least >= 0 && most < classes) return;
  throw error(fmt::format("metrics::{}: there is a target {}; needed are indices of {} classes, 0 to {}", metric,
                          least < 0 ? least : most, classes, classes - 1));
}

}  // namespace

top_k_accuracy::top_k_accuracy(std::int64_t k) : k_(k) {
  if (k < 1) throw option_error("top_k_accuracy", fmt::format("k = {}", k), "1 or more");
}

std::string top_k_accuracy::name() const { return fmt::format("top{}_accuracy", k_); }

void top_k_accuracy::update(const at::Tensor& output, const at::Tensor& target) {
  detail::require_classes("top_k_accuracy", output, target);
  detail::require_indices("top_k_accuracy", target);
  if (output.size(1) < k_)
    throw error(fmt::format("metrics::top_k_accuracy: the output has {} classes, and k is {}", output.size(1), k_));
  const auto best = std::get<1>(output.topk(k_, 1));
  const auto right = best.eq(target.unsqueeze(1)).any(1).sum();
  add(torch::stack({right, torch::full_like(right, target.numel())}));
}

double top_k_accuracy::compute() const {
  const auto all = sums();
  if (!all.defined()) return nan;
  return static_cast<double>(all[0].item<std::int64_t>()) / static_cast<double>(all[1].item<std::int64_t>());
}

void detail::answers::update(const at::Tensor& output, const at::Tensor& target) {
  require_indices(metric_, target);
  const bool scores = output.sizes() == target.sizes() && at::isFloatingType(output.scalar_type());
  if (!scores) require_classes(metric_, output, target);
  const std::int64_t classes = scores ? 2 : output.size(1);
  require_range(metric_, target, classes);
  const auto answer = scores ? output.gt(threshold_).to(torch::kLong) : output.argmax(1);
  const auto places = (target.to(torch::kLong) * classes + answer).flatten();
  const auto ones = torch::ones_like(places);
  add(torch::zeros({classes * classes}, places.options()).scatter_add_(0, places, ones).view({classes, classes}));
}

confusion_matrix::confusion_matrix(double threshold)
    : counts_(std::make_shared<detail::answers>("confusion_matrix", threshold)) {}

std::map<std::string, double> confusion_matrix::compute() const {
  std::map<std::string, double> all;
  const auto counts = matrix();
  if (!counts.defined() || counts.size(0) > reported_classes) return all;
  for (std::int64_t t = 0; t < counts.size(0); ++t)
    for (std::int64_t a = 0; a < counts.size(1); ++a)
      all[fmt::format("confusion/{}/{}", t, a)] = counts[t][a].item<double>();
  return all;
}

class_score::class_score(kind which, const char* usual_name, class_score_options options)
    : kind_(which), options_(std::move(options)), counts_(usual_name, options_.threshold) {
  if (options_.name.empty()) options_.name = usual_name;
  if (options_.positive < 0) throw option_error("positive", fmt::format("{}", options_.positive), "0 or more");
}

double class_score::compute() const {
  const auto counts = counts_.matrix();
  if (!counts.defined() || counts.sum().item<std::int64_t>() == 0) return nan;
  const auto right = counts.diagonal().to(torch::kDouble);
  const auto of_class = counts.sum(1).to(torch::kDouble);
  const auto answered = counts.sum(0).to(torch::kDouble);
  const auto ratio = [&](const at::Tensor& r, const at::Tensor& is, const at::Tensor& said) {
    const auto above = kind_ == kind::f1 ? 2 * r : r;
    const auto below = kind_ == kind::precision ? said : kind_ == kind::recall ? is : is + said;
    return torch::where(below > 0, above / below, torch::full_like(below, options_.zero_division));
  };
  const auto values = ratio(right, of_class, answered);
  switch (options_.average) {
    case averaging::binary:
      if (options_.positive >= counts.size(0))
        throw error(
            fmt::format("metrics::{}: class {} is to be counted, and there are {} classes; for more than two, "
                        "set `average`",
                        options_.name, options_.positive, counts.size(0)));
      return values[options_.positive].item<double>();
    case averaging::macro:
      return values.masked_select((of_class + answered) > 0).mean().item<double>();
    case averaging::weighted:
      return ((values * of_class).sum() / of_class.sum()).item<double>();
    case averaging::micro:
      return ratio(right.sum(), of_class.sum(), answered.sum()).item<double>();
  }
  return nan;
}

}  // namespace rondo::metrics

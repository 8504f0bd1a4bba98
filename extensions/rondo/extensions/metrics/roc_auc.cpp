#include "rondo/extensions/metrics/roc_auc.hpp"

#include <fmt/format.h>
#include <torch/types.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "rondo/error.hpp"
#include "rondo/extensions/metrics/shapes.hpp"

namespace rondo::metrics {

namespace {

using detail::nan;
using json = nlohmann::json;

/// NaN when all samples are of the class, or none.
double area(const at::Tensor& scores, const at::Tensor& is_positive) {
  const double positive = is_positive.sum().item<double>();
  const double negative = static_cast<double>(scores.numel()) - positive;
  if (positive == 0.0 || negative == 0.0) return nan;
  const auto [sorted, order] = scores.sort();
  const auto [values, group, counts] = torch::unique_consecutive(sorted, true, true);
  const auto middle = counts.cumsum(0).to(torch::kDouble) - (counts.to(torch::kDouble) - 1.0) / 2.0;
  const double ranks =
      middle.index_select(0, group).masked_select(is_positive.index_select(0, order)).sum().item<double>();
  return (ranks - positive * (positive + 1.0) / 2.0) / (positive * negative);
}

json to_bytes(const at::Tensor& tensor) {
  const auto plain = tensor.to(torch::kCPU).contiguous();
  const auto* const data = static_cast<const std::uint8_t*>(plain.data_ptr());
  return json::binary({data, data + plain.nbytes()});
}

at::Tensor from_bytes(const json& bytes, at::IntArrayRef sizes, at::ScalarType type) {
  auto tensor = torch::empty(sizes, type);
  const auto& data = bytes.get_binary();
  if (data.size() != tensor.nbytes()) throw error("metrics::roc_auc: what another rank has sent is damaged");
  if (!data.empty()) std::memcpy(tensor.data_ptr(), data.data(), data.size());
  return tensor;
}

}  // namespace

void roc_auc::reset() {
  scores_.clear();
  targets_.clear();
}

void roc_auc::update(const at::Tensor& output, const at::Tensor& target) {
  detail::require_indices("roc_auc", target);
  const bool one_score = output.sizes() == target.sizes() && target.dim() == 1;
  const auto scores = (one_score ? output.unsqueeze(1) : output).to(torch::kDouble);
  if (!one_score) detail::require_classes("roc_auc", output, target);
  if (target.dim() != 1)
    throw error(fmt::format("metrics::roc_auc: targets have {} dimensions; needed is one", target.dim()));
  if (!scores_.empty() && scores_.front().size(1) != scores.size(1))
    throw error(fmt::format("metrics::roc_auc: scores of {} classes after scores of {}", scores.size(1),
                            scores_.front().size(1)));
  scores_.push_back(scores);
  targets_.push_back(target.to(torch::kLong));
}

double roc_auc::compute() const {
  if (scores_.empty()) return nan;
  const auto scores = torch::cat(scores_).to(torch::kCPU);
  const auto targets = torch::cat(targets_).to(torch::kCPU);
  if (scores.isnan().any().item<bool>()) throw error("metrics::roc_auc: there are scores that are NaN");
  const auto classes = scores.size(1);
  if (classes == 1) return area(scores.select(1, 0), targets.eq(1));
  if (classes == 2) return area(scores.select(1, 1) - scores.select(1, 0), targets.eq(1));
  double sum = 0.0;
  std::int64_t counted = 0;
  for (std::int64_t c = 0; c < classes; ++c)
    if (const double one = area(scores.select(1, c), targets.eq(c)); one == one) {
      sum += one;
      ++counted;
    }
  return counted > 0 ? sum / static_cast<double>(counted) : nan;
}

std::string roc_auc::pack() const {
  json all;
  if (!scores_.empty()) {
    const auto scores = torch::cat(scores_);
    all = json{
        {"sizes", scores.sizes().vec()}, {"scores", to_bytes(scores)}, {"targets", to_bytes(torch::cat(targets_))}};
  }
  const auto text = json::to_cbor(all);
  return {text.begin(), text.end()};
}

void roc_auc::merge(const std::vector<std::string>& parts) {
  reset();
  for (const auto& part : parts) {
    const auto all = json::from_cbor(part);
    if (all.is_null()) continue;
    const auto sizes = all.at("sizes").get<std::vector<std::int64_t>>();
    scores_.push_back(from_bytes(all.at("scores"), sizes, torch::kDouble));
    targets_.push_back(from_bytes(all.at("targets"), {sizes.at(0)}, torch::kLong));
  }
}

}  // namespace rondo::metrics

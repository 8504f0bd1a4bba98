#include "rondo/extensions/metric_set.hpp"

#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "rondo/data/example.hpp"

namespace rondo::extensions {

namespace {

using json = nlohmann::json;

json to_bytes(const at::Tensor& sums) {
  const auto plain = sums.detach().to(at::kCPU).contiguous();
  const auto* const data = static_cast<const std::uint8_t*>(plain.data_ptr());
  return json::binary({data, data + plain.nbytes()});
}

at::Tensor from_bytes(const json& bytes, const at::Tensor& like, const std::string& metric, std::size_t rank) {
  auto sums = at::empty(like.sizes(), at::TensorOptions(like.scalar_type()));
  const auto& data = bytes.get_binary();
  if (data.size() != sums.nbytes())
    throw error(
        fmt::format("the metric '{}' has {} bytes of sums on rank {}, and {} here; their shape must be the same on "
                    "all ranks, also on one without samples",
                    metric, data.size(), rank, sums.nbytes()));
  std::memcpy(sums.data_ptr(), data.data(), data.size());
  return sums;
}

}  // namespace

void metric_set::add(std::unique_ptr<base> metric) {
  const auto name = metric->name();
  for (const auto& other : all_)
    if (!name.empty() && other->name() == name)
      throw option_error("metrics", "two called '" + name + "'", "one metric of each name");
  all_.push_back(std::move(metric));
}

void metric_set::add_loss() {
  const auto is_loss = [](const auto& metric) { return metric->name() == "loss"; };
  if (std::any_of(all_.begin(), all_.end(), is_loss)) return;
  all_.insert(all_.begin(), std::make_unique<model<metrics::loss>>(metrics::loss()));
}

void metric_set::reset() {
  for (const auto& metric : all_) metric->reset();
  samples_ = 0;
  joined_.clear();
  is_joined_ = false;
}

void metric_set::update(context* ctx, const at::Tensor& output, const at::Tensor& target) {
  for (const auto& metric : all_) metric->update(ctx, output, target);
  samples_ += data::item_count(output);
}

std::vector<std::pair<std::string, double>> metric_set::results() const {
  std::vector<std::pair<std::string, double>> all;
  for (const auto& metric : all_)
    for (const auto& [key, value] : metric->results()) {
      const auto* const over_all = is_joined_ ? joined_.find(key) : nullptr;
      all.emplace_back(key, over_all != nullptr ? over_all->mean() : value.value());
    }
  return all;
}

// What each metric knows that can be joined, then the results of the others.
std::string metric_set::part() const {
  json all = json::array();
  summary_table means;
  for (const auto& metric : all_) {
    if (const auto packed = metric->pack()) {
      all.push_back(json::binary({packed->begin(), packed->end()}));
      continue;
    }
    const auto sums = metric->sums();
    if (sums.defined()) {
      all.push_back(to_bytes(sums));
      continue;
    }
    all.push_back(nullptr);
    if (samples_ == 0 || is_joined_) continue;
    for (const auto& [key, value] : metric->results())
      means.add(key, observation(value.value(), static_cast<double>(samples_)));
  }
  const auto packed = is_joined_ ? joined_.pack() : means.pack();
  all.push_back(json::binary({packed.begin(), packed.end()}));
  const auto text = json::to_cbor(all);
  return {text.begin(), text.end()};
}

void metric_set::join(const std::vector<std::string>& parts) {
  std::vector<at::Tensor> sums(all_.size());
  std::vector<std::vector<std::string>> packed_parts(all_.size());
  joined_.clear();
  for (std::size_t rank = 0; rank < parts.size(); ++rank) {
    const auto part = json::from_cbor(parts[rank]);
    for (std::size_t i = 0; i < all_.size(); ++i) {
      if (part.at(i).is_null()) continue;
      if (all_[i]->pack()) {
        const auto& bytes = part.at(i).get_binary();
        packed_parts[i].emplace_back(bytes.begin(), bytes.end());
        continue;
      }
      const auto like = all_[i]->sums();
      const auto theirs = from_bytes(part.at(i), like, all_[i]->name(), rank);
      sums[i] = sums[i].defined() ? sums[i] + theirs : theirs;
    }
    const auto& packed = part.back().get_binary();
    joined_.merge(summary_table::unpack({reinterpret_cast<const char*>(packed.data()), packed.size()}));
  }
  for (std::size_t i = 0; i < all_.size(); ++i)
    if (sums[i].defined())
      all_[i]->set_sums(sums[i]);
    else if (!packed_parts[i].empty())
      all_[i]->merge(packed_parts[i]);
  is_joined_ = true;
}

}  // namespace rondo::extensions

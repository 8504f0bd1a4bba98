#include "rondo/extensions/metrics/additive.hpp"

#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "rondo/error.hpp"

namespace rondo::metrics {

namespace {

using json = nlohmann::json;

at::Tensor unpacked(const std::string& part) {
  const auto all = json::from_cbor(part);
  if (all.is_null()) return {};
  const auto sizes = all.at("sizes").get<std::vector<std::int64_t>>();
  auto sums = at::empty(sizes, at::TensorOptions(all.at("integers").get<bool>() ? at::kLong : at::kDouble));
  const auto& bytes = all.at("data").get_binary();
  if (bytes.size() != sums.nbytes()) throw error("metrics: what another rank has sent is damaged");
  std::memcpy(sums.data_ptr(), bytes.data(), bytes.size());
  return sums;
}

}  // namespace

void additive::add(const at::Tensor& sums) {
  if (!sums_.defined()) {
    sums_ = sums;
    return;
  }
  if (sums.sizes() != sums_.sizes())
    throw error(
        fmt::format("metrics: sums of shape [{}] do not go with earlier ones of shape [{}]; every batch must have "
                    "the same number of classes or outputs",
                    fmt::join(sums.sizes(), ", "), fmt::join(sums_.sizes(), ", ")));
  sums_ = sums_ + sums;
}

at::Tensor additive::sums() const { return sums_.defined() ? sums_.to(at::kCPU).contiguous() : sums_; }

std::string additive::pack() const {
  json all;
  if (const auto plain = sums(); plain.defined()) {
    const auto* const data = static_cast<const std::uint8_t*>(plain.data_ptr());
    all = json{{"sizes", plain.sizes().vec()},
               {"integers", plain.scalar_type() == at::kLong},
               {"data", json::binary({data, data + plain.nbytes()})}};
  }
  const auto text = json::to_cbor(all);
  return {text.begin(), text.end()};
}

void additive::merge(const std::vector<std::string>& parts) {
  reset();
  for (const auto& part : parts)
    if (const auto theirs = unpacked(part); theirs.defined()) add(theirs);
}

}  // namespace rondo::metrics

#include "rondo/report/observations.hpp"

#include <ATen/core/Tensor.h>
#include <fmt/format.h>

#include <utility>

#include "rondo/checkpoint/utf8.hpp"

namespace rondo {

observation_error::observation_error(std::string key, const std::string& problem)
    : error(fmt::format("observation '{}' {}", key, problem)), key_(std::move(key)) {}

double observation::value() const {
  if (const auto* number = std::get_if<double>(&value_)) return *number;
  return std::get<at::Tensor>(value_).item().toDouble();
}

const at::Tensor* observation::on_device() const noexcept {
  const auto* tensor = std::get_if<at::Tensor>(&value_);
  return tensor != nullptr && !tensor->device().is_cpu() ? tensor : nullptr;
}

namespace {

/// With all but printable ASCII as \x and two digits.
std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : text)
    c >= ' ' && c <= '~' ? result += c : result += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  return result;
}

}  // namespace

void observations::report(std::string_view key, const at::Tensor& scalar, std::optional<double> given) {
  if (!scalar.defined() || scalar.numel() != 1) {
    const auto found =
        scalar.defined() ? fmt::format("a tensor of {} elements", scalar.numel()) : "an undefined tensor";
    throw observation_error(std::string(key), fmt::format("takes a number or a tensor of one element, got {}", found));
  }
  const double weight = given.value_or(weight_);
  auto& place = slot(key);
  place.weighed = given.has_value();
  if (scalar.device().is_cpu())
    place.value =
        observation(scalar.item().toDouble(), weight);  // nothing to wait for, and later writes cannot change it
  else
    place.value = observation(scalar.detach().clone(), weight);
}

void observations::weigh_all_by(double weight) noexcept {
  weigh_by(weight);
  for (std::size_t i = 0; i < present_; ++i)
    if (!entries_[i].weighed) entries_[i].value.weight_ = weight;
}

const observation* observations::find(std::string_view key) const noexcept {
  for (std::size_t i = 0; i < present_; ++i)
    if (entries_[i].key == key) return &entries_[i].value;
  return nullptr;
}

const observation& observations::at(std::string_view key) const {
  if (const auto* found = find(key)) return *found;
  std::string known;
  for_each([&](const std::string& k, const observation&) { known += (known.empty() ? "" : ", ") + k; });
  throw observation_error(std::string(key), fmt::format("has not been reported in this iteration; there are: {}",
                                                        known.empty() ? "none" : known));
}

observations::entry& observations::slot(std::string_view key) {
  const auto matches = [&](const std::string& stored) {
    return stored.size() == prefix_.size() + key.size() && stored.starts_with(prefix_) && stored.ends_with(key);
  };
  std::size_t found = 0;
  while (found < entries_.size() && !matches(entries_[found].key)) ++found;
  if (found == entries_.size()) {
    if (!checkpoint::is_utf8(key)) throw observation_error(escaped(key), "is not UTF-8, which no log could hold");
    entries_.push_back({prefix_ + std::string(key), {}, false});
  }
  if (found < present_) return entries_[found];
  // Its turn in this iteration is now. As a rule it is there already.
  if (found != present_) std::swap(entries_[found], entries_[present_]);
  return entries_[present_++];
}

observations::scope::scope(observations& where, std::string_view prefix) : where_(where), outer_(where.prefix_.size()) {
  where_.prefix_ += prefix;
}

observations::scope::~scope() { where_.prefix_.resize(outer_); }

}  // namespace rondo

#include "rondo/report/summary.hpp"

#include <fmt/format.h>
#include <torch/types.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "rondo/error.hpp"

namespace rondo {

namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

template <class Number>
void append(std::string& to, Number number) {
  const auto bytes = std::bit_cast<std::array<char, sizeof(Number)>>(number);
  to.append(bytes.data(), bytes.size());
}

void require_end(std::string_view rest) {
  if (!rest.empty()) throw state_error("", "packed summaries have another length than expected");
}

template <class Number>
void take(std::string_view& from, Number& number) {
  std::array<char, sizeof(Number)> bytes;
  if (from.size() < bytes.size()) require_end("?");
  std::copy_n(from.data(), bytes.size(), bytes.data());
  from.remove_prefix(bytes.size());
  number = std::bit_cast<Number>(bytes);
}

}  // namespace

void summary::add(double x, double weight) {
  if (!std::isfinite(weight) || weight < 0.0)
    throw observation_error("summary", fmt::format("was given the weight {}; allowed is a finite number >= 0", weight));
  if (weight == 0.0) return;
  ++count_;
  weight_ += weight;
  if (!std::isfinite(x) || !std::isfinite(mean_)) {
    become_infinite(x);
  } else {
    const double delta = x - mean_;
    mean_ += delta * (weight / weight_);
    m2_ += weight * delta * (x - mean_);
  }
  min_ = std::isnan(x) ? x : std::min(min_, x);
  max_ = std::isnan(x) ? x : std::max(max_, x);
}

// Whatever the order: an infinity beats all numbers, and both of them, or a NaN, make a NaN.
void summary::become_infinite(double x) noexcept {
  mean_ = (std::isfinite(mean_) ? 0.0 : mean_) + (std::isfinite(x) ? 0.0 : x);
  m2_ = nan;
}

void summary::merge(const summary& other) {
  if (other.empty()) return;
  if (empty()) {
    *this = other;
    return;
  }
  const double total = weight_ + other.weight_;
  if (!std::isfinite(other.mean_) || !std::isfinite(mean_)) {
    become_infinite(other.mean_);
  } else {
    const double delta = other.mean_ - mean_;
    mean_ += delta * (other.weight_ / total);
    m2_ += other.m2_ + delta * delta * (weight_ * other.weight_ / total);
  }
  weight_ = total;
  count_ += other.count_;
  min_ = std::isnan(other.min_) ? other.min_ : std::min(min_, other.min_);
  max_ = std::isnan(other.max_) ? other.max_ : std::max(max_, other.max_);
}

double summary::mean() const noexcept { return empty() ? nan : mean_; }
double summary::variance() const noexcept { return empty() ? nan : m2_ / weight_; }
double summary::standard_deviation() const noexcept { return std::sqrt(variance()); }
double summary::min() const noexcept { return empty() ? nan : min_; }
double summary::max() const noexcept { return empty() ? nan : max_; }

state::dict summary::state_dict() const {
  return {{"count", count_}, {"weight", weight_}, {"mean", mean_}, {"m2", m2_}, {"min", min_}, {"max", max_}};
}

void summary::load_state_dict(const state::value& state) {
  summary loaded;
  loaded.count_ = state.get<std::int64_t>("count");
  loaded.weight_ = state.at("weight").number();
  loaded.mean_ = state.at("mean").number();
  loaded.m2_ = state.at("m2").number();
  loaded.min_ = state.at("min").number();
  loaded.max_ = state.at("max").number();
  *this = loaded;
}

void summary_table::add(const observations& current) {
  current.for_each([this](const std::string& key, const observation& value) { add(key, value); });
}

void summary_table::add(const std::string& key, const observation& value) {
  if (const auto* scalar = value.on_device()) {
    slot(key);
    pending_.push_back({key, *scalar, value.weight()});
    if (pending_.size() >= pending_limit) settle();
    return;
  }
  // In the order of the reports, so that sums have the same bits whenever somebody looks.
  const bool waits = std::any_of(pending_.begin(), pending_.end(), [&](const pending& p) { return p.key == key; });
  if (waits) settle();
  slot(key).add(value.value(), value.weight());
}

const summary* summary_table::find(std::string_view key) const {
  settle();
  const auto it = summaries_.find(key);
  return it == summaries_.end() ? nullptr : &it->second;
}

void summary_table::clear() {
  summaries_.clear();
  pending_.clear();
  keys_.clear();
}

state::dict summary_table::state_dict() const {
  settle();
  state::dict all;
  for (const auto& key : keys_) all.insert_or_assign(key, summaries_.find(key)->second.state_dict());
  return all;
}

void summary_table::load_state_dict(const state::value& state) {
  summary_table loaded;
  for (const auto& [key, one] : state.as<state::dict>()) loaded.slot(key.text()).load_state_dict(one);
  *this = std::move(loaded);
}

summary& summary_table::slot(const std::string& key) {
  const auto it = summaries_.find(key);
  if (it != summaries_.end()) return it->second;
  keys_.push_back(key);
  return summaries_[key];
}

void summary_table::settle() const {
  if (pending_.empty()) return;
  std::vector<at::Tensor> scalars;
  scalars.reserve(pending_.size());
  for (const auto& p : pending_) scalars.push_back(p.scalar.reshape({}).to(at::kDouble));
  const auto values = torch::stack(scalars).cpu();
  for (std::size_t i = 0; i < pending_.size(); ++i)
    summaries_[pending_[i].key].add(values.data_ptr<double>()[i], pending_[i].weight);
  pending_.clear();
}

std::string summary::pack() const {
  std::string packed;
  append(packed, count_);
  for (const double number : {weight_, mean_, m2_, min_, max_}) append(packed, number);
  return packed;
}

summary summary::unpack(std::string_view packed) {
  summary result;
  take(packed, result.count_);
  for (double* const number : {&result.weight_, &result.mean_, &result.m2_, &result.min_, &result.max_})
    take(packed, *number);
  require_end(packed);
  return result;
}

void summary_table::merge(const summary_table& other) {
  settle();
  for (const auto& key : other.keys_) slot(key).merge(*other.find(key));
}

std::string summary_table::pack() const {
  std::string packed;
  for (const auto& key : keys_) {
    append(packed, static_cast<std::int64_t>(key.size()));
    packed += key;
    packed += find(key)->pack();
  }
  return packed;
}

summary_table summary_table::unpack(std::string_view packed) {
  static const std::size_t size = summary().pack().size();
  summary_table result;
  while (!packed.empty()) {
    std::int64_t length = 0;
    take(packed, length);
    if (length < 0 || packed.size() < static_cast<std::size_t>(length) + size) require_end("?");
    const std::string key(packed.substr(0, static_cast<std::size_t>(length)));
    packed.remove_prefix(key.size());
    result.slot(key) = summary::unpack(packed.substr(0, size));
    packed.remove_prefix(size);
  }
  return result;
}

}  // namespace rondo

#include "rondo/extensions/snapshot/retention.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <utility>

#include "rondo/error.hpp"

namespace rondo {

namespace {

void require_positive(const char* policy, std::int64_t n) {
  if (n < 1) throw option_error(fmt::format("retain::{}", policy), fmt::format("{}", n), "1 or more");
}

std::optional<double> metric_of(const snapshot_record& snapshot, const std::string& key) {
  const auto found = snapshot.metrics.find(key);
  if (found == snapshot.metrics.end() || std::isnan(found->second)) return std::nullopt;
  return found->second;
}

}  // namespace

retention::retention(rule r, std::vector<std::string> metrics) : metrics_(std::move(metrics)) {
  rules_.push_back(std::move(r));
}

retention operator|(retention a, retention b) {
  std::move(b.rules_.begin(), b.rules_.end(), std::back_inserter(a.rules_));
  std::move(b.metrics_.begin(), b.metrics_.end(), std::back_inserter(a.metrics_));
  return a;
}

std::vector<bool> retention::keep(std::span<const snapshot_record> newest_first, std::int64_t now) const {
  std::vector<bool> keep(newest_first.size(), false);
  for (const auto& each : rules_) each(newest_first, now, keep);
  if (!keep.empty()) keep.front() = true;
  return keep;
}

namespace retain {

retention last(std::int64_t n) {
  require_positive("last", n);
  return retention([n](std::span<const snapshot_record> all, std::int64_t, std::vector<bool>& keep) {
    const auto count = std::min(all.size(), static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < count; ++i) keep[i] = true;
  });
}

retention best(std::int64_t k, std::string key, better direction) {
  require_positive("best", k);
  const bool higher = higher_is_better(direction, key, "retain::best.direction");
  const auto rank = [k, key, higher](std::span<const snapshot_record> all, std::int64_t, std::vector<bool>& keep) {
    std::vector<std::pair<double, std::size_t>> ranked;
    for (std::size_t i = 0; i < all.size(); ++i)
      if (const auto value = metric_of(all[i], key)) ranked.emplace_back(higher ? -*value : *value, i);
    if (ranked.empty()) keep.assign(keep.size(), true);  // nobody knows which is the best
    std::sort(ranked.begin(), ranked.end());  // equal values: the newer one, which has the smaller index, first
    const auto count = std::min(ranked.size(), static_cast<std::size_t>(k));
    for (std::size_t i = 0; i < count; ++i) keep[ranked[i].second] = true;
  };
  return retention(rank, {std::move(key)});
}

retention every(iterations n) {
  require_positive("every", n.count);
  return retention([n](std::span<const snapshot_record> all, std::int64_t, std::vector<bool>& keep) {
    for (std::size_t i = 0; i < all.size(); ++i)
      if (all[i].iteration % n.count == 0) keep[i] = true;
  });
}

retention every(epochs n) {
  if (!n.whole()) throw option_error("retain::every", n.str(), "whole epochs");
  require_positive("every", n.numerator());
  return retention([n](std::span<const snapshot_record> all, std::int64_t, std::vector<bool>& keep) {
    for (std::size_t i = 0; i < all.size(); ++i) {
      const bool first_of_epoch = i + 1 == all.size() || all[i + 1].epoch != all[i].epoch;
      if (first_of_epoch && all[i].epoch > 0 && all[i].epoch % n.numerator() == 0) keep[i] = true;
    }
  });
}

retention newer_than(std::chrono::seconds age) {
  if (age.count() <= 0) throw option_error("retain::newer_than", fmt::format("{} s", age.count()), "a positive time");
  return retention([age](std::span<const snapshot_record> all, std::int64_t now, std::vector<bool>& keep) {
    for (std::size_t i = 0; i < all.size(); ++i)
      if (now - all[i].created < age.count()) keep[i] = true;
  });
}

}  // namespace retain

}  // namespace rondo

#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "rondo/report/observations.hpp"
#include "rondo/state/value.hpp"

namespace rondo {

/// Weighted mean, deviation and extremes of a stream of numbers in constant memory, by West's incremental form of
/// Welford's algorithm (D. West, CACM 22(9), 1979), which does not cancel where x² − mean² does. NaN propagates. An
/// infinity makes the mean infinite, both of them NaN, in whatever order they come; deviations are NaN then.
class summary {
 public:
  /// `weight` must be finite and not negative; a weight of 0 changes nothing. Throws `observation_error` otherwise.
  void add(double x, double weight = 1.0);
  /// As if everything added to `other` had been added here (Chan et al., 1979).
  void merge(const summary& other);

  [[nodiscard]] bool empty() const noexcept { return weight_ == 0.0; }
  /// How many numbers.
  [[nodiscard]] std::int64_t count() const noexcept { return count_; }
  /// Sum of the weights.
  [[nodiscard]] double weight() const noexcept { return weight_; }
  /// NaN while empty, as are the following.
  [[nodiscard]] double mean() const noexcept;
  /// Population variance: weighted mean squared distance from the mean.
  [[nodiscard]] double variance() const noexcept;
  /// Square root of `variance()`.
  [[nodiscard]] double standard_deviation() const noexcept;
  [[nodiscard]] double min() const noexcept;
  [[nodiscard]] double max() const noexcept;

  [[nodiscard]] state::dict state_dict() const;
  void load_state_dict(const state::value& state);

  /// For another process of the same kind: all of it, exactly.
  [[nodiscard]] std::string pack() const;
  /// The inverse. Throws `state_error` for another length.
  [[nodiscard]] static summary unpack(std::string_view packed);

 private:
  void become_infinite(double x) noexcept;

  std::int64_t count_ = 0;
  double weight_ = 0.0;
  double mean_ = 0.0;
  double m2_ = 0.0;
  double min_ = std::numeric_limits<double>::infinity();
  double max_ = -std::numeric_limits<double>::infinity();
};

/// A summary per observed key (ppe: `DictSummary`). Device scalars are collected and brought to the host together,
/// at the latest when `pending_limit` of them wait. Training thread only.
class summary_table {
 public:
  /// Adds everything that was reported in this iteration.
  void add(const observations& current);
  void add(const std::string& key, const observation& value);
  /// As if everything added to `other` had been added here.
  void merge(const summary_table& other);

  /// nullptr when nothing was added under `key`.
  [[nodiscard]] const summary* find(std::string_view key) const;
  /// All keys, in the order in which they were first seen.
  [[nodiscard]] const std::vector<std::string>& keys() const noexcept { return keys_; }
  [[nodiscard]] bool empty() const noexcept { return keys_.empty(); }
  void clear();

  [[nodiscard]] state::dict state_dict() const;
  void load_state_dict(const state::value& state);

  /// As those of `summary`.
  [[nodiscard]] std::string pack() const;
  [[nodiscard]] static summary_table unpack(std::string_view packed);

 private:
  static constexpr std::size_t pending_limit = 256;

  struct pending {
    std::string key;
    at::Tensor scalar;
    double weight;
  };

  summary& slot(const std::string& key);
  void settle() const;

  // Reading is logically const, but may first have to fetch what waits on a device.
  mutable std::map<std::string, summary, std::less<>> summaries_;
  mutable std::vector<pending> pending_;
  std::vector<std::string> keys_;
};

}  // namespace rondo

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "rondo/extensions/metrics/metric.hpp"

namespace rondo::metrics {

/// The fraction of right answers: the class with the greatest output (dimension 1) is the target. Outputs are [n,
/// classes] with targets [n], or [n, classes, …] with targets [n, …]. Throws `error` for other shapes.
class accuracy {
 public:
  accuracy() = default;
  /// Targets that are `ignore_index` do not count, as in losses with that option.
  explicit accuracy(std::int64_t ignore_index) : ignore_index_(ignore_index) {}

  [[nodiscard]] std::string name() const { return "accuracy"; }
  void reset();
  void update(const at::Tensor& output, const at::Tensor& target);
  /// NaN when there was nothing to answer. Waits for the device.
  [[nodiscard]] double compute() const;
  [[nodiscard]] at::Tensor sums() const;
  void set_sums(const at::Tensor& sums);

 private:
  at::Tensor right_;  // a count, on the output's device
  std::int64_t total_ = 0;
  std::optional<std::int64_t> ignore_index_;
};

}  // namespace rondo::metrics

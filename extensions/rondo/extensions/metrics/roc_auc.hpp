#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "rondo/extensions/metrics/metric.hpp"

namespace rondo::metrics {

/// The area under the receiver operating characteristic, "roc_auc": the probability that a sample of the class has a
/// higher score than one that is not of it, where equal scores count half. Exact: by ranks (Mann-Whitney).
///
/// Outputs are scores of the second of two classes, [n] or [n, 1] with targets [n]; or scores [n, classes] with targets
/// [n], of which the mean over the classes is taken, each against all others (two classes: the value of the second).
/// Classes that are all or none of the targets do not count; NaN when that is every one. Keeps every score: 16 bytes
/// per sample, or 8 and 8 per class.
class roc_auc {
 public:
  [[nodiscard]] std::string name() const { return "roc_auc"; }
  void reset();
  /// Throws `error` for other shapes, targets that are no integers, and scores that are NaN.
  void update(const at::Tensor& output, const at::Tensor& target);
  [[nodiscard]] double compute() const;
  [[nodiscard]] std::string pack() const;
  void merge(const std::vector<std::string>& parts);

 private:
  std::vector<at::Tensor> scores_;   // float64 [n, classes], or [n, 1]
  std::vector<at::Tensor> targets_;  // int64 [n]
};

}  // namespace rondo::metrics

#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace rondo::metrics {

/// A base for metrics whose knowledge is one tensor of sums over samples, of a shape that the first batch tells. The
/// sums stay on their device until somebody reads them. Int64 or float64.
class additive {
 public:
  void reset() { sums_ = at::Tensor(); }
  /// All that is known, for another rank. Waits for the device.
  [[nodiscard]] std::string pack() const;
  /// The sum of what `parts`, each from `pack`, know. Throws `error` when they do not fit together.
  void merge(const std::vector<std::string>& parts);

 protected:
  ~additive() = default;
  /// Adds to the sums; the first time, these are the sums. Throws `error` when the shape is another than before.
  void add(const at::Tensor& sums);
  /// On the CPU; undefined if nothing was added. Waits for the device.
  [[nodiscard]] at::Tensor sums() const;

 private:
  at::Tensor sums_;
};

}  // namespace rondo::metrics

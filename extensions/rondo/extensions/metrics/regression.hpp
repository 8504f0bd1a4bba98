#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "rondo/extensions/metrics/additive.hpp"
#include "rondo/extensions/metrics/metric.hpp"

/// Outputs and targets of one shape, of any number of dimensions; each element counts. Summed in float64. Other shapes
/// are an `error`, [n, 1] beside [n] as well. Without elements the results are NaN.
namespace rondo::metrics {

/// The mean of the squared differences, "mse".
class mean_squared_error : public additive {
 public:
  [[nodiscard]] std::string name() const { return "mse"; }
  void update(const at::Tensor& output, const at::Tensor& target);
  [[nodiscard]] double compute() const;
};

/// Its square root, "rmse": of the whole, not the mean over batches.
class root_mean_squared_error final : public mean_squared_error {
 public:
  [[nodiscard]] std::string name() const { return "rmse"; }
  [[nodiscard]] double compute() const;
};

/// The mean of the absolute differences, "mae".
class mean_absolute_error final : public additive {
 public:
  [[nodiscard]] std::string name() const { return "mae"; }
  void update(const at::Tensor& output, const at::Tensor& target);
  [[nodiscard]] double compute() const;
};

/// The coefficient of determination, "r2": 1 - the sum of squared differences over the sum of squared distances of the
/// targets from their mean, which is kept as Chan, Golub and LeVeque (1979) do, without cancellation. -infinity when
/// all targets are equal and the outputs are not; NaN when these are equal, too.
class r2 {
 public:
  [[nodiscard]] std::string name() const { return "r2"; }
  void reset() { known_ = at::Tensor(); }
  void update(const at::Tensor& output, const at::Tensor& target);
  [[nodiscard]] double compute() const;
  [[nodiscard]] std::string pack() const;
  void merge(const std::vector<std::string>& parts);

 private:
  void add(const at::Tensor& other);

  at::Tensor known_;  // float64: count, mean and squared distances of targets, squared differences
};

}  // namespace rondo::metrics

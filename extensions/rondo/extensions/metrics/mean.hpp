#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>

#include "rondo/extensions/metrics/additive.hpp"
#include "rondo/extensions/metrics/metric.hpp"

namespace rondo::metrics {

/// The mean of anything: `metrics::mean("confidence", [](const auto& output, const auto&) { return …; })`. The function
/// gives a value per sample, or several, all of which count the same; or one number without dimensions, the mean over
/// the batch, which counts as often as the batch has samples. NaN without values.
class mean final : public additive {
 public:
  using function = std::function<at::Tensor(const at::Tensor& output, const at::Tensor& target)>;

  /// Throws `option_error` without a name or a function.
  mean(std::string name, function f);

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  /// Throws `error` when the function gives no tensor.
  void update(const at::Tensor& output, const at::Tensor& target);
  [[nodiscard]] double compute() const;

 private:
  std::string name_;
  function function_;
};

}  // namespace rondo::metrics

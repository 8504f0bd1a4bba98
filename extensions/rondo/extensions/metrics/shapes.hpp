#pragma once

#include <ATen/core/Tensor.h>

#include <limits>
#include <string_view>

/// What metrics expect of the tensors that they are given.
namespace rondo::metrics::detail {

/// What a metric is while nothing has been measured.
inline constexpr double nan = std::numeric_limits<double>::quiet_NaN();

/// Outputs [n, classes, …] with targets [n, …]. Throws `error` naming the metric and both shapes.
void require_classes(std::string_view metric, const at::Tensor& output, const at::Tensor& target);
/// Outputs and targets of one shape. A broadcast between [n, 1] and [n] would give n² differences and no error.
void require_same_shape(std::string_view metric, const at::Tensor& output, const at::Tensor& target);
/// Integers. Throws `error` naming the metric and the dtype.
void require_indices(std::string_view metric, const at::Tensor& target);

}  // namespace rondo::metrics::detail

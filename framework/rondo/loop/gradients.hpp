#pragma once

#include <ATen/core/Tensor.h>
#include <torch/optim/optimizer.h>

#include <cstddef>
#include <optional>
#include <vector>

/// What the loop does with gradients before an update.
namespace rondo::gradients {

/// The optimizer's parameters that have one; a parameter that it has twice (shared weights) once.
[[nodiscard]] std::vector<at::Tensor> parameters_of(const torch::optim::Optimizer& optimizer);

/// Their gradients, in the same order.
[[nodiscard]] std::vector<at::Tensor> of(const torch::optim::Optimizer& optimizer);

/// The norm of all elements together, with the exponent `type` (infinity: the largest absolute value), as
/// `torch.nn.utils.clip_grad_norm_` gives it, on the device of the first and not waited for. Half precision is summed
/// in float32. `gradients` has at least one.
[[nodiscard]] at::Tensor norm(const std::vector<at::Tensor>& gradients, double type);

/// Scales them down, in place, so that the norm that they have (`norm`) becomes at most `max_norm`.
void clip_norm(const std::vector<at::Tensor>& gradients, const at::Tensor& norm, double max_norm);

/// The position of the first that has an element which is not finite. Waits for the device.
[[nodiscard]] std::optional<std::size_t> first_non_finite(const std::vector<at::Tensor>& gradients);

}  // namespace rondo::gradients

#include "rondo/extensions/metrics/shapes.hpp"

#include <fmt/format.h>

#include "rondo/error.hpp"

namespace rondo::metrics::detail {

namespace {

bool are_classes(const at::Tensor& output, const at::Tensor& target) {
  if (output.dim() < 2 || target.dim() != output.dim() - 1) return false;
  auto positions = output.sizes().vec();
  positions.erase(positions.begin() + 1);
  return target.sizes() == at::IntArrayRef(positions);
}

[[noreturn]] void refuse(std::string_view metric, const at::Tensor& output, const at::Tensor& target,
                         std::string_view needed) {
  throw error(fmt::format("metrics::{}: outputs of shape [{}] and targets of shape [{}]; needed are {}", metric,
                          fmt::join(output.sizes(), ", "), fmt::join(target.sizes(), ", "), needed));
}

}  // namespace

void require_classes(std::string_view metric, const at::Tensor& output, const at::Tensor& target) {
  if (!are_classes(output, target))
    refuse(metric, output, target,
           "outputs [n, classes, …] and targets [n, …], which hold the index of the right class");
}

void require_same_shape(std::string_view metric, const at::Tensor& output, const at::Tensor& target) {
  if (output.sizes() != target.sizes()) refuse(metric, output, target, "two of the same shape");
}

void require_indices(std::string_view metric, const at::Tensor& target) {
  const auto type = target.scalar_type();
  if (at::isIntegralType(type, true)) return;
  throw error(fmt::format("metrics::{}: targets are {}; needed are integers, the indices of the right classes", metric,
                          c10::toString(type)));
}

}  // namespace rondo::metrics::detail

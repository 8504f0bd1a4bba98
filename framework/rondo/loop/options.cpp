#include "rondo/loop/options.hpp"

#include <ATen/core/Tensor.h>
#include <ATen/ops/ne.h>
#include <ATen/ops/sum.h>

namespace rondo {

std::function<double(const at::Tensor& target)> valid_targets(std::int64_t ignore_index) {
  return [ignore_index](const at::Tensor& target) {
    return static_cast<double>(target.ne(ignore_index).sum().item<std::int64_t>());
  };
}

}  // namespace rondo

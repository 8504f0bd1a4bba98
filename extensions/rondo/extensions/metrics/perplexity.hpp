#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "rondo/extensions/metrics/additive.hpp"
#include "rondo/extensions/metrics/metric.hpp"

namespace rondo::metrics {

/// The exponential of the mean negative log-likelihood of a token, "perplexity": of all tokens together, not the mean
/// over batches. Outputs are scores [n, classes] or [n, classes, …] before softmax, targets [n, …]; tokens that are
/// `ignore_index` do not count. NaN without tokens.
class perplexity final : public additive {
 public:
  explicit perplexity(std::int64_t ignore_index = -100) : ignore_index_(ignore_index) {}

  [[nodiscard]] std::string name() const { return "perplexity"; }
  void update(const at::Tensor& output, const at::Tensor& target);
  [[nodiscard]] double compute() const;

 private:
  std::int64_t ignore_index_;
};

}  // namespace rondo::metrics

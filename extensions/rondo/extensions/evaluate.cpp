#include "rondo/extensions/evaluate.hpp"

#include <fmt/format.h>
#include <torch/nn/module.h>

#include "rondo/error.hpp"

namespace rondo {

double evaluation_result::operator[](std::string_view name) const {
  std::vector<std::string> known;
  for (const auto& [key, value] : values_) {
    if (key == name) return value;
    known.push_back(key);
  }
  throw option_error("evaluation_result", fmt::format("'{}'", name), fmt::format("one of: {}", fmt::join(known, ", ")));
}

namespace extensions {

void require_metrics(std::size_t number) {
  if (number == 0)
    throw option_error("evaluate", "no metrics", "at least one: evaluate(model, batches, metrics::accuracy())");
}

c10::Device device_of(const torch::nn::Module& module) {
  const auto parameters = module.parameters();
  return parameters.empty() ? c10::Device(c10::kCPU) : parameters.front().device();
}

evaluation_result result_of(const metric_set& metrics) {
  if (metrics.samples() == 0) throw option_error("batches", "no batch for evaluate", "a range that gives batches");
  return {metrics.results(), metrics.samples()};
}

}  // namespace extensions
}  // namespace rondo

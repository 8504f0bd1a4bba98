#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/GradMode.h>

#include <cstdint>
#include <optional>
#include <range/v3/range/concepts.hpp>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "rondo/data/example.hpp"
#include "rondo/data/labelled.hpp"
#include "rondo/data/stage.hpp"
#include "rondo/extensions/evaluation_mode.hpp"
#include "rondo/extensions/metric_set.hpp"
#include "rondo/loop/supervised.hpp"

namespace rondo {

/// What `evaluate` has measured.
class evaluation_result {
 public:
  evaluation_result(std::vector<std::pair<std::string, double>> values, std::int64_t samples)
      : values_(std::move(values)), samples_(samples) {}

  /// Throws `option_error` that lists the names if there is no such value.
  [[nodiscard]] double operator[](std::string_view name) const;
  /// In the order of the metrics.
  [[nodiscard]] const std::vector<std::pair<std::string, double>>& values() const noexcept { return values_; }
  /// How many samples there were.
  [[nodiscard]] std::int64_t samples() const noexcept { return samples_; }

 private:
  std::vector<std::pair<std::string, double>> values_;
  std::int64_t samples_;
};

struct evaluate_options {
  /// Batches are moved here. Default: where the first parameter of the model is.
  std::optional<c10::Device> device = std::nullopt;
};

namespace extensions {

/// Throws `option_error` without metrics.
void require_metrics(std::size_t number);
[[nodiscard]] c10::Device device_of(const torch::nn::Module& module);
[[nodiscard]] evaluation_result result_of(const metric_set& metrics);

}  // namespace extensions

/// Runs `model` over `batches`, which are labelled (`data::labelled`) and have a tensor as target, once, without a
/// loop:
///
///     const auto result = evaluate(model, test | data::batch(256), metrics::accuracy(), metrics::loss(cross_entropy));
///     std::cout << result["accuracy"];
///
/// `model` is a module with a name, a `shared_ptr` to one or a module holder. Meanwhile it is in evaluation mode (each
/// submodule gets its own mode back, whatever happens) and gradients are off. Results are over all samples, however
/// they are divided into batches. Blocks until the batches are through; the calling thread. A pipeline of `data` begins
/// with its epoch 0.
///
/// Throws `option_error` without metrics, without a batch, for two metrics of one name and for a metric that needs a
/// loop; what batches, model and metrics throw. In a loop, and with several ranks, use `evaluator`.
template <detail::model_argument Model, ranges::range Batches, metrics::metric... Metrics>
[[nodiscard]] evaluation_result evaluate(Model&& model, Batches&& batches, const evaluate_options& options,
                                         Metrics... metrics) {
  extensions::require_metrics(sizeof...(Metrics));
  extensions::metric_set all;
  (all.add(std::move(metrics)), ...);
  all.reset();
  auto pointer = detail::model_pointer(std::forward<Model>(model));
  torch::nn::Module& module = *pointer;
  const auto device = options.device.value_or(extensions::device_of(module));
  const c10::AutoGradMode no_gradients(false);
  const extensions::evaluation_mode mode({&module});
  auto view = data::detail::all(std::forward<Batches>(batches));
  data::set_epoch(view, 0);
  for (auto&& element : view) {
    const auto batch = data::to_device(std::decay_t<decltype(element)>(element), device);
    all.update(nullptr, detail::call_forward(pointer, data::input_of(batch)), data::target_of(batch));
  }
  return extensions::result_of(all);
}
template <detail::model_argument Model, ranges::range Batches, metrics::metric... Metrics>
[[nodiscard]] evaluation_result evaluate(Model&& model, Batches&& batches, Metrics... metrics) {
  return evaluate(std::forward<Model>(model), std::forward<Batches>(batches), evaluate_options(),
                  std::move(metrics)...);
}

}  // namespace rondo

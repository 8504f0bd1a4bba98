#pragma once

#include <ATen/core/Tensor.h>

#include <concepts>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>

#include "rondo/extensions/metrics/metric.hpp"
#include "rondo/loop/source.hpp"
#include "rondo/report/summary.hpp"

namespace rondo::metrics {

/// The mean of a loss function. The function gives the mean over the batch, as LibTorch's do by default; means are
/// weighted by the number of samples.
class loss {
 public:
  using function = std::function<at::Tensor(const at::Tensor& output, const at::Tensor& target)>;

  /// The loop's own loss function. An evaluator in a supervised loop has this metric in any case.
  loss() = default;
  /// Another one, with two arguments, or a third one as those of `torch::nn::functional` have. One that is reported as
  /// "loss" takes the place of the loop's.
  template <class F>
    requires(!std::same_as<std::remove_cvref_t<F>, loss>)
  explicit loss(F&& f, std::string name = "loss") : name_(std::move(name)) {
    function_ = [f = std::decay_t<F>(std::forward<F>(f))](const at::Tensor& output, const at::Tensor& target) mutable {
      return rondo::detail::call_loss(f, output, target);
    };
  }

  /// What a batch with this target counts in the mean. Default: as in training (`loop_options::counts`), or its number
  /// of samples.
  loss& weigh_by(std::function<double(const at::Tensor& target)> counts) & {
    counts_ = std::move(counts);
    return *this;
  }
  loss weigh_by(std::function<double(const at::Tensor& target)> counts) && {
    return std::move(weigh_by(std::move(counts)));
  }

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  void reset();
  void update(context& ctx, const at::Tensor& output, const at::Tensor& target);
  /// Without a loop. Throws `option_error` for the loop's own loss function.
  void update(const at::Tensor& output, const at::Tensor& target);
  /// NaN when there was no batch. Waits for the device.
  [[nodiscard]] double compute() const;

 private:
  void add(const at::Tensor& value, double weight);

  std::string name_ = "loss";
  function function_;
  std::function<double(const at::Tensor& target)> counts_;
  summary_table sums_;
};

}  // namespace rondo::metrics

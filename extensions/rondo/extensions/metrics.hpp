#pragma once

#include <ATen/core/Tensor.h>

#include <concepts>
#include <cstdint>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>

#include "rondo/loop/context.hpp"
#include "rondo/loop/source.hpp"
#include "rondo/report/summary.hpp"

/// What an `evaluator` measures.
namespace rondo::metrics {

namespace detail {

template <class T>
concept number = std::is_arithmetic_v<T> || std::same_as<T, at::Tensor>;

template <class T>
concept named_numbers = requires(const T& all) {
  { all.begin()->first } -> std::convertible_to<std::string>;
  requires number<std::remove_cvref_t<decltype(all.begin()->second)>>;
  all.end();
};

template <class M>
concept takes_context = requires(M& m, context& ctx, const at::Tensor& t) {
  m.update(ctx, t, t);
};

template <class M>
using computed_t = std::remove_cvref_t<decltype(std::declval<M&>().compute())>;

}  // namespace detail

/// A metric sees the model's output and the target of each batch, and then gives its value. It has
///
/// * `void reset()`, called before each evaluation;
/// * `void update(const at::Tensor& output, const at::Tensor& target)`, or the same with a `context&` before them,
/// without
///   gradients. Keep sums as tensors and read them in `compute`, so that no batch waits for the device;
/// * `compute()`, which gives a number (or a tensor of one element), reported under `std::string name() const`; or
/// several
///   with their names, such as a `std::map<std::string, double>` (no `name` then).
template <class M>
concept metric = std::move_constructible<M> && requires(M& m) {
  m.reset();
  m.compute();
} &&(detail::takes_context<M> || requires(M & m, const at::Tensor& t) { m.update(t, t); }) &&
    (detail::named_numbers<detail::computed_t<M>> || (detail::number<detail::computed_t<M>> && requires(const M& m) {
       { m.name() } -> std::convertible_to<std::string>;
     }));

/// The fraction of right answers: the class with the greatest output (dimension 1) is the target. Outputs are [n,
/// classes] with targets [n], or [n, classes, …] with targets [n, …]. Throws `error` for other shapes.
class accuracy {
 public:
  [[nodiscard]] std::string name() const { return "accuracy"; }
  void reset();
  void update(const at::Tensor& output, const at::Tensor& target);
  /// NaN when there was nothing to answer. Waits for the device.
  [[nodiscard]] double compute() const;

 private:
  at::Tensor right_;  // a count, on the output's device
  std::int64_t total_ = 0;
};

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

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  void reset();
  void update(context& ctx, const at::Tensor& output, const at::Tensor& target);
  /// NaN when there was no batch. Waits for the device.
  [[nodiscard]] double compute() const;

 private:
  std::string name_ = "loss";
  function function_;
  summary_table sums_;
};

}  // namespace rondo::metrics

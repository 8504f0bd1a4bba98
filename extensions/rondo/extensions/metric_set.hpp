#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "rondo/error.hpp"
#include "rondo/extensions/metrics/loss.hpp"
#include "rondo/extensions/metrics/metric.hpp"
#include "rondo/report/observations.hpp"
#include "rondo/report/summary.hpp"

namespace rondo::extensions {

/// The metrics of an evaluation.
class metric_set {
 public:
  template <metrics::metric M>
  void add(M metric) {
    add(std::make_unique<model<M>>(std::move(metric)));
  }
  /// Puts the loop's loss first, unless there is something called "loss".
  void add_loss();
  void reset();
  /// `ctx` is null where there is no loop; a metric that needs one throws `option_error` then.
  void update(context* ctx, const at::Tensor& output, const at::Tensor& target);
  /// Every result under its name, over all ranks if they have been joined. Waits for the device.
  [[nodiscard]] std::vector<std::pair<std::string, double>> results() const;
  [[nodiscard]] std::int64_t samples() const noexcept { return samples_; }
  /// See `evaluation_pass`.
  [[nodiscard]] std::string part() const;
  void join(const std::vector<std::string>& parts);

 private:
  struct base {
    virtual ~base() = default;
    [[nodiscard]] virtual std::string name() const = 0;
    virtual void reset() = 0;
    virtual void update(context* ctx, const at::Tensor& output, const at::Tensor& target) = 0;
    /// Counts that add up over ranks; undefined for a metric that has none.
    [[nodiscard]] virtual at::Tensor sums() const = 0;
    virtual void set_sums(const at::Tensor& sums) = 0;
    /// What can be merged with that of other ranks; empty for a metric that has no such thing.
    [[nodiscard]] virtual std::optional<std::string> pack() const = 0;
    virtual void merge(const std::vector<std::string>& parts) = 0;
    [[nodiscard]] virtual std::vector<std::pair<std::string, observation>> results() const = 0;
  };

  template <class M>
  struct model final : base {
    template <class T>
    static observation result(const T& value) {
      if constexpr (std::is_arithmetic_v<T>)
        return {static_cast<double>(value), 1.0};
      else
        return {value, 1.0};
    }
    static constexpr bool has_one_value = metrics::detail::number<metrics::detail::computed_t<M>>;

    explicit model(M m) : metric(std::move(m)) {}
    [[nodiscard]] std::string name() const override {
      if constexpr (has_one_value)
        return std::as_const(metric).name();
      else
        return {};
    }
    void reset() override { metric.reset(); }
    void update(context* ctx, const at::Tensor& output, const at::Tensor& target) override {
      if constexpr (metrics::detail::takes_context<M>)
        if (ctx != nullptr) return metric.update(*ctx, output, target);
      if constexpr (metrics::detail::takes_tensors<M>)
        metric.update(output, target);
      else
        throw option_error("metrics", "one that asks a loop, outside of a loop", "metrics that need only tensors");
    }
    [[nodiscard]] at::Tensor sums() const override {
      if constexpr (metrics::detail::has_sums<M>) return metric.sums();
      return {};
    }
    void set_sums([[maybe_unused]] const at::Tensor& sums) override {
      if constexpr (metrics::detail::has_sums<M>) metric.set_sums(sums);
    }
    [[nodiscard]] std::optional<std::string> pack() const override {
      if constexpr (metrics::detail::has_parts<M>) return metric.pack();
      return std::nullopt;
    }
    void merge([[maybe_unused]] const std::vector<std::string>& parts) override {
      if constexpr (metrics::detail::has_parts<M>) metric.merge(parts);
    }
    [[nodiscard]] std::vector<std::pair<std::string, observation>> results() const override {
      std::vector<std::pair<std::string, observation>> found;
      if constexpr (has_one_value) {
        found.emplace_back(name(), result(metric.compute()));
      } else {
        const auto all = metric.compute();
        for (const auto& [key, value] : all) found.emplace_back(std::string(key), result(value));
      }
      return found;
    }

    M metric;
  };

  /// Throws `option_error` when there is one of that name.
  void add(std::unique_ptr<base> metric);

  std::vector<std::unique_ptr<base>> all_;
  std::int64_t samples_ = 0;
  summary_table joined_;  // of all ranks: what has no sums
  bool is_joined_ = false;
};

}  // namespace rondo::extensions

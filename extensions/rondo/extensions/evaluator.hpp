#pragma once

#include <ATen/core/Tensor.h>

#include <concepts>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <range/v3/range/concepts.hpp>
#include <range/v3/range/traits.hpp>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "rondo/async/task.hpp"
#include "rondo/data/example.hpp"
#include "rondo/data/labelled.hpp"
#include "rondo/data/pass.hpp"
#include "rondo/data/stage.hpp"
#include "rondo/error.hpp"
#include "rondo/extensions/metric_set.hpp"
#include "rondo/loop/context.hpp"
#include "rondo/loop/extension.hpp"
#include "rondo/report/observations.hpp"
#include "rondo/report/summary.hpp"

namespace rondo {

struct evaluator_options {
  /// Goes before what is reported ("validation/loss"), and is the extension's name.
  std::string name = "validation";
  /// Whether to evaluate once more when training ends, if the trigger did not fire at its last iteration. Not when a
  /// signal has ended it. What is reported then is seen by `log_report({.final = true})`.
  bool final = false;
};

namespace extensions {

/// One pass over an evaluator's batches.
class evaluation_pass {
 public:
  virtual ~evaluation_pass() = default;
  /// Throws `option_error` when this pass is impossible in the loop. Before training.
  virtual void check(const context&) const {}
  /// Forgets what was measured and goes to the first batch.
  virtual void begin(context& ctx) = 0;
  /// Nothing if the current batch is there, else a task that waits for it.
  [[nodiscard]] virtual std::optional<task<>> ready() = 0;
  [[nodiscard]] virtual bool exhausted() = 0;
  /// Evaluates the current batch and goes to the next. Models are in evaluation mode and there are no gradients;
  /// whatever is reported goes to `reports` instead of the iteration's observations.
  virtual void step(context& ctx, observations& reports) = 0;
  /// What this rank has measured, or what was joined.
  [[nodiscard]] virtual std::string part() = 0;
  /// Takes what these parts say together, in the order of ranks, for what was measured.
  virtual void join(const std::vector<std::string>& parts) = 0;
  /// Reports the results, under the evaluator's name.
  virtual void report(context& ctx) = 0;
};

/// The batches of a pass.
template <class Batches>
class batch_pass : public evaluation_pass {
 public:
  explicit batch_pass(Batches batches) : batches_(std::move(batches)) {}

  void begin(context& ctx) override {
    forget();
    batches_.set_device(ctx.options().device);
    batches_.begin(0);
  }
  [[nodiscard]] std::optional<task<>> ready() override { return batches_.ready(); }
  [[nodiscard]] bool exhausted() override { return batches_.exhausted(); }

 protected:
  virtual void forget() = 0;

  [[nodiscard]] auto take_batch(const context& ctx) {
    auto batch =
        data::to_device(std::decay_t<ranges::range_reference_t<Batches>>(batches_.take()), ctx.options().device);
    batches_.advance();
    return batch;
  }

 private:
  data::pass<Batches> batches_;
};

/// Labelled batches through the loop's model into metrics.
template <class Batches>
class metrics_pass final : public batch_pass<Batches> {
 public:
  metrics_pass(Batches batches, metric_set metrics)
      : batch_pass<Batches>(std::move(batches)), metrics_(std::move(metrics)) {
    metrics_.add_loss();
  }

  void check(const context& ctx) const override {
    if (ctx.supervised()) return;
    throw option_error(
        "evaluator", "metrics in a loop with a custom step",
        "a function instead of metrics: evaluator(batches, [](context& ctx, auto& batch) { ctx.report(…); })");
  }
  void step(context& ctx, observations&) override {
    const auto batch = this->take_batch(ctx);
    metrics_.update(&ctx, ctx.forward(data::input_of(batch)), data::target_of(batch));
  }
  [[nodiscard]] std::string part() override { return metrics_.part(); }
  void join(const std::vector<std::string>& parts) override { metrics_.join(parts); }
  void report(context& ctx) override {
    for (const auto& [key, value] : metrics_.results()) ctx.report(key, value);
  }

 private:
  void forget() override { metrics_.reset(); }

  metric_set metrics_;
};

/// Batches through a function that reports.
template <class Batches, class Step>
class custom_pass final : public batch_pass<Batches> {
 public:
  custom_pass(Batches batches, Step step) : batch_pass<Batches>(std::move(batches)), step_(std::move(step)) {}

  void step(context& ctx, observations& reports) override {
    auto batch = this->take_batch(ctx);
    reports.clear();
    reports.weigh_by(static_cast<double>(data::item_count(batch)));
    std::invoke(step_, ctx, batch);
    means_.add(reports);
  }
  [[nodiscard]] std::string part() override { return means_.pack(); }
  void join(const std::vector<std::string>& parts) override {
    means_.clear();
    for (const auto& part : parts) means_.merge(summary_table::unpack(part));
  }
  void report(context& ctx) override {
    for (const auto& key : means_.keys()) ctx.report(key, means_.find(key)->mean());
  }

 private:
  void forget() override { means_.clear(); }

  Step step_;
  summary_table means_;
};

/// What the loop sees of an evaluator.
class evaluation {
 public:
  evaluation(evaluator_options options, std::unique_ptr<evaluation_pass> pass);
  void attach(context& ctx);

 private:
  task<> evaluate(context& ctx);
  task<> evaluate_at_end(context& ctx);
  task<> measure(context& ctx);
  task<bool> join_ranks(context& ctx, bool any);
  std::string joined(std::vector<std::string> parts);
  void evaluate_some(context& ctx, const interruptible_work& work);

  evaluator_options options_;
  std::unique_ptr<evaluation_pass> pass_;
  std::int64_t evaluated_at_ = -1;  // version of the state
  std::int64_t begun_at_ = -1;
};

template <class Batches>
using batch_of = std::decay_t<ranges::range_reference_t<Batches>>;

/// A function that evaluates one batch.
template <class Step, class Batch>
concept evaluation_step =
    std::invocable<Step&, context&, Batch&> && std::is_void_v<std::invoke_result_t<Step&, context&, Batch&>>;

[[nodiscard]] extension make_evaluator(evaluator_options options, std::unique_ptr<evaluation_pass> pass);

}  // namespace extensions

/// Runs the loop's model over `batches`, which are labelled as in training, with a tensor as target, and reports the
/// loss and `metrics` as "validation/loss", "validation/accuracy", …, averaged over the samples of all batches. For
/// supervised loops.
///
/// Meanwhile every model of the loop is in evaluation mode (each submodule gets its own mode back, whatever happens)
/// and gradients are off; batches are moved to the loop's device. The batches are iterated over from the beginning each
/// time. As for the loop, a view is copied, a temporary container is taken over, one with a name is referred to and
/// must outlive the loop.
///
/// Between two batches, now and then, and while it waits for data, the event loop runs. A signal that ends training
/// breaks an evaluation off, and the resumed run does it again, if a `snapshot` saves the run (`interruptible_work`).
///
/// With several ranks, each evaluates the batches that it is given (`data::distributed(rank, world_size, {.even =
/// false})`), and all report the same: the results over the samples of all ranks together (see `metrics::metric`). A
/// rank may have no batch at all. Ranks that are given the same batches get the same results as one.
///
/// Default trigger every(1_epochs), priority `writer`, so that logs of the same iteration see the results; no state.
/// Emits `event::evaluation_started` and `_completed`. Throws `option_error` before training when the loop is not
/// supervised or two metrics have one name, and during training when there is no batch; what a metric throws ends the
/// training.
template <ranges::range Batches, metrics::metric... Metrics>
[[nodiscard]] extension evaluator(Batches&& batches, evaluator_options options, Metrics... metrics) {
  extensions::metric_set all;
  (all.add(std::move(metrics)), ...);
  auto view = data::detail::all(std::forward<Batches>(batches));
  return extensions::make_evaluator(
      std::move(options), std::make_unique<extensions::metrics_pass<decltype(view)>>(std::move(view), std::move(all)));
}
template <ranges::range Batches, metrics::metric... Metrics>
[[nodiscard]] extension evaluator(Batches&& batches, Metrics... metrics) {
  return evaluator(std::forward<Batches>(batches), evaluator_options(), std::move(metrics)...);
}

/// For any loop: calls `step(context&, batch&)` for each batch, under the same conditions, and reports the means of
/// what it reports: `evaluator(batches, [](context& ctx, auto& batch) { ctx.report("loss", …); })` gives
/// "validation/loss". A key counts for those batches in which it was reported. Its weight is the one that it was
/// reported with, or else the number of samples in the batch (`data::item_count`).
template <ranges::range Batches, extensions::evaluation_step<extensions::batch_of<Batches>> Step>
[[nodiscard]] extension evaluator(Batches&& batches, evaluator_options options, Step step) {
  auto view = data::detail::all(std::forward<Batches>(batches));
  return extensions::make_evaluator(std::move(options), std::make_unique<extensions::custom_pass<decltype(view), Step>>(
                                                            std::move(view), std::move(step)));
}
template <ranges::range Batches, extensions::evaluation_step<extensions::batch_of<Batches>> Step>
[[nodiscard]] extension evaluator(Batches&& batches, Step step) {
  return evaluator(std::forward<Batches>(batches), evaluator_options(), std::move(step));
}

}  // namespace rondo

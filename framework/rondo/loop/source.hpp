#pragma once

#include <ATen/core/Tensor.h>

#include <concepts>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <range/v3/range/concepts.hpp>
#include <range/v3/range/traits.hpp>
#include <type_traits>
#include <utility>

#include "rondo/async/task.hpp"
#include "rondo/async/trace.hpp"
#include "rondo/data/example.hpp"
#include "rondo/data/pass.hpp"
#include "rondo/data/stage.hpp"
#include "rondo/loop/autocast.hpp"
#include "rondo/loop/context.hpp"
#include "rondo/loop/session.hpp"

namespace rondo {

/// What a custom training step may look like: called with `(context&, batch&)`, it returns
///
/// * a tensor: the loss. The loop calls backward, accumulates, clips and updates the (only) optimizer;
/// * a `task<>`: does all that itself, with `co_await ctx.update(optimizer)` for each update, which clips. The option
///   `accumulate` is refused: when to update is up to the step;
/// * nothing: does everything by hand, `optimizer.step()` included; no update events are emitted then, and a snapshot
///   that is still being copied in the background is waited for before the step begins. Options for updates
///   (`accumulate`, clipping, `on_non_finite_gradients`) are refused.
template <class F, class Batch>
concept training_step = std::invocable<F&, context&, Batch&> &&
    (std::convertible_to<std::invoke_result_t<F&, context&, Batch&>, at::Tensor> ||
     std::same_as<std::invoke_result_t<F&, context&, Batch&>, task<>> ||
     std::is_void_v<std::invoke_result_t<F&, context&, Batch&>>);

namespace detail {

/// A range of batches and a step. The range may be anything that range-v3 can iterate over; where it is random access,
/// going to a batch takes constant time.
template <class View, class Step>
class typed_source final : public batch_source {
  using batch = std::decay_t<ranges::range_reference_t<View>>;
  static_assert(training_step<Step, batch>,
                "a training step is called with (context&, batch&) and returns a loss tensor, a task<> or nothing");

 public:
  typed_source(View range, Step step) : pass_(std::move(range)), step_(std::move(step)) {}

  [[nodiscard]] std::optional<std::int64_t> length() const override { return pass_.size(); }
  [[nodiscard]] std::optional<std::int64_t> length_in(std::int64_t epoch) override { return pass_.size_in(epoch); }
  void set_device(at::Device device) override { pass_.set_device(device); }

  void begin(std::int64_t epoch, std::int64_t skip) override { pass_.begin(epoch, skip); }
  void resume(const state::value& state) override { pass_.load_state_dict(state); }
  void load_settings(const state::value& state) override { pass_.load_settings(state); }
  [[nodiscard]] state::dict state_dict() const override { return pass_.state_dict(); }

  [[nodiscard]] std::optional<task<>> ready() override { return pass_.ready(); }
  [[nodiscard]] std::optional<task<>> end_known() override {
    if constexpr (data::pass<View>::size_lasts) return std::nullopt;
    return pass_.ready();
  }
  [[nodiscard]] bool exhausted() override { return pass_.exhausted(); }

  [[nodiscard]] std::optional<task<>> step(session& s) override {
    trace::span making(making_batch_);
    batch_.emplace(data::to_device(batch(pass_.take()), s.options.device));
    making.end();
    s.begin_batch(static_cast<double>(data::item_count(*batch_)));
    context& ctx = *s.step_context;
    using result = std::invoke_result_t<Step&, context&, batch&>;
    if constexpr (std::same_as<result, task<>>) {
      return std::invoke(step_, ctx, *batch_);
    } else if constexpr (std::is_void_v<result>) {
      std::invoke(step_, ctx, *batch_);
      return std::nullopt;
    } else {
      return s.learn(loss_of(s));
    }
  }

  [[nodiscard]] step_kind kind() const noexcept override {
    using result = std::invoke_result_t<Step&, context&, batch&>;
    if constexpr (std::convertible_to<result, at::Tensor>) return step_kind::gives_loss;
    return std::same_as<result, task<>> ? step_kind::calls_update : step_kind::by_hand;
  }

  void advance() override {
    batch_.reset();
    pass_.advance();
  }

 private:
  [[nodiscard]] at::Tensor loss_of(session& s) {
    const autocast_scope precision(s.options.device.type(), s.options.autocast);
    return std::invoke(step_, *s.step_context, *batch_);
  }

  // Where it is not made ahead, and moved to the device.
  static inline const trace::label& making_batch_ = trace::intern("batch", "loop");

  data::pass<View> pass_;
  Step step_;
  std::optional<batch> batch_;
};

template <class Range, class Step>
std::unique_ptr<batch_source> make_source(Range&& batches, Step step) {
  using view = data::detail::all_t<Range>;
  return std::make_unique<typed_source<view, Step>>(data::detail::all(std::forward<Range>(batches)), std::move(step));
}

}  // namespace detail
}  // namespace rondo

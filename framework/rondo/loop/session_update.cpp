// The update phase of a run: gradients, clipping, optimizer steps and their events.

#include <fmt/format.h>
#include <torch/optim/lbfgs.h>
#include <torch/types.h>

#include <cmath>
#include <utility>
#include <vector>

#include "rondo/distributed/sharded_optimizer.hpp"
#include "rondo/log.hpp"
#include "rondo/loop/grad_scaler.hpp"
#include "rondo/loop/gradients.hpp"
#include "rondo/loop/session.hpp"

namespace rondo::detail {

namespace {

/// Null for an optimizer whose `step` is all there is to do.
distributed::sharded_optimizer_base* shared_with_ranks(torch::optim::Optimizer& optimizer) {
  auto* sharded = dynamic_cast<distributed::sharded_optimizer_base*>(&optimizer);
  return sharded != nullptr && sharded->group().world_size() > 1 ? sharded : nullptr;
}

task<> nothing() { co_return; }

}  // namespace

std::size_t session::optimizer_index(const torch::optim::Optimizer& optimizer) const {
  for (std::size_t i = 0; i < optimizers.size(); ++i)
    if (optimizers[i].optimizer.get() == &optimizer) return i;
  throw option_error("update", "an optimizer that the loop does not know", "one of those given to the loop");
}

void session::begin_batch(double samples) {
  batch_samples_ = samples;
  batch_weight_ = samples;
  observed.weigh_all_by(samples);  // what `iteration_started` has reported is of this batch, too
}

void session::weigh_batch(double weight) {
  if (!(weight >= 0.0) || !std::isfinite(weight))
    throw option_error("weight of a batch", fmt::format("{}", weight), "a finite number that is not negative");
  if (together() && weight != std::floor(weight))
    throw option_error("weight of a batch", fmt::format("{} with several ranks", weight), "a whole number");
  batch_weight_ = weight;
  observed.weigh_by(weight);
}

std::optional<task<>> session::learn(const at::Tensor& loss) {
  if (optimizers.size() != 1)
    throw option_error("step", fmt::format("returns a loss in a loop with {} optimizers", optimizers.size()),
                       "exactly one optimizer; with several, call co_await ctx.update(optimizer) and return nothing");
  if (dynamic_cast<torch::optim::LBFGS*>(optimizers[0].optimizer.get()) != nullptr)
    throw option_error("optimizer", "LBFGS",
                       "an optimizer that steps without a closure; for LBFGS write a step that calls step(closure)");
  if (!loss.defined() || loss.numel() != 1)
    throw option_error("loss", loss.defined() ? fmt::format("a tensor of {} elements", loss.numel()) : "undefined",
                       "a tensor with one element");
  observed.report("train/loss", loss);
  if (gradients_of_ == 0) {
    optimizers[0].optimizer->zero_grad();
    window_weight_ = 0.0;
  }
  if (batch_weight_ > 0.0) look_at_loss(loss);
  const double before = std::exchange(window_weight_, window_weight_ + batch_weight_);
  const auto part = options.accumulate_by_weight ? weighed_part(loss, before)
                    : options.accumulate == 1    ? loss
                                                 : loss / static_cast<double>(options.accumulate);
  backward(options.scaler ? options.scaler->scale(part) : part);
  ++gradients_of_;
  return std::nullopt;
}

/// The gradient of the window is at any time the mean over the batches that have been, by weight, so that the window
/// may end anywhere. `before` is what those before the present one weigh.
at::Tensor session::weighed_part(const at::Tensor& loss, double before) {
  if (batch_weight_ == 0.0 || before == 0.0) return loss;
  {
    const torch::NoGradGuard no_grad;
    for (const auto& g : gradients::of(*optimizers[0].optimizer)) g.mul_(before / window_weight_);
  }
  return loss * (batch_weight_ / window_weight_);
}

/// Only where that does not wait for a device.
void session::look_at_loss(const at::Tensor& loss) {
  if (warned_of_loss_ || !loss.is_cpu()) return;
  const bool nan = loss.scalar_type() == at::kFloat    ? std::isnan(*loss.data_ptr<float>())
                   : loss.scalar_type() == at::kDouble ? std::isnan(*loss.data_ptr<double>())
                                                       : false;
  if (!nan) return;
  warned_of_loss_ = true;
  log::warn(
      fmt::format("the loss of iteration {} is NaN (said once); `fail_on_non_number()` ends training there, and "
                  "`on_non_finite_gradients` says what becomes of such updates",
                  now.iteration + 1));
}

/// The last one of an accumulation window hands gradients to the other ranks while others are still being computed.
/// A batch that does not count, whose loss may be NaN, has none.
void session::backward(const at::Tensor& loss) {
  const bool last_of_window = gradients_of_ + 1 >= options.accumulate;
  for (const auto& model : parallel_) model->begin(static_cast<std::int64_t>(batch_weight_), last_of_window);
  if (batch_weight_ > 0.0) loss.backward();
}

/// Everything between `backward` and the step. Whether there is to be a step.
bool session::prepare_gradients(std::size_t index) {
  const bool short_window = !options.accumulate_by_weight && gradients_of_ > 0 && gradients_of_ < options.accumulate;
  if (gradients_of_ > 0 && window_weight_ == 0.0 && !together()) return false;  // no batch has counted
  const bool with_norm = options.clip_grad_norm || options.report_grad_norm;
  const bool checked = options.on_non_finite_gradients != non_finite_gradients::use;
  auto& optimizer = *optimizers[index].optimizer;
  if (options.scaler) {
    observed.report("train/loss_scale", options.scaler->factor());
    const bool finite = options.scaler->is_finite(optimizer);
    options.scaler->update();
    observed.report("train/update_skipped", finite ? 0.0 : 1.0);
    if (!finite) return false;
  }
  if (!short_window && !with_norm && !checked && !options.clip_grad_value) return true;
  torch::NoGradGuard no_grad;
  const auto all = gradients::of(optimizer);
  if (all.empty()) return true;
  if (short_window) {
    const double scale = static_cast<double>(options.accumulate) / static_cast<double>(gradients_of_);
    for (const auto& g : all) g.mul_(scale);
  }
  at::Tensor norm;
  if (with_norm || checked) norm = gradients::norm(all, options.grad_norm_type);
  if (checked && !options.scaler && !gradients_are_usable(index, all, norm)) return false;
  if (with_norm)
    observed.report(optimizers.size() > 1 ? "train/grad_norm/" + optimizers[index].name : "train/grad_norm", norm);
  if (options.clip_grad_norm) gradients::clip_norm(all, norm, *options.clip_grad_norm);
  if (options.clip_grad_value)
    for (const auto& g : all) g.clamp_(-*options.clip_grad_value, *options.clip_grad_value);
  return true;
}

// A norm that overflows is none of a gradient that is not finite; so they are looked at one by one then.
bool session::gradients_are_usable(std::size_t index, const std::vector<at::Tensor>& all, const at::Tensor& norm) {
  std::optional<std::size_t> bad;
  if (!std::isfinite(norm.item<double>())) bad = gradients::first_non_finite(all);
  if (bad && options.on_non_finite_gradients == non_finite_gradients::fail)
    throw error(
        fmt::format("iteration {}: the gradient of {} is not finite; a lower learning rate, clip_grad_norm, or "
                    "on_non_finite_gradients = skip may help",
                    now.iteration + 1, parameter_name(index, *bad)));
  observed.report("train/update_skipped", bad ? 1.0 : 0.0);
  return !bad;
}

std::string session::parameter_name(std::size_t index, std::size_t nth_gradient) const {
  const auto parameter = gradients::parameters_of(*optimizers[index].optimizer).at(nth_gradient);
  for (const auto& model : models)
    for (const auto& named : model.module->named_parameters())
      if (named.value().is_same(parameter)) return fmt::format("'{}' of model '{}'", named.key(), model.name);
  return fmt::format("parameter {} of optimizer '{}'", nth_gradient, optimizers[index].name);
}

std::optional<task<>> session::update_now(std::size_t index) {
  if (!parallel_.empty() && !gradients_joined_) return update_together(index);
  if (state_readers.size() > 0) return update_when_free(index);
  gradients_joined_ = false;
  updated_[index] = true;
  const bool wanted = prepare_gradients(index);
  gradients_of_ = 0;
  if (!wanted) return std::nullopt;
  const auto& one = optimizers[index];
  update_open_ = index;
  auto rest = events.emit<event::update_started>(one.name);
  if (!rest && shared_with_ranks(*one.optimizer) != nullptr) rest = nothing();
  if (rest) return update_after(index, std::move(*rest));
  one.optimizer->step();
  update_open_.reset();
  return events.emit<event::update_completed>(one.name, std::exception_ptr());
}

task<> session::update_together(std::size_t index) {
  for (const auto& model : parallel_) co_await model->finish();
  gradients_joined_ = true;
  auto rest = update_now(index);
  if (rest) co_await std::move(*rest);
}

task<> session::update_when_free(std::size_t index) {
  co_await state_readers.empty();
  auto rest = update_now(index);
  if (rest) co_await std::move(*rest);
}

task<> session::update_after(std::size_t index, task<> announced) {
  co_await std::move(announced);
  // A subscriber of update_started may have had the state captured.
  co_await state_readers.empty();
  const auto& one = optimizers[index];
  one.optimizer->step();
  if (auto* sharded = shared_with_ranks(*one.optimizer)) co_await sharded->gather();
  update_open_.reset();
  auto rest = events.emit<event::update_completed>(one.name, std::exception_ptr());
  if (rest) co_await std::move(*rest);
}

task<> session::update(std::size_t index) {
  auto rest = update_now(index);
  if (rest) co_await std::move(*rest);
}

}  // namespace rondo::detail

// The update phase of a run: gradients, clipping, optimizer steps and their events.

#include <fmt/format.h>
#include <torch/optim/lbfgs.h>
#include <torch/types.h>

#include <utility>
#include <vector>

#include "rondo/loop/session.hpp"

namespace rondo::detail {

std::size_t session::optimizer_index(const torch::optim::Optimizer& optimizer) const {
  for (std::size_t i = 0; i < optimizers.size(); ++i)
    if (optimizers[i].optimizer.get() == &optimizer) return i;
  throw option_error("update", "an optimizer that the loop does not know", "one of those given to the loop");
}

std::optional<task<>> session::learn(const at::Tensor& loss, std::int64_t samples) {
  if (optimizers.size() != 1)
    throw option_error("step", fmt::format("returns a loss in a loop with {} optimizers", optimizers.size()),
                       "exactly one optimizer; with several, call co_await ctx.update(optimizer) and return nothing");
  if (dynamic_cast<torch::optim::LBFGS*>(optimizers[0].optimizer.get()) != nullptr)
    throw option_error("optimizer", "LBFGS",
                       "an optimizer that steps without a closure; for LBFGS write a step that calls step(closure)");
  if (!loss.defined() || loss.numel() != 1)
    throw option_error("loss", loss.defined() ? fmt::format("a tensor of {} elements", loss.numel()) : "undefined",
                       "a tensor with one element");
  observed.report("train/loss", loss, static_cast<double>(samples));
  if (gradients_of_ == 0) optimizers[0].optimizer->zero_grad();
  if (options.accumulate == 1)
    loss.backward();
  else
    (loss / static_cast<double>(options.accumulate)).backward();
  ++gradients_of_;
  return std::nullopt;
}

void session::clip(std::size_t index) {
  const bool short_window = gradients_of_ > 0 && gradients_of_ < options.accumulate;
  if (!short_window && !options.clip_grad_norm && !options.clip_grad_value) return;
  torch::NoGradGuard no_grad;
  std::vector<at::Tensor> gradients;
  for (const auto& group : optimizers[index].optimizer->param_groups())
    for (const auto& parameter : group.params())
      if (parameter.grad().defined()) gradients.push_back(parameter.grad());
  if (gradients.empty()) return;
  if (short_window) {
    const double scale = static_cast<double>(options.accumulate) / static_cast<double>(gradients_of_);
    for (auto& g : gradients) g.mul_(scale);
  }
  if (options.clip_grad_norm) {
    // As torch.nn.utils.clip_grad_norm_, without waiting for the device.
    std::vector<at::Tensor> norms;
    norms.reserve(gradients.size());
    for (const auto& g : gradients) norms.push_back(g.norm(2));
    const auto total = torch::stack(norms).norm(2);
    const auto scale = (*options.clip_grad_norm / (total + 1e-6)).clamp_max(1.0);
    for (auto& g : gradients) g.mul_(scale);
    observed.report("train/grad_norm", total);
  }
  if (options.clip_grad_value)
    for (auto& g : gradients) g.clamp_(-*options.clip_grad_value, *options.clip_grad_value);
}

std::optional<task<>> session::update_now(std::size_t index) {
  if (state_readers.size() > 0) return update_when_free(index);
  updated_[index] = true;
  clip(index);
  gradients_of_ = 0;
  const auto& one = optimizers[index];
  update_open_ = index;
  auto rest = events.emit<event::update_started>(one.name);
  if (rest) return update_after(index, std::move(*rest));
  one.optimizer->step();
  update_open_.reset();
  return events.emit<event::update_completed>(one.name, std::exception_ptr());
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
  update_open_.reset();
  auto rest = events.emit<event::update_completed>(one.name, std::exception_ptr());
  if (rest) co_await std::move(*rest);
}

task<> session::update(std::size_t index) {
  auto rest = update_now(index);
  if (rest) co_await std::move(*rest);
}

}  // namespace rondo::detail

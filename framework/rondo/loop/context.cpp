#include "rondo/loop/context.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "rondo/async/trace.hpp"
#include "rondo/loop/autocast.hpp"

namespace rondo {

namespace {

template <class Named>
const Named& named(const char* option, const std::vector<Named>& all, std::string_view name) {
  for (const auto& one : all)
    if (one.name == name) return one;
  std::string known;
  for (const auto& one : all) known += (known.empty() ? "" : ", ") + one.name;
  throw option_error(option, std::string(name), known.empty() ? "nothing: the loop has none" : "one of: " + known);
}

const trace::label& update_span = trace::intern("update", "loop");

task<> traced(task<> update) {
  const trace::span updating(update_span);
  co_await std::move(update);
}

const option_error not_supervised(const char* what) {
  return option_error(
      what, "called in a loop with a custom step, or with a model whose output is no tensor",
      "a loop made from a model and a loss function; elsewhere give the evaluation a function of its own");
}

}  // namespace

double context::epoch_detail() const noexcept { return session_.epoch_detail(); }

const std::string& context::name() const noexcept {
  static const std::string loop = "loop";
  return self_ != nullptr ? self_->what.name() : loop;
}

torch::nn::Module& context::model(std::string_view name) const { return *named("model", session_.models, name).module; }

torch::optim::Optimizer& context::optimizer(std::string_view name) const {
  return *named("optimizer", session_.optimizers, name).optimizer;
}

at::Tensor context::call_forward(detail::typed_value input) const {
  if (!session_.supervised.forward) throw not_supervised("forward");
  const autocast_scope precision(options().device.type(), options().autocast);
  return session_.supervised.forward(input);
}

at::Tensor context::call_loss(const at::Tensor& output, detail::typed_value target) const {
  if (!session_.supervised.loss) throw not_supervised("loss");
  const autocast_scope precision(options().device.type(), options().autocast);
  return session_.supervised.loss(output, target);
}

double context::weight_of(const at::Tensor& target) const {
  if (options().counts) return options().counts(target);
  return static_cast<double>(data::item_count(target));
}

task<> context::update(torch::optim::Optimizer& optimizer) {
  auto update = session_.update(session_.optimizer_index(optimizer));
  return trace::on() ? traced(std::move(update)) : std::move(update);
}

void context::settle() {
  if (self_ != nullptr) self_->ack.settle();
}

bool context::listening() const {
  return std::any_of(listeners_.begin(), listeners_.end(), [](const auto& l) { return l.second->waiting(); });
}

int context::priority() const noexcept { return self_ != nullptr ? self_->what.priority() : priority::reader; }

const trigger* context::own_trigger() const noexcept {
  return self_ != nullptr && self_->when ? &self_->when->inner() : nullptr;
}

void context::throw_asked_after_end() const {
  throw error(
      fmt::format("extension '{}' calls ctx.next() again and again after the end of the run, where it gives the "
                  "null pointer: end the coroutine then, as `while (const auto* e = co_await ctx.next<E>())` "
                  "does",
                  name()));
}

std::shared_ptr<gate> context::own_gate() const {
  if (self_ == nullptr) return nullptr;
  self_->when_is_used = true;
  return self_->when;
}

rondo::acknowledgement& context::acknowledgement() {
  if (self_ == nullptr) throw option_error("next", "called in a training step", "extensions only");
  return self_->ack;
}

}  // namespace rondo

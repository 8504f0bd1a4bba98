#include "rondo/extensions/weight_averaging.hpp"

#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/scalar_tensor.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <utility>

#include "rondo/error.hpp"
#include "rondo/event/events.hpp"
#include "rondo/extensions/schedules.hpp"
#include "rondo/log.hpp"
#include "rondo/loop/context.hpp"
#include "rondo/state/module.hpp"

namespace rondo::extensions {

namespace {

constexpr int before_evaluators = 400;

bool is_half(const at::Tensor& t) { return t.scalar_type() == at::kHalf || t.scalar_type() == at::kBFloat16; }

/// One model's tensors and their averages.
class averaged_model {
 public:
  averaged_model(std::string name, const torch::nn::Module& module) : name_(std::move(name)) {
    for (const auto& [key, value] : state::module_state(module))
      entries_.push_back({key.str(), slot_of(value.as<at::Tensor>())});
  }

  [[nodiscard]] const std::string& name() const noexcept { return name_; }

  void copy() { copy_all(averages_, live_); }

  /// `average += weight * (live - average)`.
  void blend(double weight) {
    const c10::AutoGradMode no_gradients(false);
    for (const auto i : single_) averages_[i].lerp_(live_[i], weight);
    if (!many_.empty()) {
      at::_foreach_mul_(many_, 1.0 - weight);
      at::_foreach_add_(many_, many_live_, weight);
    }
    for (const auto i : widened_) averages_[i].mul_(1.0 - weight).add_(live_[i], weight);
    for (const auto i : copied_) averages_[i].copy_(live_[i]);
  }

  /// The average takes the place of the weights, which are kept.
  void swap_in() {
    std::vector<at::Tensor> copies;
    for (const auto& tensor : live_) copies.push_back(tensor.clone());
    kept_ = std::move(copies);
    copy_all(live_, averages_);
  }
  /// Does nothing where `swap_in` has not come so far.
  void swap_out() {
    if (kept_.empty()) return;
    copy_all(live_, kept_);
    kept_.clear();
  }
  [[nodiscard]] state::dict kept() const { return by_name(kept_, ""); }

  [[nodiscard]] state::dict weights(const std::string& prefix) const { return by_name(averages_, prefix); }

  /// Throws `state_error`; changes nothing.
  void check(const state::value& stored) const {
    for (const auto& entry : entries_) {
      const auto& tensor = stored.get<at::Tensor>("module." + entry.name);
      if (tensor.sizes() != averages_[entry.slot].sizes())
        throw state_error("module." + entry.name, "has another shape than the model's");
    }
  }
  void load(const state::value& stored) {
    const c10::AutoGradMode no_gradients(false);
    for (const auto& entry : entries_) averages_[entry.slot].copy_(stored.get<at::Tensor>("module." + entry.name));
  }

 private:
  struct entry {
    std::string name;
    std::size_t slot;
  };

  std::size_t slot_of(const at::Tensor& tensor) {
    for (std::size_t i = 0; i < live_.size(); ++i)
      if (tensor.numel() > 0 && live_[i].data_ptr() == tensor.data_ptr() && live_[i].sizes() == tensor.sizes() &&
          live_[i].strides() == tensor.strides() && live_[i].scalar_type() == tensor.scalar_type())
        return i;
    const auto i = live_.size();
    live_.push_back(tensor);
    averages_.push_back(is_half(tensor) ? at::empty_like(tensor, at::kFloat) : at::empty_like(tensor));
    if (!tensor.is_floating_point()) {
      copied_.push_back(i);
    } else if (is_half(tensor)) {
      widened_.push_back(i);
    } else if (tensor.is_cpu()) {
      single_.push_back(i);
    } else {
      many_.push_back(averages_[i]);
      many_live_.push_back(tensor);
    }
    return i;
  }

  [[nodiscard]] state::dict by_name(const std::vector<at::Tensor>& tensors, const std::string& prefix) const {
    state::dict all;
    for (const auto& entry : entries_) all.insert_or_assign(prefix + entry.name, tensors[entry.slot]);
    return all;
  }

  static void copy_all(const std::vector<at::Tensor>& to, const std::vector<at::Tensor>& from) {
    const c10::AutoGradMode no_gradients(false);
    for (std::size_t i = 0; i < to.size(); ++i) to[i].copy_(from[i]);
  }

  std::string name_;
  std::vector<entry> entries_;        // as the model names them; a shared tensor twice
  std::vector<at::Tensor> live_;      // the model's own, without gradients
  std::vector<at::Tensor> averages_;  // one for each
  std::vector<at::Tensor> kept_;      // while the averages are in the model
  std::vector<std::size_t> single_;   // which are averaged one by one,
  std::vector<std::size_t> widened_;  // in float32,
  std::vector<std::size_t> copied_;   // not at all,
  std::vector<at::Tensor> many_;      // or together on a device
  std::vector<at::Tensor> many_live_;
};

}  // namespace

class weight_averaging {
 public:
  explicit weight_averaging(ema_options options) : ema_(std::move(options)) {
    if (!(ema_->decay > 0.0 && ema_->decay < 1.0))
      throw option_error("decay", fmt::format("{}", ema_->decay), "a number between 0 and 1");
    if (ema_->every < 1) throw option_error("every", fmt::format("{}", ema_->every), "1 or more updates");
  }
  explicit weight_averaging(swa_options options) : swa_(std::move(options)), when_(every(swa_->every)) {}

  void attach(context& ctx) {
    collect(ctx);
    ctx.on<event::training_started>([this] {
      if (!loaded_)
        for (auto& model : models_) model.copy();
    });
    if (ema_)
      subscribe_to_updates(ctx);
    else
      subscribe_to_iterations(ctx);
    if (ema_ ? ema_->swap_for_evaluation : swa_->swap_for_evaluation) subscribe_to_evaluations(ctx);
  }

  void update() {
    const double n = static_cast<double>(count_);
    if (count_ == 0)
      for (auto& model : models_) model.copy();
    else
      for (auto& model : models_) model.blend(ema_ ? 1.0 - decay_after(n) : 1.0 / (n + 1.0));
    ++count_;
  }

  [[nodiscard]] std::int64_t count() const noexcept { return count_; }

  [[nodiscard]] state::dict weights(std::string_view name) const {
    for (const auto& model : models_)
      if (model.name() == name) return model.weights("");
    std::string known;
    for (const auto& model : models_) known += (known.empty() ? "" : ", ") + model.name();
    throw option_error("model", std::string(name),
                       known.empty() ? "a name after the extension was attached: no training has begun"
                                     : "one that is averaged: " + known);
  }

  [[nodiscard]] state::value state_dict() const {
    state::dict all;
    for (const auto& model : models_) {
      auto one = model.weights("module.");
      one.insert_or_assign("n_averaged", at::scalar_tensor(count_, at::kLong));
      all.insert_or_assign(model.name(), std::move(one));
    }
    return state::dict{{"averages", std::move(all)}, {"count", count_}, {"updates", updates_}};
  }

  void load_state_dict(const state::value& state) {
    const auto count = state.get<std::int64_t>("count");
    const auto updates = state.get<std::int64_t>("updates");
    const auto& averages = state.at("averages");
    for (const auto& model : models_) model.check(averages.at(model.name()));
    for (auto& model : models_) model.load(averages.at(model.name()));
    count_ = count;
    updates_ = updates;
    loaded_ = true;
  }

 private:
  void collect(const context& ctx) {
    const auto& wanted = ema_ ? ema_->models : swa_->models;
    for (const auto& name : wanted) static_cast<void>(ctx.model(name));
    // Of another loop, if the extension has been in one.
    models_.clear();
    count_ = updates_ = 0;
    loaded_ = swapped_ = false;
    for (const auto& m : ctx.models())
      if (wanted.empty() || std::ranges::find(wanted, m.name) != wanted.end()) models_.emplace_back(m.name, *m.module);
    if (models_.empty()) throw option_error("models", "a loop without a model", "a loop with models to average");
  }

  void subscribe_to_updates(context& ctx) {
    if (!ema_->optimizer.empty()) static_cast<void>(ctx.optimizer(ema_->optimizer));
    ctx.on<event::update_completed>([this](const event::update_completed& e) {
      if (!ema_->optimizer.empty() && e.optimizer != ema_->optimizer) return;
      if (++updates_ % ema_->every == 0) update();
    });
    ctx.on<event::training_completed>([this] {
      if (updates_ == 0 && count_ == 0)
        log::warn(
            "ema: the loop has announced no update, so there is no average; a step that updates by hand calls update() "
            "of what ema() gives");
    });
  }

  void subscribe_to_iterations(context& ctx) {
    ctx.on<event::iteration_completed>(*when_, [this, &ctx] {
      if (!swa_->start || schedules::progress_at(ctx.now()).of(*swa_->start) >= 1.0) update();
    });
  }

  void subscribe_to_evaluations(context& ctx) {
    ctx.on<event::evaluation_started>(
        [this, &ctx](const event::evaluation_started& e) -> task<> { return swap_in(ctx, e.name); });
    ctx.on_end<event::evaluation_completed>(
        [this, &ctx](const event::evaluation_completed& e) -> task<> { return swap_out(ctx, e.name); });
    // Where another subscriber has kept the end of the evaluation from coming here.
    ctx.on<event::failed>([this, &ctx]() -> task<> { return swap_out(ctx, swapped_for_); });
  }

  task<> swap_in(context& ctx, std::string evaluation) {
    if (swapped_ || count_ == 0) co_return;
    co_await ctx.exclusive_state();
    swapped_ = true;
    swapped_for_ = std::move(evaluation);
    for (auto& model : models_) {
      model.swap_in();
      ctx.stand_in(model.name(), model.kept());
    }
  }

  task<> swap_out(context& ctx, std::string evaluation) {
    if (!swapped_ || evaluation != swapped_for_) co_return;
    co_await ctx.exclusive_state();
    swapped_ = false;
    for (auto& model : models_) {
      ctx.stand_in(model.name(), std::nullopt);
      model.swap_out();
    }
  }

  [[nodiscard]] double decay_after(double n) const {
    return ema_->warm_up ? std::min(ema_->decay, (1.0 + n) / (10.0 + n)) : ema_->decay;
  }

  std::optional<ema_options> ema_;  // one of the two
  std::optional<swa_options> swa_;
  std::optional<trigger> when_;
  std::vector<averaged_model> models_;
  std::int64_t count_ = 0;
  std::int64_t updates_ = 0;
  std::string swapped_for_;
  bool swapped_ = false;
  bool loaded_ = false;
};

}  // namespace rondo::extensions

namespace rondo {

averaged_weights::averaged_weights(std::string name, std::shared_ptr<extensions::weight_averaging> self)
    : name_(std::move(name)), self_(std::move(self)) {}

averaged_weights::operator extension() const { return named(name_); }

extension averaged_weights::named(std::string name) const {
  return make_extension(std::move(name), self_).at_priority(extensions::before_evaluators);
}

std::int64_t averaged_weights::count() const { return self_->count(); }

state::dict averaged_weights::weights(std::string_view model) const { return self_->weights(model); }

void averaged_weights::apply_to(torch::nn::Module& model, std::string_view name) const {
  auto all = weights(name);
  if (count() == 0) throw error("apply_to: no weights have been averaged yet");
  const auto own = state::module_state(model);
  for (const auto& [key, value] : own) {
    const auto* average = all.find(key);
    if (average == nullptr) continue;
    all.insert_or_assign(key, average->as<at::Tensor>().to(value.as<at::Tensor>().scalar_type()));
  }
  state::load_module_state(model, all);
}

void averaged_weights::update() const { self_->update(); }

averaged_weights ema(ema_options options) {
  return {"ema", std::make_shared<extensions::weight_averaging>(std::move(options))};
}

averaged_weights swa(swa_options options) {
  return {"swa", std::make_shared<extensions::weight_averaging>(std::move(options))};
}

}  // namespace rondo

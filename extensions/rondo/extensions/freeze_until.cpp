#include "rondo/extensions/freeze_until.hpp"

#include <fmt/format.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/batchnorm.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "rondo/error.hpp"
#include "rondo/event/events.hpp"
#include "rondo/loop/context.hpp"

namespace rondo {

namespace {

bool is_batch_norm(const torch::nn::Module& module) {
  return module.as<torch::nn::BatchNorm1d>() != nullptr || module.as<torch::nn::BatchNorm2d>() != nullptr ||
         module.as<torch::nn::BatchNorm3d>() != nullptr;
}

bool has_only_frozen(const torch::nn::Module& module) {
  const auto own = module.parameters(false);
  return !own.empty() && std::none_of(own.begin(), own.end(), [](const auto& p) { return p.requires_grad(); });
}

class freezing {
 public:
  freezing(name_pattern pattern, trigger when, freeze_until_options options)
      : pattern_(std::move(pattern)), when_(std::move(when)), options_(std::move(options)) {}

  void attach(context& ctx) {
    auto& model = ctx.model(options_.model);
    require_match(model);
    ctx.on<event::training_started>([this, &model] {
      if (!free_) freeze_all(model);
    });
    ctx.on<event::iteration_completed>(when_, [this] { set_free(); });
    ctx.on_end<event::training_completed>([this] { give_back(); });
  }

  [[nodiscard]] state::value state_dict() const { return state::dict{{"free", free_}}; }
  void load_state_dict(const state::value& state) { free_ = state.get<bool>("free"); }

 private:
  void require_match(const torch::nn::Module& model) const {
    std::vector<std::string> names;
    for (const auto& parameter : model.named_parameters()) {
      if (pattern_.matches(parameter.key())) return;
      names.push_back(parameter.key());
    }
    throw option_error("freeze_until", fmt::format("'{}', which matches no parameter", pattern_.str()),
                       fmt::format("a pattern for some of: {}", fmt::join(names, ", ")));
  }

  void freeze_all(torch::nn::Module& model) {
    for (auto& parameter : model.named_parameters())
      if (pattern_.matches(parameter.key()) && parameter.value().requires_grad()) {
        parameter.value().set_requires_grad(false);
        parameter.value().mutable_grad() = at::Tensor();
        frozen_.push_back(parameter.value());
      }
    if (!options_.rest_batch_norm) return;
    for (const auto& module : model.modules())
      if (is_batch_norm(*module) && module->is_training() && has_only_frozen(*module)) {
        module->eval();
        resting_.push_back(module);
      }
  }

  void set_free() {
    free_ = true;
    give_back();
  }

  void give_back() {
    for (const auto& parameter : frozen_) parameter.set_requires_grad(true);
    for (const auto& module : resting_) module->train();
    frozen_.clear();
    resting_.clear();
  }

  name_pattern pattern_;
  trigger when_;
  freeze_until_options options_;
  std::vector<at::Tensor> frozen_;
  std::vector<std::shared_ptr<torch::nn::Module>> resting_;
  bool free_ = false;
};

}  // namespace

extension freeze_until(name_pattern pattern, trigger t, freeze_until_options options) {
  return extension::made_by("freeze_until",
                            [pattern = std::move(pattern), t = std::move(t), options = std::move(options)] {
                              return std::make_shared<freezing>(pattern, t, options);
                            });
}

}  // namespace rondo

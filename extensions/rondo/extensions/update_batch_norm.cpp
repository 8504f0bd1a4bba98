#include "rondo/extensions/update_batch_norm.hpp"

#include <torch/nn/modules/batchnorm.h>

#include <functional>
#include <unordered_map>

namespace rondo::extensions {

struct fresh_statistics::memory {
  std::vector<std::pair<std::shared_ptr<torch::nn::Module>, bool>> modes;
  std::vector<std::function<void()>> momenta;

  template <class Norm>
  void begin_anew(const std::shared_ptr<torch::nn::Module>& module) {
    auto* const norm = module->as<Norm>();
    if (norm == nullptr || !norm->options.track_running_stats()) return;
    norm->reset_running_stats();
    momenta.push_back([module, norm, before = norm->options.momentum()] { norm->options.momentum(before); });
    norm->options.momentum(c10::nullopt);
  }
};

fresh_statistics::fresh_statistics(torch::nn::Module& module)
    : before_(std::make_unique<memory>()), device_(c10::kCPU) {
  const auto parameters = module.parameters();
  if (!parameters.empty()) device_ = parameters.front().device();
  for (const auto& each : module.modules()) {
    before_->modes.emplace_back(each, each->is_training());
    before_->begin_anew<torch::nn::BatchNorm1d>(each);
    before_->begin_anew<torch::nn::BatchNorm2d>(each);
    before_->begin_anew<torch::nn::BatchNorm3d>(each);
  }
  module.train();
}

fresh_statistics::~fresh_statistics() {
  // Backwards: a module that the model has under two names was changed twice.
  for (auto give_back = before_->momenta.rbegin(); give_back != before_->momenta.rend(); ++give_back) (*give_back)();
  // `train` is recursive, and `modules()` gives parents before their children.
  for (const auto& [module, mode] : before_->modes) module->train(mode);
}

bool fresh_statistics::empty() const noexcept { return before_->momenta.empty(); }

}  // namespace rondo::extensions

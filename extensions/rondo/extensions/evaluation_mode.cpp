#include "rondo/extensions/evaluation_mode.hpp"

#include <utility>

namespace rondo::extensions {

evaluation_mode::evaluation_mode(std::vector<torch::nn::Module*> modules) : modules_(std::move(modules)) {
  for (const auto* module : modules_) remember(*module);
  for (auto* module : modules_) module->eval();
}

evaluation_mode::~evaluation_mode() {
  for (auto* module : modules_) restore(*module);
}

void evaluation_mode::remember(const torch::nn::Module& module) {
  training_.emplace(&module, module.is_training());
  for (const auto& child : module.children()) remember(*child);
}

// `train` is recursive, so parents come first, and a module with two parents again after the second.
void evaluation_mode::restore(torch::nn::Module& module) const {
  module.train(training_.at(&module));
  for (const auto& child : module.children()) restore(*child);
}

}  // namespace rondo::extensions

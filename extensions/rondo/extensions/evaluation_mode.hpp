#pragma once

#include <torch/nn/module.h>

#include <unordered_map>
#include <vector>

namespace rondo::extensions {

/// While it lives, modules are in evaluation mode; then every submodule gets its own mode back, whatever has happened.
/// The modules must outlive it.
class evaluation_mode {
 public:
  explicit evaluation_mode(std::vector<torch::nn::Module*> modules);
  evaluation_mode(const evaluation_mode&) = delete;
  evaluation_mode& operator=(const evaluation_mode&) = delete;
  ~evaluation_mode();

 private:
  void remember(const torch::nn::Module& module);
  void restore(torch::nn::Module& module) const;

  std::vector<torch::nn::Module*> modules_;
  std::unordered_map<const torch::nn::Module*, bool> training_;
};

}  // namespace rondo::extensions

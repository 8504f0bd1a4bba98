#pragma once

#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>

#include <cstddef>
#include <memory>
#include <regex>
#include <string>
#include <string_view>
#include <vector>

#include "rondo/state/stateful.hpp"

namespace rondo {

/// A set of names such as "encoder.0.weight". As text: `*` stands for any characters, `?` for one, `|` is between
/// alternatives: "*.bias|norm*.weight". Or a regular expression that the whole name fits.
class name_pattern {
 public:
  name_pattern(std::string text);
  name_pattern(const char* text) : name_pattern(std::string(text)) {}
  name_pattern(std::regex expression);

  [[nodiscard]] bool matches(std::string_view name) const;
  /// As it was written.
  [[nodiscard]] const std::string& str() const noexcept { return text_; }

 private:
  std::string text_;
  std::shared_ptr<const std::regex> expression_;  // null for text
};

/// In the place of a pattern: all parameters that the other rules do not have.
struct other_parameters_t {};
inline constexpr other_parameters_t other_parameters;

/// The settings of some parameters.
class parameter_rule {
 public:
  parameter_rule(name_pattern pattern, const torch::optim::OptimizerOptions& options)
      : pattern_(std::move(pattern)), options_(options.clone()) {}
  parameter_rule(other_parameters_t, const torch::optim::OptimizerOptions& options)
      : pattern_(""), is_rest_(true), options_(options.clone()) {}

  [[nodiscard]] const name_pattern& pattern() const noexcept { return pattern_; }
  [[nodiscard]] bool is_rest() const noexcept { return is_rest_; }
  [[nodiscard]] const torch::optim::OptimizerOptions& options() const noexcept { return *options_; }

 private:
  name_pattern pattern_;
  bool is_rest_ = false;
  std::shared_ptr<const torch::optim::OptimizerOptions> options_;
};

/// The groups of an optimizer's parameters by their names in `model` (those of `named_parameters()`), one per rule:
///
///     using options = torch::optim::AdamWOptions;
///     torch::optim::AdamW optimizer(
///         param_groups(*model, {{"*.bias|norm*", options(1e-3).weight_decay(0)}, {other_parameters, options(1e-3)}}));
///
/// Parameters without gradients belong to them too. Throws `option_error`, which lists the names, when a rule matches
/// nothing, and when a parameter matches two rules or none. `other_parameters` may be left with nothing; then it gives
/// no group.
[[nodiscard]] std::vector<torch::optim::OptimizerParamGroup> param_groups(const torch::nn::Module& model,
                                                                          const std::vector<parameter_rule>& rules);

/// Takes the parameters whose names match out of training: they need no gradient, and have none any more (so that an
/// optimizer leaves them alone, weight decay and momentum included). Returns how many. Throws `option_error`, which
/// lists the names, when nothing matches. For freezing during a training see the extension `freeze_until`.
std::size_t freeze(torch::nn::Module& model, const name_pattern& pattern);
/// The opposite.
std::size_t unfreeze(torch::nn::Module& model, const name_pattern& pattern);

template <state::module_holder Holder>
std::size_t freeze(const Holder& model, const name_pattern& pattern) {
  return freeze(*model.ptr(), pattern);
}
template <state::module_holder Holder>
std::size_t unfreeze(const Holder& model, const name_pattern& pattern) {
  return unfreeze(*model.ptr(), pattern);
}

}  // namespace rondo

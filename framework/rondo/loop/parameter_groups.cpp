#include "rondo/loop/parameter_groups.hpp"

#include <fmt/format.h>

#include <optional>
#include <utility>

#include "rondo/error.hpp"

namespace rondo {

namespace {

bool matches_one(std::string_view pattern, std::string_view name) {
  std::size_t p = 0;
  std::size_t n = 0;
  std::optional<std::size_t> star;
  std::size_t resumed = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resumed = n;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == name[n])) {
      ++p;
      ++n;
    } else if (star) {
      p = *star + 1;
      n = ++resumed;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

std::string names_of(const torch::nn::Module& model) {
  std::string all;
  for (const auto& parameter : model.named_parameters()) all += (all.empty() ? "" : ", ") + parameter.key();
  return all;
}

[[noreturn]] void throw_unmatched(const torch::nn::Module& model, const name_pattern& pattern) {
  throw option_error("pattern", fmt::format("'{}', which no parameter matches", pattern.str()),
                     "a pattern of these: " + names_of(model));
}

template <class F>
std::size_t for_each_match(torch::nn::Module& model, const name_pattern& pattern, F change) {
  std::size_t count = 0;
  for (auto& parameter : model.named_parameters()) {
    if (!pattern.matches(parameter.key())) continue;
    change(parameter.value());
    ++count;
  }
  if (count == 0) throw_unmatched(model, pattern);
  return count;
}

/// The only rule for `name`; that for the rest if there is none.
std::size_t rule_for(const std::string& name, const std::vector<parameter_rule>& rules,
                     const torch::nn::Module& model) {
  std::optional<std::size_t> found;
  std::optional<std::size_t> rest;
  for (std::size_t i = 0; i < rules.size(); ++i) {
    if (rules[i].is_rest()) rest = i;
    if (rules[i].is_rest() || !rules[i].pattern().matches(name)) continue;
    if (found)
      throw option_error("param_groups",
                         fmt::format("'{}', which both '{}' and '{}' match", name, rules[*found].pattern().str(),
                                     rules[i].pattern().str()),
                         "one rule for each parameter; there are: " + names_of(model));
    found = i;
  }
  if (found) return *found;
  if (rest) return *rest;
  throw option_error(
      "param_groups", fmt::format("no rule for '{}'", name),
      "one rule for each parameter (the last may be for other_parameters); there are: " + names_of(model));
}

}  // namespace

name_pattern::name_pattern(std::string text) : text_(std::move(text)) {}

name_pattern::name_pattern(std::regex expression)
    : text_("a regular expression"), expression_(std::make_shared<const std::regex>(std::move(expression))) {}

bool name_pattern::matches(std::string_view name) const {
  if (expression_) return std::regex_match(name.begin(), name.end(), *expression_);
  std::string_view rest = text_;
  for (;;) {
    const auto end = rest.find('|');
    if (matches_one(rest.substr(0, end), name)) return true;
    if (end == std::string_view::npos) return false;
    rest.remove_prefix(end + 1);
  }
}

std::vector<torch::optim::OptimizerParamGroup> param_groups(const torch::nn::Module& model,
                                                            const std::vector<parameter_rule>& rules) {
  std::vector<std::vector<at::Tensor>> members(rules.size());
  std::size_t rests = 0;
  for (const auto& rule : rules) rests += rule.is_rest() ? 1 : 0;
  if (rests > 1) throw option_error("param_groups", "two rules for other_parameters", "one at most");
  for (const auto& parameter : model.named_parameters())
    members[rule_for(parameter.key(), rules, model)].push_back(parameter.value());
  std::vector<torch::optim::OptimizerParamGroup> groups;
  for (std::size_t i = 0; i < rules.size(); ++i) {
    if (members[i].empty() && rules[i].is_rest()) continue;
    if (members[i].empty()) throw_unmatched(model, rules[i].pattern());
    groups.emplace_back(std::move(members[i]), rules[i].options().clone());
  }
  return groups;
}

std::size_t freeze(torch::nn::Module& model, const name_pattern& pattern) {
  return for_each_match(model, pattern, [](at::Tensor& parameter) {
    parameter.requires_grad_(false);
    parameter.mutable_grad() = at::Tensor();
  });
}

std::size_t unfreeze(torch::nn::Module& model, const name_pattern& pattern) {
  return for_each_match(model, pattern, [](at::Tensor& parameter) { parameter.requires_grad_(true); });
}

}  // namespace rondo

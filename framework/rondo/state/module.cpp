#include "rondo/state/module.hpp"

#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

namespace rondo::state {

namespace {

constexpr std::string_view wrapper_prefix = "module.";

void collect(const torch::nn::Module& module, const std::string& prefix, dict& into) {
  for (const auto& item : module.named_parameters(/*recurse=*/false))
    if (item.value().defined()) into.insert_or_assign(prefix + item.key(), item.value().detach());
  for (const auto& item : module.named_buffers(/*recurse=*/false))
    if (item.value().defined()) into.insert_or_assign(prefix + item.key(), item.value().detach());
  for (const auto& item : module.named_children())
    if (item.value() != nullptr) collect(*item.value(), prefix + item.key() + ".", into);
}

bool is_wrapped(const dict::value_type& item) {
  return !item.first.is_integer() && item.first.text().starts_with(wrapper_prefix);
}

/// The same values under names without the wrapper's prefix.
dict unwrapped(const dict& names) {
  dict result;
  result.reserve(names.size());
  for (const auto& [name, item] : names) result.insert_or_assign(name.text().substr(wrapper_prefix.size()), item);
  return result;
}

bool all_wrapped(const dict& names) { return !names.empty() && std::ranges::all_of(names, is_wrapped); }
bool none_wrapped(const dict& names) { return std::ranges::none_of(names, is_wrapped); }

bool overlaps_itself(const at::Tensor& t) {
  if (t.numel() == 0) return false;
  for (std::int64_t d = 0; d < t.dim(); ++d)
    if (t.size(d) > 1 && t.stride(d) == 0) return true;
  return false;
}

/// What keeps `source` from being copied into `target`; empty when nothing does.
std::string mismatch(const at::Tensor& target, const value& source, load_policy policy) {
  const at::Tensor* given = source.get_if<at::Tensor>();
  if (given == nullptr) return fmt::format("expected Tensor, found {}", source.type_name());
  if (!given->defined()) return "the stored tensor is undefined";
  if (target.layout() != at::kStrided) return "the module's tensor is not dense and cannot be loaded in place";
  if (given->layout() != at::kStrided) return "the stored tensor is not dense";
  if (overlaps_itself(target)) return "elements of the module's tensor share memory (an expanded tensor)";
  if (target.sizes() != given->sizes())
    return fmt::format("expected shape [{}], found [{}]", fmt::join(target.sizes(), ", "),
                       fmt::join(given->sizes(), ", "));
  if (!policy.convert_dtype && target.scalar_type() != given->scalar_type())
    return fmt::format("expected dtype {}, found {}", c10::toString(target.scalar_type()),
                       c10::toString(given->scalar_type()));
  return {};
}

}  // namespace

dict module_state(const torch::nn::Module& module) {
  dict names;
  collect(module, "", names);
  return names;
}

std::function<void()> prepare_module_load(torch::nn::Module& module, const value& state, load_policy policy) {
  dict targets = module_state(module);
  dict sources = state.as<dict>();
  if (all_wrapped(sources) && none_wrapped(targets))
    sources = unwrapped(sources);
  else if (all_wrapped(targets) && none_wrapped(sources))
    targets = unwrapped(targets);

  std::vector<std::string> problems;
  std::string first_name;
  const auto report = [&](const std::string& name, const std::string& problem) {
    if (problems.empty()) first_name = name;
    problems.push_back(fmt::format("{}: {}", name, problem));
  };

  std::vector<std::pair<at::Tensor, at::Tensor>> copies;
  copies.reserve(targets.size());
  for (const auto& [name, target] : targets) {
    const value* source = sources.find(name);
    if (source == nullptr) {
      if (!policy.allow_missing) report(name.str(), "is missing in the state");
      continue;
    }
    const auto& tensor = target.as<at::Tensor>();
    if (auto problem = mismatch(tensor, *source, policy); !problem.empty())
      report(name.str(), problem);
    else
      copies.emplace_back(tensor, source->as<at::Tensor>());
  }
  if (!policy.allow_unexpected)
    for (const auto& [name, item] : sources)
      if (!targets.contains(name)) report(name.str(), "is unexpected, the module has no such name");
  if (!problems.empty())
    throw state_error(problems.size() == 1 ? first_name : "",
                      fmt::format("the state does not fit the module ({} problem{}; nothing was changed): {}",
                                  problems.size(), problems.size() == 1 ? "" : "s", fmt::join(problems, "; ")));

  return [copies = std::move(copies)] {
    const c10::AutoGradMode no_grad(false);
    for (const auto& [target, source] : copies) target.copy_(source);
  };
}

void load_module_state(torch::nn::Module& module, const value& state, load_policy policy) {
  prepare_module_load(module, state, policy)();
}

}  // namespace rondo::state

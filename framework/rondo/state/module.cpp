#include "rondo/state/module.hpp"

#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <unordered_map>
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

bool is_wrapped(std::string_view name) { return name.starts_with(wrapper_prefix); }

bool all_wrapped(const dict& names) {
  return !names.empty() && std::ranges::all_of(names, [](const auto& item) { return is_wrapped(item.first.str()); });
}
bool none_wrapped(const dict& names) {
  return std::ranges::none_of(names, [](const auto& item) { return is_wrapped(item.first.str()); });
}

/// The same values under names without the wrapper's prefix.
dict unwrapped(const dict& names) {
  dict result;
  result.reserve(names.size());
  for (const auto& [name, item] : names) result.insert_or_assign(name.text().substr(wrapper_prefix.size()), item);
  return result;
}

/// A stored value under the name that it has here.
struct source {
  std::string stored;
  std::string name;
  bool renamed;
  const value* item;
};

std::vector<source> sources_of(const dict& stored, loading& act) {
  const bool wrapped = all_wrapped(stored);
  std::vector<source> all;
  all.reserve(stored.size());
  for (const auto& [key, item] : stored) {
    std::string name = key.str();
    auto renamed = act.renamed(name);
    if (!renamed && wrapped) renamed = act.renamed(std::string_view(name).substr(wrapper_prefix.size()));
    const bool is_renamed = renamed.has_value();
    all.push_back({name, is_renamed ? std::move(*renamed) : name, is_renamed, &item});
  }
  return all;
}

/// Passes over a wrapper's prefix that only one side has.
void pass_over_wrapper(std::vector<source>& sources, dict& targets) {
  const bool stored_wrapped =
      std::ranges::all_of(sources, [](const source& s) { return s.renamed || is_wrapped(s.name); });
  const bool stored_plain =
      std::ranges::all_of(sources, [](const source& s) { return s.renamed || !is_wrapped(s.name); });
  if (stored_plain && all_wrapped(targets))
    targets = unwrapped(targets);
  else if (!stored_wrapped || !none_wrapped(targets))
    return;
  for (auto& s : sources)
    if (is_wrapped(s.name)) s.name.erase(0, wrapper_prefix.size());
}

/// The place of each source by its present name.
std::unordered_map<std::string_view, std::size_t> places_of(const std::vector<source>& sources, loading& act) {
  std::unordered_map<std::string_view, std::size_t> places;
  places.reserve(sources.size());
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const auto [at, is_new] = places.emplace(sources[i].name, i);
    if (!is_new)
      act.ambiguous(sources[i].name, fmt::format("is meant by both '{}' and '{}' in the state",
                                                 sources[at->second].stored, sources[i].stored));
  }
  return places;
}

std::string described(const at::Tensor& t) {
  if (!t.defined()) return "an undefined tensor";
  return fmt::format("shape [{}] of {}", fmt::join(t.sizes(), ", "), c10::toString(t.scalar_type()));
}

std::string described(const value& v) {
  const at::Tensor* t = v.get_if<at::Tensor>();
  return t != nullptr ? described(*t) : v.type_name();
}

std::string as_stored(const source& s) { return s.renamed ? fmt::format(" (stored as '{}')", s.stored) : ""; }

bool overlaps_itself(const at::Tensor& t) {
  if (t.numel() == 0) return false;
  for (std::int64_t d = 0; d < t.dim(); ++d)
    if (t.size(d) > 1 && t.stride(d) == 0) return true;
  return false;
}

/// What keeps `source` from being copied into `target`; empty when nothing does.
std::string difference(const at::Tensor& target, const value& source, bool convert_dtype) {
  const at::Tensor* given = source.get_if<at::Tensor>();
  if (given == nullptr) return fmt::format("expected Tensor, found {}", source.type_name());
  if (!given->defined()) return "the stored tensor is undefined";
  if (target.layout() != at::kStrided) return "the module's tensor is not dense and cannot be loaded in place";
  if (given->layout() != at::kStrided) return "the stored tensor is not dense";
  if (overlaps_itself(target)) return "elements of the module's tensor share memory (an expanded tensor)";
  const bool other_dtype = !convert_dtype && target.scalar_type() != given->scalar_type();
  if (target.sizes() == given->sizes() && !other_dtype) return {};
  return fmt::format("expected {}, found {}", described(target), described(*given));
}

}  // namespace

dict module_state(const torch::nn::Module& module) {
  dict names;
  collect(module, "", names);
  return names;
}

std::function<void()> prepare_module_load(torch::nn::Module& module, const value& state, loading& act) {
  dict targets = module_state(module);
  static const dict nothing;
  const dict* stored = state.get_if<dict>();
  if (stored == nullptr) act.mismatched("", fmt::format("expected dict, found {}", state.type_name()));
  std::vector<source> sources = sources_of(stored != nullptr ? *stored : nothing, act);
  pass_over_wrapper(sources, targets);
  const auto places = places_of(sources, act);

  std::vector<std::pair<at::Tensor, at::Tensor>> copies;
  copies.reserve(targets.size());
  std::vector<bool> used(sources.size());
  std::size_t place = 0;
  for (const auto& [key, item] : targets) {
    const std::string name = key.str();
    const auto& target = item.as<at::Tensor>();
    const auto found = places.find(name);
    const bool is_stored = found != places.end();
    if (!is_stored || found->second != place) act.displace(target);
    ++place;
    if (!is_stored) {
      if (stored != nullptr) act.missing(name, "expected " + described(target));
      continue;
    }
    const source& from = sources[found->second];
    used[found->second] = true;
    if (auto problem = difference(target, *from.item, act.options().convert_dtype); !problem.empty()) {
      act.displace(target);
      act.mismatched(name, problem + as_stored(from));
    } else {
      copies.emplace_back(target, from.item->as<at::Tensor>());
    }
  }
  for (std::size_t i = 0; i < sources.size(); ++i)
    if (!used[i] && places.at(sources[i].name) == i)
      act.unexpected(sources[i].name, "found " + described(*sources[i].item) + as_stored(sources[i]));
  act.count(copies.size(), targets.size());

  return [copies = std::move(copies)] {
    const c10::AutoGradMode no_grad(false);
    for (const auto& [target, source] : copies) target.copy_(source);
  };
}

void load_module_state(torch::nn::Module& module, const value& state, const load_options& options) {
  loading act(options);
  const auto apply = prepare_module_load(module, state, act);
  act.require_fit();
  apply();
  act.report();
}

}  // namespace rondo::state

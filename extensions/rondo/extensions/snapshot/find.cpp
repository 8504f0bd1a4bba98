#include "rondo/extensions/snapshot/find.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>
#include <vector>

#include "rondo/checkpoint/catalog.hpp"
#include "rondo/checkpoint/sharded.hpp"
#include "rondo/error.hpp"
#include "rondo/extensions/snapshot/sharding.hpp"
#include "rondo/log.hpp"
#include "rondo/state/module.hpp"
#include "rondo/state/weights.hpp"

namespace rondo {

namespace {

using checkpoint::cataloged_snapshot;

std::vector<cataloged_snapshot> newest_first(const std::filesystem::path& directory, const std::string& made_by) {
  auto all = checkpoint::catalog(directory).snapshots();
  if (!made_by.empty()) std::erase_if(all, [&](const cataloged_snapshot& s) { return s.info.made_by != made_by; });
  return all;
}

std::optional<std::filesystem::path> first_sound(const std::vector<cataloged_snapshot>& all) {
  for (const auto& snapshot : all) {
    const auto problem = checkpoint::catalog::problem_of(snapshot);
    if (!problem) return snapshot.path;
    log::warn(fmt::format("'{}' is passed over: {}", snapshot.path.string(), *problem));
  }
  return std::nullopt;
}

/// Throws unless one has a value of `key`.
void require_known(const std::vector<cataloged_snapshot>& all, const std::string& key) {
  std::set<std::string> known;
  for (const auto& snapshot : all)
    for (const auto& [name, value] : snapshot.info.metrics) known.insert(name);
  if (all.empty() || known.contains(key)) return;
  throw option_error("key", fmt::format("'{}', of which no snapshot has a value", key),
                     known.empty() ? "snapshots that were taken with retain::best(…), which keeps its values"
                                   : fmt::format("one of '{}'", fmt::join(known, "', '")));
}

}  // namespace

std::optional<std::filesystem::path> latest_snapshot(const std::filesystem::path& directory,
                                                     const std::string& made_by) {
  return first_sound(newest_first(directory, made_by));
}

std::optional<std::filesystem::path> best_snapshot(const std::filesystem::path& directory, const std::string& key,
                                                   better direction, const std::string& made_by) {
  auto all = newest_first(directory, made_by);
  require_known(all, key);
  std::erase_if(all, [&](const cataloged_snapshot& s) { return !s.info.metrics.contains(key); });
  const bool higher = higher_is_better(direction, key, "best_snapshot.direction");
  const auto is_better = [&](const cataloged_snapshot& a, const cataloged_snapshot& b) {
    const double one = a.info.metrics.at(key);
    const double other = b.info.metrics.at(key);
    return higher ? one > other : one < other;
  };
  std::ranges::stable_sort(all, is_better);
  return first_sound(all);
}

void load_model(torch::nn::Module& module, const std::filesystem::path& snapshot, const std::string& name,
                const state::load_options& options) {
  if (!checkpoint::is_sharded(snapshot)) return state::load_weights(module, snapshot, options, "models." + name);
  const auto whole = extensions::read_sharded(snapshot, nullptr);
  state::loading act(options, fmt::format("the model '{}' in '{}'", name, snapshot.string()));
  const auto apply = state::prepare_module_load(module, whole.at("models").at(name), act);
  act.require_fit();
  apply();
  act.report();
}

}  // namespace rondo

#include "rondo/extensions/snapshot/resuming.hpp"

#include <fmt/format.h>

#include <optional>

#include "rondo/extensions/snapshot/snapshot.hpp"
#include "rondo/extensions/snapshot/snapshot_directory.hpp"
#include "rondo/log.hpp"

namespace rondo::extensions {

namespace {

snapshot_error all_rejected(const std::filesystem::path& directory, const std::vector<rejected_snapshot>& rejected) {
  std::string reasons;
  for (const auto& bad : rejected) reasons += fmt::format("\n  {}: {}", bad.path.string(), bad.reason);
  return snapshot_error(
      fmt::format("none of the {} snapshots in '{}' can be resumed from; move them away to start afresh:{}",
                  rejected.size(), directory.string(), reasons));
}

/// For a state that does not fit at `key`, or at several places.
std::string_view way_out(const std::string& key) {
  if (key.starts_with("extensions.") || key.starts_with("rondo.stop_trigger"))
    return "Without load.strict_memory, what remembers something else begins anew";
  if (key.starts_with("rondo.gradients")) return "Go on with the options that it was made with";
  if (key.starts_with("state_objects."))
    return "Give the loop the same objects under the same names (loop.remember), or load what fits with "
           "load.on_mismatch = state::mismatch::warn";
  return "Train with the model and optimizer that it was made with, name what was renamed in load.rename, load what "
         "fits with load.on_mismatch = state::mismatch::warn, or use another output directory";
}

}  // namespace

task<> resuming::from_newest(snapshot_directory& directory) {
  std::vector<rejected_snapshot> rejected;
  const auto files = co_await candidates(directory, rejected);
  std::optional<state::value> state;
  const std::filesystem::path* chosen = nullptr;
  for (const auto& file : files) {
    std::string why;
    state = co_await try_to_read(file, why);
    if (!state) {
      rejected.push_back({file, why});
      continue;
    }
    chosen = &file;
    break;
  }
  co_await tell_rejected(rejected);
  if (chosen == nullptr) {
    if (resumed_already()) co_return;
    if (!rejected.empty()) throw all_rejected(ctx_.out(), rejected);
    if (ctx_.is_saver()) log::info(fmt::format("no snapshot in '{}': a fresh start", ctx_.out().string()));
    co_return;
  }
  co_await load(*chosen, *state);
  if (!ctx_.is_saver()) co_return;
  // An object has no iteration.
  const auto place = settings_.whole_loop ? fmt::format(" (iteration {})", ctx_.iteration()) : std::string();
  log::info(fmt::format("resuming from '{}'{}", chosen->string(), place));
}

/// By another extension of the loop, so that only what is newer counts.
bool resuming::resumed_already() const { return settings_.whole_loop && ctx_.resumed_from().has_value(); }

/// Newest first.
task<std::vector<std::filesystem::path>> resuming::candidates(snapshot_directory& directory,
                                                              std::vector<rejected_snapshot>& rejected) const {
  std::vector<std::filesystem::path> files;
  if (!settings_.ranks || settings_.ranks->saves())
    for (const auto& record : directory.list(&rejected))
      if (!resumed_already() || record.iteration > ctx_.iteration()) files.push_back(record.path);
  if (!settings_.ranks) co_return files;
  std::vector<std::string> names;
  for (const auto& file : files) names.push_back(file.filename().string());
  names = co_await settings_.ranks->share(names);
  files.clear();
  for (const auto& name : names) files.push_back(ctx_.out() / name);
  std::vector<std::string> bad;
  for (const auto& one : rejected) {
    bad.push_back(one.path.filename().string());
    bad.push_back(one.reason);
  }
  bad = co_await settings_.ranks->share(bad);
  rejected.clear();
  for (std::size_t i = 0; i + 1 < bad.size(); i += 2) rejected.push_back({ctx_.out() / bad[i], bad[i + 1]});
  co_return files;
}

/// Nothing, and the reason in `why`, if it is not sound, for this or for another rank.
task<std::optional<state::value>> resuming::try_to_read(std::filesystem::path file, std::string& why) const {
  std::optional<state::value> state;
  try {
    state = sound_state(file);
  } catch (const std::exception& e) {
    if (proves_nothing(e)) {
      log::error(
          fmt::format("'{}' could not be read, which does not mean that it is damaged, and going on from an older "
                      "snapshot would lose what is in it; if it is lost, move it away",
                      file.string()));
      throw;
    }
    why = e.what();
  } catch (...) {
    why = "an unknown exception";
  }
  if (settings_.ranks) why = co_await settings_.ranks->objections(why);
  if (!why.empty()) state.reset();
  co_return state;
}

task<> resuming::from_file(std::filesystem::path file) {
  if (settings_.ranks) {
    std::string why;
    const auto state = co_await try_to_read(file, why);
    if (!state) throw snapshot_error(fmt::format("'{}' cannot be resumed from: {}", file.string(), why));
    co_await load(file, *state);
  } else {
    const auto state = sound_state(file);
    co_await load(file, state);
  }
  if (ctx_.is_saver()) log::info(fmt::format("resuming from '{}', as asked for", file.string()));
}

state::value resuming::sound_state(const std::filesystem::path& file) const {
  auto state = settings_.read(file);
  if (settings_.validate) settings_.validate(file, state);
  return state;
}

task<> resuming::load(std::filesystem::path file, const state::value& state) {
  auto found = ctx_.emit<event::state_found>(file, state);
  if (found) co_await std::move(*found);
  try {
    settings_.load(state);
  } catch (const state_error& e) {
    throw snapshot_error(fmt::format("the snapshot '{}' is sound, but does not fit this training: {}. {}",
                                     file.string(), e.what(), way_out(e.key())));
  }
  if (settings_.whole_loop) ctx_.set_resumed_from(file);
}

task<> resuming::tell_rejected(const std::vector<rejected_snapshot>& rejected) {
  for (const auto& bad : rejected) {
    if (ctx_.is_saver())
      log::warn(fmt::format("passing over the damaged snapshot '{}': {}", bad.path.string(), bad.reason));
    auto rest = ctx_.emit<event::snapshot_rejected>(bad.path, bad.reason);
    if (rest) co_await std::move(*rest);
  }
}

}  // namespace rondo::extensions

#include "rondo/extensions/snapshot/resuming.hpp"

#include <fmt/format.h>

#include <optional>

#include "rondo/extensions/snapshot/snapshot.hpp"
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

}  // namespace

task<> resuming::from_newest(snapshot_directory& directory) {
  std::vector<rejected_snapshot> rejected;
  const auto candidates = directory.list(&rejected);
  std::optional<state::value> state;
  const snapshot_record* chosen = nullptr;
  for (const auto& candidate : candidates) {
    try {
      state = sound_state(candidate.path);
      chosen = &candidate;
      break;
    } catch (const std::exception& e) {
      rejected.push_back({candidate.path, e.what()});
    } catch (...) {
      rejected.push_back({candidate.path, "an unknown exception"});
    }
  }
  co_await tell_rejected(rejected);
  if (chosen == nullptr) {
    if (!rejected.empty()) throw all_rejected(ctx_.out(), rejected);
    log::info(fmt::format("no snapshot in '{}': a fresh start", ctx_.out().string()));
    co_return;
  }
  load(chosen->path, *state);
  log::info(fmt::format("resuming from '{}' (iteration {})", chosen->path.string(), chosen->iteration));
}

void resuming::from_file(const std::filesystem::path& file) {
  load(file, sound_state(file));
  log::info(fmt::format("resuming from '{}', as asked for", file.string()));
}

state::value resuming::sound_state(const std::filesystem::path& file) const {
  auto state = settings_.read(file);
  if (settings_.validate) settings_.validate(file, state);
  return state;
}

void resuming::load(const std::filesystem::path& file, const state::value& state) {
  try {
    settings_.load(state);
  } catch (const state_error& e) {
    throw snapshot_error(fmt::format(
        "the snapshot '{}' is sound, but does not fit this training: {}. Train with the model and optimizer "
        "that it was made with, or use another output directory",
        file.string(), e.what()));
  }
  if (settings_.whole_loop) ctx_.set_resumed_from(file);
}

task<> resuming::tell_rejected(const std::vector<rejected_snapshot>& rejected) {
  for (const auto& bad : rejected) {
    log::warn(fmt::format("passing over the damaged snapshot '{}': {}", bad.path.string(), bad.reason));
    auto rest = ctx_.emit<event::snapshot_rejected>(bad.path, bad.reason);
    if (rest) co_await std::move(*rest);
  }
}

}  // namespace rondo::extensions

#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "rondo/extensions/snapshot/ranks.hpp"
#include "rondo/extensions/snapshot/snapshot_directory.hpp"
#include "rondo/loop/context.hpp"
#include "rondo/state/value.hpp"

namespace rondo::extensions {

/// Brings back an earlier state when a run begins.
class resuming {
 public:
  struct settings {
    /// Reads and verifies a file. Throws for one that is not sound.
    std::function<state::value(const std::filesystem::path&)> read;
    /// Throws for a state that the user does not want. May be empty.
    std::function<void(const std::filesystem::path&, const state::value&)> validate;
    /// Gives a state to whom it belongs. Throws `state_error` if it does not fit.
    std::function<void(const state::value&)> load;
    bool whole_loop = true;
    /// Those who resume together; null for a process alone.
    std::shared_ptr<snapshot_ranks> ranks = nullptr;
  };

  resuming(context& ctx, settings s) : ctx_(ctx), settings_(std::move(s)) {}

  /// From the newest sound snapshot of `directory`. Every one that is passed over is a warning and an event.
  /// No snapshot is a fresh start; if there are some and none is sound, `snapshot_error` lists why. Ranks take the
  /// newest one in the saver's directory that is sound for all of them. Where another extension has resumed the loop
  /// already, only a newer one is loaded.
  [[nodiscard]] task<> from_newest(snapshot_directory& directory);

  /// From this file; what is wrong with it is thrown, and with several ranks `snapshot_error` for what is wrong with it
  /// on any of them.
  [[nodiscard]] task<> from_file(std::filesystem::path file);

 private:
  [[nodiscard]] task<std::vector<std::filesystem::path>> candidates(snapshot_directory& directory,
                                                                    std::vector<rejected_snapshot>& rejected) const;
  [[nodiscard]] task<std::optional<state::value>> try_to_read(std::filesystem::path file, std::string& why) const;
  [[nodiscard]] bool resumed_already() const;
  state::value sound_state(const std::filesystem::path& file) const;
  [[nodiscard]] task<> load(std::filesystem::path file, const state::value& state);
  task<> tell_rejected(const std::vector<rejected_snapshot>& rejected);

  context& ctx_;
  settings settings_;
};

}  // namespace rondo::extensions

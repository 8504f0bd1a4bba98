#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

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
  };

  resuming(context& ctx, settings s) : ctx_(ctx), settings_(std::move(s)) {}

  /// From the newest sound snapshot of `directory`. Every one that is passed over is a warning and an event.
  /// No snapshot is a fresh start; if there are some and none is sound, `snapshot_error` lists why.
  [[nodiscard]] task<> from_newest(snapshot_directory& directory);

  /// From this file; what is wrong with it is thrown.
  void from_file(const std::filesystem::path& file);

 private:
  state::value sound_state(const std::filesystem::path& file) const;
  void load(const std::filesystem::path& file, const state::value& state);
  task<> tell_rejected(const std::vector<rejected_snapshot>& rejected);

  context& ctx_;
  settings settings_;
};

}  // namespace rondo::extensions

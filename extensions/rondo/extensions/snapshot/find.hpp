#pragma once

#include <torch/nn/module.h>

#include <filesystem>
#include <optional>
#include <string>

#include "rondo/event/better.hpp"
#include "rondo/state/load_options.hpp"
#include "rondo/state/stateful.hpp"

/// What a training has left, for programs that go on with it: evaluation, inference, another training.
namespace rondo {

/// The newest snapshot in `directory`, by the iteration that is recorded inside, that is sound: every byte is read and
/// verified. Nothing where there is none. Ordinary and sharded ones; those that were taken on an error do not count.
/// With `made_by`, only those of the extension of this name. Passes over damaged ones with a warning. Throws `io_error`
/// when the directory cannot be read. Blocks; any thread.
[[nodiscard]] std::optional<std::filesystem::path> latest_snapshot(const std::filesystem::path& directory,
                                                                   const std::string& made_by = {});

/// The sound one with the best value of the observation `key`; of equal ones the newest. Snapshots hold the values that
/// their `retain` asks for: `snapshot({.retain = retain::best(3, "validation/accuracy")})`. Throws `option_error` that
/// lists the keys that there are when no snapshot has a value of `key`, otherwise as above.
[[nodiscard]] std::optional<std::filesystem::path> best_snapshot(const std::filesystem::path& directory,
                                                                 const std::string& key,
                                                                 better direction = better::automatic,
                                                                 const std::string& made_by = {});

/// Loads a model, and nothing else, from a snapshot of a loop, an ordinary or a sharded one. `name` is the model's in
/// the loop. Names, shapes and dtypes must fit, or `options` say what does not have to (`state::load_module_state`).
/// Throws `format_error` or `io_error` for a snapshot that is not sound, `state_error` naming it for a model that is
/// not there or does not fit; nothing was changed then.
void load_model(torch::nn::Module& module, const std::filesystem::path& snapshot, const std::string& name = "main",
                const state::load_options& options = {});
template <state::module_holder Holder>
void load_model(const Holder& module, const std::filesystem::path& snapshot, const std::string& name = "main",
                const state::load_options& options = {}) {
  load_model(*module.ptr(), snapshot, name, options);
}

}  // namespace rondo

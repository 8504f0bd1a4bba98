#pragma once

#include <torch/nn/module.h>

#include <filesystem>
#include <string_view>

#include "rondo/state/load_options.hpp"

namespace rondo::state {

/// Loads a module from a file: one that Python wrote with `torch.save(model.state_dict(), file)`, or a snapshot of a
/// module or of a loop. The file is verified, then `load_module_state` takes what it holds, with its rules for the
/// prefix "module." and its `options`.
///
/// `at` is the dotted path of the module's state in the file: "" for a file that is one, "state_dict" or the like for
/// files that hold more, "models.main" for the model of a loop's snapshot.
///
/// Throws `format_error` or `io_error` for a file that is not sound, `state_error` naming the file for a state that is
/// not there or does not fit; the module was not changed then. To be called where nobody else uses the parameters.
void load_weights(torch::nn::Module& module, const std::filesystem::path& file, const load_options& options = {},
                  std::string_view at = "");

}  // namespace rondo::state

#pragma once

#include <torch/nn/module.h>

#include <functional>

#include "rondo/state/value.hpp"

namespace rondo::state {

/// What may differ between a stored state and the module that loads it. By default nothing may.
struct load_policy {
  /// Names of the module that the state lacks keep their present values.
  bool allow_missing = false;
  /// Names of the state that the module lacks are passed over.
  bool allow_unexpected = false;
  /// Values are converted to the module's dtype.
  bool convert_dtype = false;
};

/// Nothing may differ.
inline constexpr load_policy strict{};

/// Parameters and buffers of `module` and its submodules under the names and in the order of Python's `state_dict()`:
/// each module's parameters, then its buffers, then its children in the order of registration. Undefined entries (a
/// missing bias, for example) are left out; one that is registered twice appears twice. LibTorch knows no buffers that
/// are not persistent, so every buffer is there. The tensors are detached aliases of the live ones: nothing is copied,
/// and later training steps are seen through them.
[[nodiscard]] dict module_state(const torch::nn::Module& module);

/// Copies `state` (as `module_state` or Python's `state_dict()` gives it) into the parameters and buffers of `module`,
/// in place, so that optimizers and aliases stay valid; devices may differ. If all names on one side, and none on the
/// other, begin with "module." (as those of Python's DistributedDataParallel do), that prefix is passed over.
///
/// Everything is checked first: throws one `state_error` that lists every missing and unexpected name, every value that
/// is no tensor and every wrong shape or dtype, and then has changed nothing. To be called where nobody else uses the
/// parameters.
void load_module_state(torch::nn::Module& module, const value& state, load_policy policy = strict);

/// The checks of `load_module_state` now, the copying when the result is called, which does not throw for reasons of
/// the state: for loading several objects together or not at all. The module must live until then.
[[nodiscard]] std::function<void()> prepare_module_load(torch::nn::Module& module, const value& state,
                                                        load_policy policy = strict);

}  // namespace rondo::state

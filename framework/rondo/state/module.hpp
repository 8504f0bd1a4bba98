#pragma once

#include <torch/nn/module.h>

#include <functional>

#include "rondo/state/loading.hpp"
#include "rondo/state/value.hpp"

namespace rondo::state {

/// Parameters and buffers of `module` and its submodules under the names and in the order of Python's `state_dict()`:
/// each module's parameters, then its buffers, then its children in the order of registration. Undefined entries (a
/// missing bias, for example) are left out; one that is registered twice appears twice. LibTorch knows no buffers that
/// are not persistent, so every buffer is there. The tensors are detached aliases of the live ones: nothing is copied,
/// and later training steps are seen through them.
[[nodiscard]] dict module_state(const torch::nn::Module& module);

/// Copies `state` (as `module_state` or Python's `state_dict()` gives it) into the parameters and buffers of `module`,
/// in place, so that optimizers and aliases stay valid; devices may differ. If all names on one side, and none on the
/// other, begin with "module." (as those of Python's DistributedDataParallel do), that prefix is passed over;
/// `options.rename` may give stored names with or without it.
///
/// Everything is compared first. Strict options throw one `state_error` that lists every missing and unexpected name,
/// every value that is no tensor and every wrong shape or dtype, and then nothing was changed. Otherwise what fits is
/// copied. To be called where nobody else uses the parameters.
void load_module_state(torch::nn::Module& module, const value& state, const load_options& options = {});

/// The comparison of `load_module_state` now, with what does not fit told to `act`; the copying when the result is
/// called, which does not throw for reasons of the state: for loading several objects together or not at all. The
/// module must live until then.
[[nodiscard]] std::function<void()> prepare_module_load(torch::nn::Module& module, const value& state, loading& act);

}  // namespace rondo::state

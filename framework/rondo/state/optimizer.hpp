#pragma once

#include <torch/optim/optimizer.h>

#include <functional>

#include "rondo/state/loading.hpp"
#include "rondo/state/value.hpp"

namespace rondo::state {

/// The state of SGD, Adam, AdamW, RMSprop, Adagrad or LBFGS (or of a class derived from one of them, as its base) in
/// the layout of Python's `optimizer.state_dict()`:
///
///     {"state": {0: {"step": tensor(3.), "exp_avg": …}, …}, "param_groups": [{"lr": 0.1, …, "params": [0, 1]}, …]}
///
/// The number of a parameter is its position over all groups; parameters without state have no entry. Python's
/// optimizers of the same name and settings continue from it with the same bits (LBFGS with a line search
/// excepted: the two compute that differently). The tensors alias the optimizer's,
/// apart from "step", which is a 0-dim float32 tensor as in Python (float64 above 2^24, where float32 is not exact).
/// Throws `state_error` for other optimizer types: they say themselves what they remember (see `stateful`).
[[nodiscard]] dict optimizer_state(const torch::optim::Optimizer& optimizer);

/// Restores what `optimizer_state` or Python gave: the options of every group (lr included) and the state of every
/// parameter. Tensors are copied and take the parameter's device and, for floating-point parameters, its dtype.
/// Python's further group settings (`foreach`, `fused`, `capturable`, `differentiable`, `initial_lr`, …) mean nothing
/// here and are passed over; `maximize=True`, which LibTorch lacks, is refused.
///
/// Everything is checked first: throws `state_error` with the path of the first thing that does not fit (another kind
/// of optimizer, another number of groups or parameters, wrong types or shapes, values that are missing), and then has
/// changed nothing. To be called where nobody else uses the optimizer.
void load_optimizer_state(torch::optim::Optimizer& optimizer, const value& state);

/// The checks of `load_optimizer_state` now, with the first thing that does not fit told to `act`; the change when the
/// result is called (once), which does not throw for reasons of the state: for loading several objects together or not
/// at all. The optimizer must live until then.
///
/// A tolerant `act` still needs the same kind of optimizer, and as many groups and parameters in each: the state knows
/// parameters by their place only, so that otherwise nobody could tell whose values are whose. Then the settings of the
/// groups are taken, and the state of every parameter whose own fits and that `act` does not know as displaced (LBFGS,
/// which has one state for all parameters: none displaced). The other parameters keep the state that they have, which
/// is none in a fresh optimizer. If even that is not given, the whole optimizer stays as it is. Both are told to `act`.
[[nodiscard]] std::function<void()> prepare_optimizer_load(torch::optim::Optimizer& optimizer, const value& state,
                                                           loading& act);

}  // namespace rondo::state

#pragma once

#include <torch/optim/optimizer.h>

#include <functional>

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

/// The checks of `load_optimizer_state` now, the change when the result is called (once), which does not throw for
/// reasons of the state: for loading several objects together or not at all. The optimizer must live until then.
[[nodiscard]] std::function<void()> prepare_optimizer_load(torch::optim::Optimizer& optimizer, const value& state);

}  // namespace rondo::state

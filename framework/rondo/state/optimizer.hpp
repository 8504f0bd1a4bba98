#pragma once

#include <torch/optim/optimizer.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "rondo/state/loading.hpp"
#include "rondo/state/value.hpp"

namespace rondo::state {

/// An optimizer that says itself what it remembers: a base beside `torch::optim::Optimizer`. The functions below hand
/// over to it, and so do loop and snapshots.
class self_describing_optimizer {
 public:
  virtual ~self_describing_optimizer() = default;

  /// As `optimizer_state`.
  [[nodiscard]] virtual dict state_dict() const = 0;
  /// As `prepare_optimizer_load`, but throws the `state_error` of a state that does not fit as a whole.
  [[nodiscard]] virtual std::function<void()> prepare_load(const value& state, loading& act) = 0;
  /// What kind of optimizer it is, which tells whether a stored state is meant for it.
  [[nodiscard]] virtual std::string type_name() const = 0;
  /// The layout that the state has after a step, as far as it is known before the first one: so that a loader knows
  /// which parts of sharded tensors are needed here. Their tensors may be on the meta device.
  [[nodiscard]] virtual dict wanted() const { return state_dict(); }

 protected:
  self_describing_optimizer() = default;
  self_describing_optimizer(const self_describing_optimizer&) = default;
  self_describing_optimizer& operator=(const self_describing_optimizer&) = default;
};

/// What kind of optimizer it is: the name of its class, or what a `self_describing_optimizer` says.
[[nodiscard]] std::string optimizer_type_name(const torch::optim::Optimizer& optimizer);

/// The state of SGD, Adam, AdamW, RMSprop, Adagrad or LBFGS (or of a class derived from one of them, as its base) in
/// the layout of Python's `optimizer.state_dict()`:
///
///     {"state": {0: {"step": tensor(3.), "exp_avg": …}, …}, "param_groups": [{"lr": 0.1, …, "params": [0, 1]}, …]}
///
/// The number of a parameter is its position over all groups; parameters without state have no entry. Python's
/// optimizers of the same name and settings continue from it with the same bits (LBFGS with a line search
/// excepted: the two compute that differently). The tensors alias the optimizer's,
/// apart from "step", which is a 0-dim float32 tensor as in Python (float64 above 2^24, where float32 is not exact).
/// Throws `state_error` for other optimizer types: they say themselves what they remember (see
/// `self_describing_optimizer` and `stateful`).
[[nodiscard]] dict optimizer_state(const torch::optim::Optimizer& optimizer);

/// Restores what `optimizer_state` or Python gave: the options of every group (lr included) and the state of every
/// parameter. Tensors are copied and take the parameter's device and, for floating-point parameters, its dtype.
/// Python's further group settings (`foreach`, `fused`, `capturable`, `differentiable`, `initial_lr`, …) mean nothing
/// here and are passed over; `maximize=True`, which LibTorch lacks, is refused. In the place of a tensor, a sharded one
/// (`sharded_tensor`) will do whose parts here hold all of it.
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

// ---- For optimizers of which each process steps on a part of every parameter ----

/// Whole rows (of dimension 0) of a parameter: the tensor that an optimizer steps on in its place.
struct parameter_part {
  at::Tensor whole;
  /// The row that the part begins with. Its sizes are those of the tensor that stands for it in the optimizer.
  std::int64_t first_row = 0;
};

/// The state of the optimizer of whole parameters, as `optimizer_state` gives it, of which `optimizer` has parts:
/// tensors with an element for each of the parameter's are sharded ones (`sharded_tensor`) with the rows that are here.
/// `parts` has one entry for each parameter of `optimizer`, in the order of the groups.
[[nodiscard]] dict optimizer_state(const torch::optim::Optimizer& optimizer, const std::vector<parameter_part>& parts);

/// As `prepare_optimizer_load`, from the state of the optimizer of whole parameters: of tensors, the rows of the parts
/// are taken; of sharded tensors, parts that hold these rows must be there. Throws the `state_error` of a state that
/// does not fit as a whole.
[[nodiscard]] std::function<void()> prepare_optimizer_load(torch::optim::Optimizer& optimizer,
                                                           const std::vector<parameter_part>& parts, const value& state,
                                                           loading& act);

}  // namespace rondo::state

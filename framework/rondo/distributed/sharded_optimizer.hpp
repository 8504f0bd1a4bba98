#pragma once

#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/optimizer.h>
#include <torch/optim/sgd.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "rondo/async/task.hpp"
#include "rondo/distributed/rank_group.hpp"
#include "rondo/state/optimizer.hpp"
#include "rondo/state/value.hpp"

namespace rondo::distributed {

/// What all `sharded_optimizer`s have in common.
class sharded_optimizer_base : public torch::optim::Optimizer, public state::self_describing_optimizer {
 public:
  ~sharded_optimizer_base() override;

  /// Steps on this rank's part of every parameter that has a gradient; after it, the parameters are of no use until
  /// `gather` has completed. With `closure`, calls that first and gives what it gives. Throws `error` when the step
  /// before was not gathered, `option_error` for a sparse gradient, and `state_error` when parameters were added.
  at::Tensor step(LossClosure closure = nullptr) override;

  /// Gives all ranks the updated parameters, in place. To be called by all ranks after each `step`, before anything
  /// else uses the parameters; `loop` does it. Completes at once in a group of one, and when there was no step.
  /// Throws `rank_error` when a rank is gone or late, and `state_error`, the same on all ranks, when their optimizers
  /// have other parameters or their steps were on other ones. Cancellation waits for the message under way; the step
  /// then counts as not gathered.
  [[nodiscard]] task<> gather();

  /// `step` and `gather`, for loops of one's own.
  [[nodiscard]] task<> step_together();

  [[nodiscard]] const rank_group& group() const noexcept { return group_; }

  /// How many elements of the parameters this rank steps on.
  [[nodiscard]] std::int64_t own_elements() const;

  /// The state in the layout of the optimizer without ranks (`state::optimizer_state`), where tensors with an element
  /// for each of the parameter's are sharded ones with this rank's rows, over the optimizer's memory. In a group of one
  /// they are plain tensors.
  [[nodiscard]] state::dict state_dict() const override;

  /// Takes whole tensors, of which it keeps this rank's rows, and sharded ones whose parts here hold at least these. So
  /// it loads ordinary snapshots, what Python saved, and sharded snapshots of other numbers of ranks.
  [[nodiscard]] std::function<void()> prepare_load(const state::value& state, state::loading& act) override;

  /// Of the optimizer that does the work.
  [[nodiscard]] std::string type_name() const override;

  /// The state as it is after the next step on all parameters; what is not there yet is on the meta device.
  [[nodiscard]] state::dict wanted() const override;

  /// Throw `state_error`: one rank's archive would not be the optimizer's state. See `state_dict`.
  void save(torch::serialize::OutputArchive& archive) const override;
  void load(torch::serialize::InputArchive& archive) override;

 protected:
  using groups = std::vector<torch::optim::OptimizerParamGroup>;

  /// What there is to know of an optimizer.
  struct kind {
    std::function<std::unique_ptr<torch::optim::Optimizer>(groups)> make;
    std::function<void(torch::optim::OptimizerOptions& to, const torch::optim::OptimizerOptions& from)> assign;
  };

  sharded_optimizer_base(groups all, std::unique_ptr<torch::optim::OptimizerOptions> defaults, rank_group group,
                         kind what);

 private:
  class division;
  struct round;
  using conversion = std::function<at::Tensor(const at::Tensor&)>;

  [[nodiscard]] std::vector<at::Tensor> own_rows() const;
  [[nodiscard]] std::unique_ptr<torch::optim::Optimizer> optimizer_of(const std::vector<at::Tensor>& rows) const;
  void use(const std::vector<at::Tensor>& rows);
  void follow_parameters();
  void hand_over_options(torch::optim::Optimizer& to) const;
  void take_over_options();
  void hand_over_gradients();
  void drop_gradients();
  [[nodiscard]] std::vector<round> rounds() const;
  void add_rounds(at::Device device, int rank, std::size_t at, std::vector<round>& all) const;
  [[nodiscard]] std::string description() const;
  [[nodiscard]] at::Tensor mark_of_step() const;
  [[nodiscard]] at::Tensor message_of(const round& one) const;
  void require_same_step(const std::vector<at::Tensor>& messages) const;
  void take_out(const round& one, const std::vector<at::Tensor>& messages) const;
  [[nodiscard]] task<> compare_divisions();

  rank_group group_;
  kind kind_;
  std::vector<at::Tensor> parameters_;  ///< of all groups
  std::unique_ptr<division> division_;
  std::vector<state::parameter_part> parts_;
  std::unique_ptr<torch::optim::Optimizer> inner_;  ///< steps on this rank's rows
  std::vector<at::Tensor> rows_;                    ///< its parameters
  std::vector<bool> stepped_;                       ///< which parameters the last step was on
  std::vector<bool> travels_;                       ///< which parameters have a place in messages
  std::int64_t steps_ = 0;
  bool step_is_open_ = false;  ///< not gathered yet
  bool division_is_compared_ = false;
};

namespace detail {

template <class Kind>
struct options_of;
template <>
struct options_of<torch::optim::SGD> {
  using type = torch::optim::SGDOptions;
};
template <>
struct options_of<torch::optim::Adam> {
  using type = torch::optim::AdamOptions;
};
template <>
struct options_of<torch::optim::AdamW> {
  using type = torch::optim::AdamWOptions;
};

}  // namespace detail

/// SGD, Adam or AdamW, of which each rank keeps the state of its own part of the parameters, and steps on that part
/// alone: with W ranks a W-th of the memory and of the work (stage 1 of ZeRO: Rajbhandari et al., "ZeRO: Memory
/// Optimizations Toward Training Trillion Parameter Models", SC 2020; in Python: `ZeroRedundancyOptimizer`, which deals
/// out whole parameters). Parameters and gradients stay whole on every rank:
///
///     distributed::sharded_optimizer<torch::optim::AdamW> optimizer(model->parameters(), 1e-3, group);
///
/// All parameters in the order of the groups form one line of elements, which is cut into equal parts, at the nearest
/// whole row of dimension 0. After `gather`, the parameters have the same bits as with the optimizer without ranks, on
/// every rank. The gradients must be the same on all ranks, which `data_parallel` takes care of. `param_groups()` are
/// those of whole parameters, so that learning rate schedules and clipping work as ever; all groups are given to the
/// constructor. Parameters that do not require a gradient then count as nothing in the division.
///
/// Used by the training thread.
template <class Kind>
class sharded_optimizer final : public sharded_optimizer_base {
 public:
  using options = typename detail::options_of<Kind>::type;

  /// Throws what the optimizer's own constructor throws for impossible options, and `option_error` for a parameter that
  /// is undefined or listed twice.
  sharded_optimizer(std::vector<torch::optim::OptimizerParamGroup> all, options defaults, rank_group group)
      : sharded_optimizer_base(std::move(all), std::make_unique<options>(defaults), std::move(group),
                               kind_of(defaults)) {}
  sharded_optimizer(std::vector<at::Tensor> parameters, options defaults, rank_group group)
      : sharded_optimizer({torch::optim::OptimizerParamGroup(std::move(parameters))}, std::move(defaults),
                          std::move(group)) {}

 private:
  static kind kind_of(const options& defaults) {
    return {[defaults](groups own) { return std::make_unique<Kind>(std::move(own), defaults); },
            [](torch::optim::OptimizerOptions& to, const torch::optim::OptimizerOptions& from) {
              dynamic_cast<options&>(to) = dynamic_cast<const options&>(from);
            }};
  }
};

}  // namespace rondo::distributed

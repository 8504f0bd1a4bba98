#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>
#include <torch/optim/optimizer.h>

#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "rondo/async/task.hpp"
#include "rondo/loop/context.hpp"
#include "rondo/loop/extension.hpp"
#include "rondo/loop/options.hpp"
#include "rondo/loop/session.hpp"
#include "rondo/loop/source.hpp"

namespace rondo {

/// The models of a loop by name: `models{{"generator", g}, {"discriminator", d}}`, or the only one (then called "main").
/// Each is a `shared_ptr` to a module or a module holder.
class models {
 public:
  class entry {
   public:
    template <std::derived_from<torch::nn::Module> M>
    entry(std::string name, std::shared_ptr<M> module) : value_{std::move(name), std::move(module)} {}
    template <state::module_holder Holder>
    entry(std::string name, const Holder& holder) : value_{std::move(name), holder.ptr()} {}

   private:
    friend class models;
    detail::named_model value_;
  };

  models(std::initializer_list<entry> all) {
    for (const auto& e : all) all_.push_back(e.value_);
  }
  template <class M>
    requires std::constructible_from<entry, std::string, const M&>
  models(const M& only) : models({entry("main", only)}) {}

 private:
  friend class loop;
  std::vector<detail::named_model> all_;
};

/// The optimizers of a loop by name, or the only one ("main"). One given by reference is not owned and must outlive the loop.
class optimizers {
 public:
  class entry {
   public:
    entry(std::string name, torch::optim::Optimizer& optimizer)
        : value_{std::move(name), {std::shared_ptr<void>(), &optimizer}} {}
    entry(std::string name, std::shared_ptr<torch::optim::Optimizer> optimizer)
        : value_{std::move(name), std::move(optimizer)} {}

   private:
    friend class optimizers;
    detail::named_optimizer value_;
  };

  optimizers(std::initializer_list<entry> all) {
    for (const auto& e : all) all_.push_back(e.value_);
  }
  optimizers(torch::optim::Optimizer& only) : optimizers({entry("main", only)}) {}
  /// A `shared_ptr` or `unique_ptr`.
  template <class Pointer>
    requires std::convertible_to<Pointer, std::shared_ptr<torch::optim::Optimizer>>
  optimizers(Pointer only) : optimizers({entry("main", std::move(only))}) {}

 private:
  friend class loop;
  std::vector<detail::named_optimizer> all_;
};

/// A training loop: batches go through a step, events go to extensions.
///
///     rondo::loop loop(model, optimizer, batches, torch::nn::functional::cross_entropy, {.max_epochs = 10});
///     loop | log_report() | snapshot();
///     run_result result = loop.run();
///
/// The range of batches is iterated over once per epoch; it may be any C++20 or range-v3 range. A view is copied, a
/// temporary container is taken over, one with a name is referred to and must outlive the loop. Stages that have `set_epoch` are told the epoch's index before.
class loop {
 public:
  /// Supervised training: `model->forward(batch.data)` and `loss(output, batch.target)`, averaged as "train/loss".
  template <class Model, class Range, class Loss>
    requires std::constructible_from<models::entry, std::string, const Model&> && ranges::range<Range> &&
             (!training_step<Loss, std::decay_t<ranges::range_reference_t<Range>>>)
  loop(const Model& model, optimizers optimizer, Range&& batches, Loss loss, loop_options options)
      : options_(std::move(options)), models_(model), optimizers_(std::move(optimizer)) {
    supervised_.forward = [model = model](const at::Tensor& input) mutable -> at::Tensor { return model->forward(input); };
    supervised_.loss = [loss](const at::Tensor& output, const at::Tensor& target) mutable -> at::Tensor {
      return detail::call_loss(loss, output, target);
    };
    auto step = [model = model, loss](context&, const auto& batch) mutable -> at::Tensor {
      return detail::call_loss(loss, model->forward(batch.data), batch.target);
    };
    source_ = detail::make_source(std::forward<Range>(batches), std::move(step));
  }

  /// A custom step, see `training_step`; any number of models and optimizers.
  template <class Range, class Step>
    requires ranges::range<Range> && training_step<Step, std::decay_t<ranges::range_reference_t<Range>>>
  loop(models all_models, optimizers all_optimizers, Range&& batches, Step step, loop_options options)
      : options_(std::move(options)), models_(std::move(all_models)), optimizers_(std::move(all_optimizers)) {
    source_ = detail::make_source(std::forward<Range>(batches), std::move(step));
  }

  loop(loop&&) noexcept = default;
  loop& operator=(loop&&) noexcept = default;

  /// Something else to save in snapshots and to restore: anything with `state_dict` and `load_state_dict`, a module, an
  /// optimizer. Names are the keys under "state_objects".
  loop& remember(std::string name, state::stateful_ref object);

  /// Attaches an extension. Order counts among extensions of the same priority.
  loop& extend(extension e);
  friend loop& operator|(loop& l, extension e) { return l.extend(std::move(e)); }
  friend loop&& operator|(loop&& l, extension e) { return std::move(l.extend(std::move(e))); }

  /// Trains on the calling thread until a goal is reached, somebody asks to stop, or an error. Options and extensions are
  /// checked before anything is trained. Throws `option_error` for those, and whatever a step or an extension threw,
  /// unchanged, after every extension has been told. A loop runs once; a second call throws `error`.
  run_result run();

  /// The same on the caller's event loop, whose thread becomes the training thread. Cancellation ends training after the
  /// current suspension point with `operation_aborted`, as an error. The loop must outlive the task.
  [[nodiscard]] task<run_result> run_async();

 private:
  loop_options options_;
  models models_;
  optimizers optimizers_;
  detail::supervision supervised_;
  std::unique_ptr<detail::batch_source> source_;
  std::vector<detail::named_state> state_objects_;
  std::vector<extension> extensions_;
  std::unique_ptr<detail::session> session_;
};

}  // namespace rondo

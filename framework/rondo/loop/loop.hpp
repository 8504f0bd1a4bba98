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
#include "rondo/loop/supervised.hpp"

namespace rondo {

/// The models of a loop by name: `models{{"generator", g}, {"discriminator", d}}`, or the only one (then called
/// "main"). Each is a `shared_ptr` to a module, a module holder, or a module that has a name; that one is not owned and
/// must outlive the loop.
class models {
 public:
  class entry {
   public:
    template <std::derived_from<torch::nn::Module> M>
    entry(std::string name, std::shared_ptr<M> module) : value_{std::move(name), std::move(module)} {}
    template <state::module_holder Holder>
    entry(std::string name, const Holder& holder) : value_{std::move(name), holder.ptr()} {}
    template <std::derived_from<torch::nn::Module> M>
      requires(!std::is_const_v<M>)
    entry(std::string name, M& module) : value_{std::move(name), detail::not_owned(module)} {}

   private:
    friend class models;
    detail::named_model value_;
  };

  /// None.
  models() = default;
  models(std::initializer_list<entry> all) {
    for (const auto& e : all) all_.push_back(e.value_);
  }
  template <class M>
    requires(!std::same_as<std::remove_cvref_t<M>, models> && std::constructible_from<entry, std::string, M>)
  models(M&& only) : models({entry("main", std::forward<M>(only))}) {}

 private:
  friend class loop;
  std::vector<detail::named_model> all_;
};

/// The optimizers of a loop by name, or the only one ("main"). One given by reference is not owned and must outlive the
/// loop.
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

  /// None.
  optimizers() = default;
  optimizers(std::initializer_list<entry> all) {
    for (const auto& e : all) all_.push_back(e.value_);
  }
  optimizers(torch::optim::Optimizer& only) : optimizers({entry("main", only)}) {}
  /// A `shared_ptr` or `unique_ptr`.
  template <class Pointer>
    requires(std::convertible_to<Pointer, std::shared_ptr<torch::optim::Optimizer>>)
  optimizers(Pointer only) : optimizers({entry("main", std::move(only))}) {}

 private:
  friend class loop;
  std::vector<detail::named_optimizer> all_;
};

namespace detail {

/// Throws `option_error` if the options say how targets count, which nobody can ask here.
void refuse_counts(const loop_options& options);

template <class Batches>
using batch_in = std::decay_t<ranges::range_reference_t<Batches>>;

/// Whether a loop can train one model with a loss function on these batches.
template <class Models, class Batches, class Loss>
constexpr bool is_supervised() {
  if constexpr (model_argument<Models> && data::labelled<batch_in<Batches>>) {
    using model = model_pointer_t<Models>;
    using batch = batch_in<Batches>;
    if constexpr (takes_input<model, data::input_t<batch>>) {
      using output = std::remove_cvref_t<decltype(call_forward(std::declval<model&>(),
                                                               std::declval<const data::input_t<batch>&>()))>;
      return loss_function<Loss, output, data::target_t<batch>>;
    }
  }
  return false;
}

/// Why a loop can be made of this neither with a loss function nor with a step; does not compile.
template <class Models, class Batches, class F>
constexpr void explain_step() {
  using batch = batch_in<Batches>;
  constexpr bool one_model = model_argument<Models>;
  if constexpr (one_model && data::labelled<batch>) {
    if constexpr (takes_input<model_pointer_t<Models>, data::input_t<batch>>)
      static_assert(
          !one_model,
          "the fourth argument of a loop is a loss function, called with the model's output and the batch's "
          "target, that gives a tensor, or a step, called with (context&, batch&), that returns a loss tensor, "
          "a task<> or nothing");
    else
      static_assert(!one_model,
                    "the model has no forward() for what these batches hold: their `data`, or all but the last part of "
                    "a pair, tuple or struct. Change either, or give the loop a step, called with (context&, batch&)");
  } else if constexpr (one_model) {
    static_assert(!one_model,
                  "for a loss function, batches have members `data` and `target`, or are a pair, a tuple or a struct "
                  "whose last member is the target; for others give the loop a step, called with (context&, batch&), "
                  "that returns a loss tensor, a task<> or nothing");
  } else {
    static_assert(one_model,
                  "several models need a step, called with (context&, batch&), that returns a loss tensor, a task<> or "
                  "nothing");
  }
}

/// Whether a loop can be made of this. If not, it does not compile, with a sentence that says why.
template <class Models, class Optimizers, class Batches, class F>
constexpr bool check_loop() {
  if constexpr (!std::constructible_from<models, Models>) {
    static_assert(!std::derived_from<std::remove_cvref_t<Models>, torch::nn::Module>,
                  "a model that is given to a loop by value or as const: give it the variable itself (it is not owned "
                  "and must outlive the loop), a std::shared_ptr, or a module holder");
    static_assert(
        std::derived_from<std::remove_cvref_t<Models>, torch::nn::Module>,
        "the first argument of a loop is the model (a torch::nn::Module, a std::shared_ptr to one, or a module "
        "holder), or models{{\"name\", model}, …}");
    return false;
  } else if constexpr (!std::constructible_from<optimizers, Optimizers>) {
    static_assert(std::constructible_from<optimizers, Optimizers>,
                  "the second argument of a loop is the optimizer (a variable, a shared_ptr or a unique_ptr), or "
                  "optimizers{{\"name\", optimizer}, …}");
    return false;
  } else if constexpr (!ranges::range<Batches>) {
    static_assert(ranges::range<Batches>,
                  "the third argument of a loop is a range of batches: a pipeline such as data | data::batch(64), a "
                  "container, a view, or data::torch_loader(…) of a DataLoader of LibTorch");
    return false;
  } else if constexpr (!data::detail::whole_batch<batch_in<Batches>>) {
    static_assert(
        data::detail::whole_batch<batch_in<Batches>>,
        "which tensors of a batch are to be moved to the device, and how many samples it has, is not known for "
        "this type: write B to_device(B, at::Device) and std::int64_t item_count(const B&) in its namespace");
    return false;
  } else if constexpr (!is_supervised<Models, Batches, F>()) {
    if constexpr (training_step<F, batch_in<Batches>>)
      return true;
    else
      explain_step<Models, Batches, F>();
    return training_step<F, batch_in<Batches>>;
  }
  return true;
}

}  // namespace detail

/// A training loop: batches go through a step, events go to extensions.
///
///     rondo::loop loop(model, optimizer, batches, torch::nn::functional::cross_entropy, {.max_epochs = 10});
///     loop | log_report() | snapshot();
///     run_result result = loop.run();
///
/// The range of batches is iterated over once per epoch; it may be any C++20 or range-v3 range; a DataLoader of
/// LibTorch becomes one by `data::torch_loader`. A view is copied, a temporary container is taken over, one with a name
/// is referred to and must outlive the loop. Stages that have `set_epoch` are told the epoch's index before.
class loop {
 public:
  /// * `model`: see `models`; `optimizer`: see `optimizers`.
  /// * `batches`: a range; of batches that are labelled (`data::labelled`), for supervised training.
  /// * `f`, with one model: a loss function. Training is `model->forward(input)` and `loss(output, target)`, averaged
  /// as
  ///   "train/loss"; several inputs (`data::input_of`) are several arguments of `forward`. A loss function is a
  ///   callable, a function of `torch::nn::functional`, or a loss module with its options
  ///   (`torch::nn::CrossEntropyLoss(…)`).
  /// * `f`, with any number of models and batches of any type: a step, see `training_step`. It names `context&`, for
  ///   something that takes all types of arguments (`auto&`, twice) is a loss function where it can be.
  template <class Models = models, class Optimizers = optimizers, class Range, class F>
  loop(Models&& model, Optimizers&& optimizer, Range&& batches, F f, loop_options options)
      : options_(std::move(options)) {
    if constexpr (detail::check_loop<Models, Optimizers, Range, F>()) {
      models_ = rondo::models(model);
      optimizers_ = rondo::optimizers(std::forward<Optimizers>(optimizer));
      if constexpr (detail::is_supervised<Models, Range, F>()) {
        using batch = detail::batch_in<Range>;
        auto pointer = detail::model_pointer(std::forward<Models>(model));
        if constexpr (!std::convertible_to<data::target_t<batch>, const at::Tensor&>) detail::refuse_counts(options_);
        supervised_ = detail::supervise<data::input_t<batch>, data::target_t<batch>>(pointer, f);
        source_ = detail::make_source(std::forward<Range>(batches),
                                      detail::supervised_step(std::move(pointer), std::move(f)));
      } else {
        detail::refuse_counts(options_);
        source_ = detail::make_source(std::forward<Range>(batches), std::move(f));
      }
    }
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

  /// Trains on the calling thread until a goal is reached, somebody asks to stop, or an error. Options and extensions
  /// are checked before anything is trained. Throws `option_error` for those, and whatever a step or an extension
  /// threw, unchanged, after every extension has been told. A loop runs once; a second call throws `error`.
  run_result run();

  /// The same on the caller's event loop, whose thread becomes the training thread. Cancellation ends training after
  /// the current suspension point with `operation_aborted`, as an error. The loop must outlive the task.
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

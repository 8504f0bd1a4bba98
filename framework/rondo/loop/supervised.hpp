#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <concepts>
#include <functional>
#include <memory>
#include <tuple>
#include <type_traits>
#include <typeinfo>
#include <utility>

#include "rondo/data/labelled.hpp"
#include "rondo/state/stateful.hpp"

/// Supervised training: what a model and a loss function may be, and how they are called.
namespace rondo::detail {

// ---- the model ---------------------------------------------------------------------------------------------------

/// A module that somebody else owns.
template <class Model>
inline constexpr bool is_module_by_name =
    std::is_lvalue_reference_v<Model> && !std::is_const_v<std::remove_reference_t<Model>> &&
    std::derived_from<std::remove_reference_t<Model>, torch::nn::Module>;

template <class T>
inline constexpr bool is_module_pointer = false;
template <std::derived_from<torch::nn::Module> M>
inline constexpr bool is_module_pointer<std::shared_ptr<M>> = true;

/// One model: a module with a name, a `shared_ptr` to one, or a module holder.
template <class Model>
concept model_argument = is_module_by_name<Model> || is_module_pointer<std::remove_cvref_t<Model>> ||
    state::module_holder<std::remove_cvref_t<Model>>;

/// A module that is not owned. A pointer with a deleter, so that the module may ask for itself as a `shared_ptr`.
template <class M>
std::shared_ptr<M> not_owned(M& module) {
  return std::shared_ptr<M>(std::addressof(module), [](M*) {});
}

/// What has the model's type and keeps it, if it is not owned by another: to be used with `->`.
template <model_argument Model>
auto model_pointer(Model&& model) {
  if constexpr (is_module_by_name<Model>)
    return not_owned(model);
  else
    return std::remove_cvref_t<Model>(std::forward<Model>(model));
}

template <class Model>
using model_pointer_t = decltype(model_pointer(std::declval<Model>()));

template <class Model, class Input>
concept takes_at_once = requires(Model& model, const Input& input) {
  model->forward(input);
};

template <class Model, class... Parts>
concept takes_each = requires(Model& model, const Parts&... parts) {
  model->forward(parts...);
};
template <class Model, class Input>
struct takes_parts_of : std::false_type {};
template <class Model, class... Parts>
struct takes_parts_of<Model, std::tuple<Parts...>> : std::bool_constant<takes_each<Model, Parts...>> {};
template <class Model, class First, class Second>
struct takes_parts_of<Model, std::pair<First, Second>> : takes_parts_of<Model, std::tuple<First, Second>> {};

template <class Model, class Input>
concept takes_fields = data::detail::plain_struct<Input> && takes_parts_of<Model, data::detail::fields_t<Input>>::value;

/// Models, as `->`, that can be called with an input: as a whole, or with its parts.
template <class Model, class Input>
concept takes_input = takes_parts_of<Model, Input>::value || takes_at_once<Model, Input> || takes_fields<Model, Input>;

/// `forward(input)`, or `forward(a, b, …)` with the parts of a pair, tuple or plain struct. The latter goes first where
/// both are possible: a `Sequential` seems to take anything.
template <class Model, class Input>
  requires takes_input<Model, Input>
decltype(auto) call_forward(Model& model, const Input& input) {
  const auto with_parts = [&](const auto&... parts) -> decltype(auto) { return model->forward(parts...); };
  if constexpr (takes_parts_of<Model, Input>::value)
    return std::apply(with_parts, input);
  else if constexpr (takes_at_once<Model, Input>)
    return model->forward(input);
  else
    return std::apply(with_parts, data::detail::fields_of(input));
}

// ---- the loss function -------------------------------------------------------------------------------------------

/// As those of `torch::nn::functional`: a third argument that has a default, which a pointer to the function does not
/// know any more.
template <class F>
struct options_of_function : std::false_type {};
template <class Output, class Target, class Options>
struct options_of_function<at::Tensor (*)(Output, Target, Options)> : std::true_type {
  using type = std::remove_cvref_t<Options>;
  static constexpr bool has_default = std::is_class_v<type> && std::is_default_constructible_v<type>;
};

template <class Loss, class Output, class Target>
concept called_directly = requires(Loss& loss, const Output& output, const Target& target) {
  { std::invoke(loss, output, target) } -> std::convertible_to<at::Tensor>;
};
template <class Loss, class Output, class Target>
concept called_with_options = options_of_function<Loss>::has_default &&
    requires(Loss& loss, const Output& output, const Target& target) {
  loss(output, target, typename options_of_function<Loss>::type());
};
template <class Loss, class Output, class Target>
concept called_as_pointer = requires(Loss& loss, const Output& output, const Target& target) {
  { loss->forward(output, target) } -> std::convertible_to<at::Tensor>;
};
template <class Loss, class Output, class Target>
concept called_as_module = requires(Loss& loss, const Output& output, const Target& target) {
  { loss.forward(output, target) } -> std::convertible_to<at::Tensor>;
};

/// Functions of output and target that give a tensor: a callable, a function of `torch::nn::functional`, a loss module,
/// its holder, or a `shared_ptr` to it.
template <class Loss, class Output, class Target>
concept loss_function = called_as_module<Loss, Output, Target> || called_as_pointer<Loss, Output, Target> ||
    called_with_options<Loss, Output, Target> || called_directly<Loss, Output, Target>;

template <class Loss, class Output, class Target>
  requires(loss_function<Loss, Output, Target>)
at::Tensor call_loss(Loss& loss, const Output& output, const Target& target) {
  if constexpr (called_as_module<Loss, Output, Target>)
    return loss.forward(output, target);
  else if constexpr (called_as_pointer<Loss, Output, Target>)
    return loss->forward(output, target);
  else if constexpr (called_with_options<Loss, Output, Target>)
    return loss(output, target, typename options_of_function<Loss>::type());
  else
    return std::invoke(loss, output, target);
}

// ---- without the types -------------------------------------------------------------------------------------------

/// A value on its way to somebody who knows its type.
struct typed_value {
  const void* value;
  const std::type_info& type;
};

/// What a supervised loop knows about its model; empty functions otherwise, and where the model's output is no tensor.
struct supervision {
  std::function<at::Tensor(typed_value input)> forward;
  std::function<at::Tensor(const at::Tensor& output, typed_value target)> loss;
};

/// Throws `option_error`: `what` was called with a value of another type than in training.
[[noreturn]] void throw_other_type(const char* what, const std::type_info& found, const std::type_info& expected);

template <class T>
const T& as(const char* what, typed_value given) {
  if (given.type != typeid(T)) throw_other_type(what, given.type, typeid(T));
  return *static_cast<const T*>(given.value);
}

template <class Input, class Target, class Model, class Loss>
supervision supervise(Model model, Loss loss) {
  using output = std::remove_cvref_t<decltype(call_forward(model, std::declval<const Input&>()))>;
  if constexpr (std::convertible_to<output, at::Tensor> && loss_function<Loss, at::Tensor, Target>) {
    return {
        [model](typed_value input) mutable -> at::Tensor { return call_forward(model, as<Input>("forward", input)); },
        [loss](const at::Tensor& output, typed_value target) mutable -> at::Tensor {
          return call_loss(loss, output, as<Target>("loss", target));
        }};
  }
  return {};
}

/// The step of supervised training.
template <class Model, class Loss>
auto supervised_step(Model model, Loss loss) {
  return [model, loss](auto& ctx, const auto& batch) mutable -> at::Tensor {
    const auto& target = data::target_of(batch);
    if constexpr (std::convertible_to<decltype(target), const at::Tensor&>)
      if (const auto& counts = ctx.options().counts) ctx.weigh_batch(counts(target));
    return call_loss(loss, call_forward(model, data::input_of(batch)), target);
  };
}

}  // namespace rondo::detail

#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>
#include <torch/optim/optimizer.h>

#include <concepts>
#include <functional>
#include <memory>
#include <type_traits>
#include <utility>

#include "rondo/state/loading.hpp"
#include "rondo/state/module.hpp"
#include "rondo/state/optimizer.hpp"
#include "rondo/state/value.hpp"

/// What can be stored in a snapshot, and how it is told to save and to load itself.
namespace rondo::state {

/// A type that remembers something: `state_dict() const` gives it as a state tree, `load_state_dict(const value&)`
/// takes it back. `load_state_dict` should check the whole tree before it changes anything and throw `state_error`
/// otherwise.
template <class T>
concept stateful = requires(const T& object, T& target, const value& v) {
  { object.state_dict() } -> std::convertible_to<value>;
  target.load_state_dict(v);
};

/// How an object of type `T` is saved and loaded. Defined for stateful types, modules and optimizers. Specialize it
/// with `static value save(const T&)` and `static void load(T&, const value&)` for a type that you cannot change. An
/// adapter that has `static std::function<void()> prepare(T&, const value&, loading&)` as well, which compares and
/// leaves the change to its result, follows `load_options`; without it they mean nothing to the type.
template <class T>
struct adapter {};

template <stateful T>
struct adapter<T> {
  static value save(const T& object) { return object.state_dict(); }
  static void load(T& object, const value& v) { object.load_state_dict(v); }
};

template <class T>
  requires(std::derived_from<T, torch::nn::Module> && !stateful<T>)
struct adapter<T> {
  static value save(const T& module) { return module_state(module); }
  static void load(T& module, const value& v) { load_module_state(module, v); }
  static std::function<void()> prepare(T& module, const value& v, loading& act) {
    return prepare_module_load(module, v, act);
  }
};

template <class T>
  requires(std::derived_from<T, torch::optim::Optimizer> && !stateful<T>)
struct adapter<T> {
  static value save(const T& optimizer) { return optimizer_state(optimizer); }
  static void load(T& optimizer, const value& v) { load_optimizer_state(optimizer, v); }
  static std::function<void()> prepare(T& optimizer, const value& v, loading& act) {
    return prepare_optimizer_load(optimizer, v, act);
  }
};

/// A type that an `adapter` knows how to save and load.
template <class T>
concept storable = requires(const T& object, T& target, const value& v) {
  { adapter<T>::save(object) } -> std::convertible_to<value>;
  adapter<T>::load(target, v);
};

/// A storable type that follows `load_options`: modules and optimizers.
template <class T>
concept comparable_with_state = storable<T> && requires(T& target, const value& v, loading& act) {
  { adapter<T>::prepare(target, v, act) } -> std::convertible_to<std::function<void()>>;
};

/// A `torch::nn::ModuleHolder`, such as `torch::nn::Linear`.
template <class T>
concept module_holder = std::is_base_of_v<torch::detail::ModuleHolderIndicator, T>;

/// The state of `object`, which may alias live tensors.
template <storable T>
[[nodiscard]] value save(const T& object) {
  return adapter<T>::save(object);
}

/// Gives `v` to `object`. Throws `state_error` when it does not fit.
template <storable T>
void load(T& object, const value& v) {
  adapter<T>::load(object, v);
}

/// A handle to something that can be saved and loaded, whatever its type. Built from a `shared_ptr` or a module holder
/// it shares the ownership; built from a reference it does not own, and the object must outlive it. The type that the
/// compiler sees decides: give a class with its own `state_dict()` as itself, not as its base.
class stateful_ref {
 public:
  template <class T>
    requires storable<T> stateful_ref(T& object) : save_([&object] { return value(adapter<T>::save(object)); }) {
      load_by<T>([&object]() -> T& { return object; });
    }

    template <class T>
      requires storable<T> stateful_ref(std::shared_ptr<T> object) {
        if (object == nullptr) throw state_error("", "cannot save or load a null pointer");
        save_ = [object] { return value(adapter<T>::save(*object)); };
        load_by<T>([object]() -> T& { return *object; });
      }

    /// Throws `state_error` for a holder that holds nothing.
    template <module_holder Holder>
    stateful_ref(const Holder& holder)
        : stateful_ref(holder.is_empty() ? std::shared_ptr<typename Holder::ContainedType>() : holder.ptr()) {}

    /// From two functions.
    stateful_ref(std::function<value()> save, std::function<void(const value&)> load)
        : save_(std::move(save)), load_(std::move(load)) {}

    /// The object's state, which may alias live tensors.
    [[nodiscard]] value save() const { return save_(); }
    /// Gives `v` to the object. Throws `state_error` when it does not fit. `options` are those of modules and
    /// optimizers; other types, which compare the state themselves, ignore them.
    void load(const value& v, const load_options& options = {}) const {
      loading act(options);
      const auto apply = prepare(v, act);
      act.require_fit();
      apply();
      act.report();
    }
    /// Compares `v` with the object if `compares()`, telling `act` what does not fit. The result gives it to the object,
    /// and may throw `state_error` if not `compares()`. `v` must live until then.
    [[nodiscard]] std::function<void()> prepare(const value& v, loading& act) const {
      if (prepare_) return prepare_(v, act);
      return [load = load_, &v] { load(v); };
    }
    /// Whether the object can be compared with a state before it takes it, as modules and optimizers can.
    [[nodiscard]] bool compares() const noexcept { return static_cast<bool>(prepare_); }

   private:
    template <class T, class Get>
    void load_by(Get get) {
      if constexpr (comparable_with_state<T>)
        prepare_ = [get](const value& v, loading& act) { return adapter<T>::prepare(get(), v, act); };
      else
        load_ = [get](const value& v) { adapter<T>::load(get(), v); };
    }

    std::function<value()> save_;
    std::function<void(const value&)> load_;                             // one of these two
    std::function<std::function<void()>(const value&, loading&)> prepare_;
};

}  // namespace rondo::state

#pragma once

#include <concepts>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "rondo/async/task.hpp"
#include "rondo/error.hpp"
#include "rondo/event/priority.hpp"
#include "rondo/event/trigger.hpp"
#include "rondo/state/value.hpp"

namespace rondo {

class context;

/// For `load_state_dict` of an extension or a trigger: a part of a memory does not fit, that part begins anew, and the
/// rest has been taken over. Thrown at the end.
class partial_memory_error : public error {
 public:
  using error::error;
};

/// A callable that is an extension by itself: it takes a `context&` and subscribes (returning nothing), or it is a coroutine
/// that lives as long as the run (returning `task<>`).
template <class F>
concept extension_function = std::invocable<F&, context&> && (std::is_void_v<std::invoke_result_t<F&, context&>> ||
                                                              std::same_as<std::invoke_result_t<F&, context&>, task<>>);

namespace detail {

template <class T>
concept has_attach = requires(T t, context& c) { t.attach(c); };
template <class T>
concept has_run = requires(T t, context& c) { t.run(c); };
template <class T>
concept has_state_dict = requires(const T t) { t.state_dict(); };
template <class T>
concept has_load_state_dict = requires(T t, const state::value& v) { t.load_state_dict(v); };

}  // namespace detail

/// A class that is an extension: it has `void attach(context&)`, which subscribes and returns before training, or
/// `task<> run(context&)`, which lives as long as the run, or both. If it has something to remember it gives
/// `state_dict() const` and `load_state_dict(const state::value&)`, and is saved in every snapshot.
template <class T>
concept extension_class = detail::has_attach<T> || detail::has_run<T>;

/// Any extension, ready to be attached to a loop: `loop | log_report() | make_extension("x", …)`.
///
/// `attach` is called once per run, before the state is restored; a coroutine is started after that. Everything runs on the
/// training thread. What an extension throws ends the training: every extension is told (`event::failed`), and `run()`
/// throws it on.
class extension {
 public:
  /// From a class, or from a `shared_ptr` to one if you want to look at it after the run.
  template <class T>
    requires extension_class<std::remove_cvref_t<T>>
  extension(std::string name, T&& object)
      : extension(std::move(name), std::make_shared<std::remove_cvref_t<T>>(std::forward<T>(object))) {}

  template <extension_class T>
  extension(std::string name, std::shared_ptr<T> object)
      : name_(std::move(name)), self_(std::make_shared<class_model<T>>(std::move(object))) {}

  template <class F>
    requires extension_function<std::remove_cvref_t<F>>
  extension(std::string name, F&& function)
      : name_(std::move(name)), self_(std::make_shared<function_model<std::remove_cvref_t<F>>>(std::forward<F>(function))) {}

  /// From a callable that makes the object, as a `shared_ptr` to a class that is an extension: called at once, for it
  /// may refuse, and then for every run. So each loop that such an extension is attached to has one of its own, and
  /// begins anew.
  template <class Make>
    requires(extension_class<typename std::invoke_result_t<Make&>::element_type>)
  [[nodiscard]] static extension made_by(std::string name, Make make) {
    extension made;
    made.name_ = std::move(name);
    made.self_ = std::make_shared<made_model<Make>>(std::move(make));
    return made;
  }

  /// Another name. Names are the keys in snapshots; two extensions of one name are refused when training starts.
  extension& named(std::string name) & {
    name_ = std::move(name);
    return *this;
  }
  extension named(std::string name) && { return std::move(named(std::move(name))); }

  /// Another place in the order of subscribers, see `rondo::priority`. Default `priority::reader`. What an extension does at
  /// or below `priority::snapshot` in an iteration is not in that iteration's snapshot: one with a state belongs above.
  extension& at_priority(int priority) & {
    priority_ = priority;
    return *this;
  }
  extension at_priority(int priority) && { return std::move(at_priority(priority)); }

  /// Another trigger for what the extension does "when due" (`context::when_due`). Its memory is saved in snapshots.
  extension& triggered(trigger t) & {
    trigger_ = std::move(t);
    return *this;
  }
  extension triggered(trigger t) && { return std::move(triggered(std::move(t))); }

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] int priority() const noexcept { return priority_; }
  [[nodiscard]] const std::optional<trigger>& when() const noexcept { return trigger_; }

  /// For the loop.
  struct model {
    virtual ~model() = default;
    /// What takes part in a run instead; null: this.
    [[nodiscard]] virtual std::shared_ptr<model> for_run() { return nullptr; }
    virtual void attach(context&) {}
    [[nodiscard]] virtual bool is_coroutine() const noexcept { return false; }
    virtual task<> run(context&) { co_return; }
    [[nodiscard]] virtual std::optional<state::value> state_dict() const { return std::nullopt; }
    virtual void load_state_dict(const state::value&) {}
  };
  [[nodiscard]] const std::shared_ptr<model>& self() const noexcept { return self_; }
  [[nodiscard]] extension for_run() const {
    extension one = *this;
    if (auto own = self_->for_run()) one.self_ = std::move(own);
    return one;
  }

 private:
  extension() = default;

  template <class T>
  struct class_model final : model {
    static_assert(detail::has_state_dict<T> == detail::has_load_state_dict<T>,
                  "an extension with a state needs both: state_dict() const and load_state_dict(const state::value&)");

    explicit class_model(std::shared_ptr<T> o) : object(std::move(o)) {}
    void attach([[maybe_unused]] context& c) override {
      if constexpr (detail::has_attach<T>) {
        static_assert(std::is_void_v<decltype(object->attach(c))>, "attach(context&) returns nothing; a coroutine is called run");
        object->attach(c);
      }
    }
    [[nodiscard]] bool is_coroutine() const noexcept override { return detail::has_run<T>; }
    task<> run([[maybe_unused]] context& c) override {
      if constexpr (detail::has_run<T>) {
        static_assert(std::same_as<decltype(object->run(c)), task<>>, "run(context&) is a coroutine that returns task<>");
        return object->run(c);
      } else {
        return model::run(c);
      }
    }
    [[nodiscard]] std::optional<state::value> state_dict() const override {
      if constexpr (detail::has_state_dict<T>)
        return state::value(std::as_const(*object).state_dict());
      else
        return std::nullopt;
    }
    void load_state_dict([[maybe_unused]] const state::value& state) override {
      if constexpr (detail::has_load_state_dict<T>) object->load_state_dict(state);
    }

    std::shared_ptr<T> object;
  };

  template <class Make>
  struct made_model final : model {
    using object_model = class_model<typename std::invoke_result_t<Make&>::element_type>;

    explicit made_model(Make m) : make(std::move(m)) { static_cast<void>(make()); }
    [[nodiscard]] std::shared_ptr<model> for_run() override { return std::make_shared<object_model>(make()); }

    Make make;
  };

  template <class F>
  struct function_model final : model {
    static constexpr bool coroutine = std::same_as<std::invoke_result_t<F&, context&>, task<>>;

    template <class U>
    explicit function_model(U&& f) : function(std::forward<U>(f)) {}
    void attach([[maybe_unused]] context& c) override {
      if constexpr (!coroutine) function(c);
    }
    [[nodiscard]] bool is_coroutine() const noexcept override { return coroutine; }
    task<> run(context& c) override {
      if constexpr (coroutine)
        return function(c);
      else
        return model::run(c);
    }

    F function;
  };

  std::string name_;
  int priority_ = priority::reader;
  std::optional<trigger> trigger_;
  std::shared_ptr<model> self_;
};

/// An extension from a name and a class, a `shared_ptr` to one, or a callable that takes a `context&`.
template <class T>
  requires std::constructible_from<extension, std::string, T>
[[nodiscard]] extension make_extension(std::string name, T&& what) {
  return extension(std::move(name), std::forward<T>(what));
}

}  // namespace rondo

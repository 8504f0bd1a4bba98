#pragma once

#include <concepts>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "rondo/event/moment.hpp"
#include "rondo/state/value.hpp"

namespace rondo {

/// What a trigger is: asked exactly once per iteration, at its end, it says whether now is the time. (As a gate of
/// another event, `context::on<E>(trigger, …)`, it is asked once per emission instead.) It must be copyable (a copy has
/// its own memory) and printable. One that remembers anything also has `state_dict()` and `load_state_dict(const
/// state::value&)`.
template <class T>
concept trigger_like = requires(T t, const T c, const moment& now) {
  { t.due(now) } -> std::same_as<bool>;
  { c.str() } -> std::convertible_to<std::string>;
};

/// Any trigger, by value. Copying copies its memory too. Training thread only.
///
/// Ready-made ones: `every`, `at`, `once`, `time_interval`, `when`, `min_value`, `max_value`, `best_value`,
/// `early_stopping`; combined by `||`, `&&` and `!`. Both sides of `||` and `&&` are always asked, because a trigger
/// with memory has to see every iteration.
class trigger {
 public:
  template <class T>
    requires(!std::same_as<std::remove_cvref_t<T>, trigger> && trigger_like<std::remove_cvref_t<T>>)
  trigger(T&& concrete) : self_(std::make_unique<model<std::remove_cvref_t<T>>>(std::forward<T>(concrete))) {}

  trigger(const trigger& other) : self_(other.self_->clone()) {}
  trigger(trigger&&) noexcept = default;
  trigger& operator=(const trigger& other) {
    self_ = other.self_->clone();
    return *this;
  }
  trigger& operator=(trigger&&) noexcept = default;
  ~trigger() = default;

  /// Whether the trigger fires now. Ask once per iteration: the answer may use memory up.
  [[nodiscard]] bool due(const moment& now) { return self_->due(now); }
  /// For people: "every 2 epochs".
  [[nodiscard]] std::string str() const { return self_->str(); }

  /// Whether all ranks of a training come to the same answer by themselves, because it follows from iterations and
  /// epochs alone; rank 0 decides otherwise. A concrete trigger says so by a member `bool same_on_all_ranks() const`;
  /// default: no.
  [[nodiscard]] bool same_on_all_ranks() const { return self_->same_on_all_ranks(); }

  /// Whether it fires because of a value that was reported, such as a new best: a snapshot that it takes is not to be
  /// replaced at other moments. A concrete trigger says so by a member `bool judges_values() const`; default: no.
  [[nodiscard]] bool judges_values() const { return self_->judges_values(); }

  /// Of one that has fired, as a stop trigger, at the end of an earlier run: whether it would there, as it is set now.
  /// For a program that goes on with more patience or more epochs than before. Changes nothing. A concrete trigger says
  /// so by a member `bool holds(const moment&) const`; nothing for one that does not.
  [[nodiscard]] std::optional<bool> holds(const moment& now) const { return self_->holds(now); }

  /// The memory of the trigger; an empty dict for one that has none.
  [[nodiscard]] state::value state_dict() const { return self_->state_dict(); }
  void load_state_dict(const state::value& state) { self_->load_state_dict(state); }

 private:
  struct base {
    virtual ~base() = default;
    virtual bool due(const moment&) = 0;
    virtual std::string str() const = 0;
    virtual bool same_on_all_ranks() const = 0;
    virtual bool judges_values() const = 0;
    virtual std::optional<bool> holds(const moment&) const = 0;
    virtual state::value state_dict() const = 0;
    virtual void load_state_dict(const state::value&) = 0;
    virtual std::unique_ptr<base> clone() const = 0;
  };

  template <class T>
  struct model final : base {
    static constexpr bool remembers = requires(T t, const T c, const state::value& v) {
      { c.state_dict() } -> std::convertible_to<state::value>;
      t.load_state_dict(v);
    };
    static_assert(remembers || !requires(const T c) { c.state_dict(); },
                  "a trigger with state_dict() also needs load_state_dict(const state::value&)");
    static_assert(std::is_copy_constructible_v<T>, "a trigger must be copyable");

    template <class U>
    explicit model(U&& u) : concrete(std::forward<U>(u)) {}
    bool due(const moment& now) override { return concrete.due(now); }
    std::string str() const override { return concrete.str(); }
    bool same_on_all_ranks() const override {
      if constexpr (requires { concrete.same_on_all_ranks(); })
        return concrete.same_on_all_ranks();
      else
        return false;
    }
    bool judges_values() const override {
      if constexpr (requires { concrete.judges_values(); })
        return concrete.judges_values();
      else
        return false;
    }
    std::optional<bool> holds([[maybe_unused]] const moment& now) const override {
      if constexpr (requires { concrete.holds(now); })
        return concrete.holds(now);
      else
        return std::nullopt;
    }
    state::value state_dict() const override {
      if constexpr (remembers)
        return concrete.state_dict();
      else
        return state::dict();
    }
    void load_state_dict([[maybe_unused]] const state::value& state) override {
      if constexpr (remembers) concrete.load_state_dict(state);
    }
    std::unique_ptr<base> clone() const override { return std::make_unique<model>(concrete); }

    T concrete;
  };

  std::unique_ptr<base> self_;
};

/// Fires when either does.
[[nodiscard]] trigger operator||(trigger a, trigger b);
/// Fires when both do.
[[nodiscard]] trigger operator&&(trigger a, trigger b);
/// Fires when the other does not.
[[nodiscard]] trigger operator!(trigger a);
/// Never fires.
[[nodiscard]] trigger never();

}  // namespace rondo

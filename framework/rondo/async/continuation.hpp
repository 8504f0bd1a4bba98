#pragma once

#include <exception>
#include <type_traits>
#include <utility>

#include "rondo/async/detail/parked_continuation.hpp"

namespace rondo {

/// The rest of a suspended coroutine, to be resumed once: with the values `T...` or with an exception. Move-only and
/// type-erased; one allocation, which Asio recycles inside `run()`. Made by `park`.
///
/// Every member function belongs to the thread of the coroutine's event loop. A continuation that is destroyed without
/// having been called destroys its coroutine; one whose event loop was destroyed is empty.
template <class... T>
class continuation {
  using node = detail::continuation_node<T...>;
  using reference = detail::node_reference<T...>;

 public:
  /// The same resumption, seen from a cancellation slot, which may outlive the continuation.
  class observer {
   public:
    /// As for the continuation.
    explicit operator bool() const noexcept { return node_ && node_->armed(); }

    /// As `continuation::post`. The continuation becomes empty.
    void post(T... values) { node::post(node_, nullptr, std::move(values)...); }

    /// As `continuation::post_failure`. The continuation becomes empty.
    void post_failure(std::exception_ptr failure)
      requires(std::is_default_constructible_v<T> && ...)
    {
      node::post(node_, std::move(failure), T()...);
    }

   private:
    friend class continuation;
    explicit observer(reference observed) noexcept : node_(std::move(observed)) {}

    reference node_;
  };

  continuation() = default;

  /// `handler` takes `(std::exception_ptr, T...)`. With a `registry`, the event loop destroys the handler when it shuts
  /// down; without one, whoever owns the continuation must see to that.
  template <class Handler>
  continuation(Handler handler, detail::parked_registry* registry)
      : node_(new detail::continuation_model<Handler, T...>(std::move(handler))) {
    if (registry != nullptr) registry->add(*node_);
  }

  continuation(continuation&&) noexcept = default;
  continuation& operator=(continuation&& other) noexcept {
    const continuation old(std::exchange(node_, std::move(other.node_)));
    return *this;
  }
  ~continuation() {
    if (*this) node_->discard();
  }

  /// True while a coroutine is suspended here. A cancelled coroutine is not: its resumption is already under way.
  explicit operator bool() const noexcept { return node_ && node_->armed(); }

  /// Resumes the coroutine now, on this stack, and returns when it is suspended again or finished.
  void operator()(T... values) { node::resume(std::move(node_), nullptr, std::move(values)...); }

  /// Resumes the coroutine from the event loop.
  void post(T... values) { node::post(std::move(node_), nullptr, std::move(values)...); }

  /// Resumes the coroutine from the event loop by throwing `failure` from its await.
  void post_failure(std::exception_ptr failure)
    requires(std::is_default_constructible_v<T> && ...)
  {
    node::post(std::move(node_), std::move(failure), T()...);
  }

  /// A second handle on the same resumption.
  [[nodiscard]] observer observe() const noexcept { return observer(node_); }

 private:
  explicit continuation(reference taken) noexcept : node_(std::move(taken)) {}

  reference node_;
};

}  // namespace rondo

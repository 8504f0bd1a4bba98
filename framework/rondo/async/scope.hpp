#pragma once

#include <asio/associated_cancellation_slot.hpp>
#include <asio/associated_executor.hpp>
#include <asio/async_result.hpp>
#include <asio/bind_cancellation_slot.hpp>
#include <asio/cancellation_signal.hpp>
#include <asio/co_spawn.hpp>
#include <asio/post.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>
#include <concepts>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <list>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "rondo/async/continuation.hpp"
#include "rondo/async/detail/parked.hpp"
#include "rondo/async/park.hpp"
#include "rondo/async/task.hpp"

namespace rondo {
namespace detail {

/// What cannot be thrown, because the scope throws an earlier failure.
void log_later_failure(const std::exception_ptr& failure);

// What a scope shares with its children. When an event loop is destroyed half-way, frames die in an order that nobody
// controls; the joiner is therefore owned by the children's handlers (through this object), so that a coroutine
// suspended in join() is destroyed after all of its children:
//
//     frame of a child ── child_handler ──► scope_state ── joiner ── frame that called join() ── scope
//                                               ▲                                                 │
//                                               └─────────────────────────────────────────────────┘
class scope_state {
 public:
  using children = std::list<asio::cancellation_signal>;

  explicit scope_state(const executor& home) : registry_(registry_of(home)) {}

  children::iterator add() {
    joined_ = false;
    children_.emplace_back();
    return std::prev(children_.end());
  }

  void finished(children::iterator child, std::exception_ptr failure) {
    remove(child);
    const bool expected = cancelled_ && is_operation_aborted(failure);
    if (failure && !expected) fail(std::move(failure));
    if (children_.empty() && joiner_) joiner_.post();
  }

  void destroyed(children::iterator child) {
    if (!registry_->closed()) {
      finished(child, std::make_exception_ptr(std::logic_error(
                          "scope: a child was destroyed before it finished; what it waited in has been destroyed")));
      return;
    }
    remove(child);
    if (children_.empty()) continuation<>(std::move(joiner_));
  }

  void cancel() {
    cancelled_ = true;
    ++emitting_;
    for (auto& child : children_) child.emit(asio::cancellation_type::terminal);
    if (--emitting_ == 0) removed_.clear();
  }

  // Waits until no child is left. A cancelled joiner cancels the children and goes on waiting.
  task<> wait() {
    return asio::async_initiate<const asio::use_awaitable_t<>, void(std::exception_ptr)>(
        [this](auto handler) {
          auto slot = asio::get_associated_cancellation_slot(handler);
          joiner_ = continuation<>(std::move(handler), nullptr);
          if (!slot.is_connected()) return;
          slot.assign([this, waiting = joiner_.observe()](asio::cancellation_type_t) {
            if (!waiting) return;
            joiner_cancelled_ = true;
            cancel();
          });
        },
        asio::use_awaitable);
  }

  void rethrow() {
    joined_ = true;
    cancelled_ = false;
    const bool aborted = std::exchange(joiner_cancelled_, false);
    const std::exception_ptr failure = std::exchange(failure_, nullptr);
    if (failure) std::rethrow_exception(failure);
    if (aborted) std::rethrow_exception(operation_aborted());
  }

  [[nodiscard]] std::size_t size() const noexcept { return children_.size(); }
  [[nodiscard]] bool cancelled() const noexcept { return cancelled_; }
  [[nodiscard]] bool joining() const noexcept { return static_cast<bool>(joiner_); }
  [[nodiscard]] bool may_be_destroyed() const noexcept { return joined_ || registry_->closed(); }

 private:
  void fail(std::exception_ptr failure) {
    if (failure_) return log_later_failure(failure);
    failure_ = std::move(failure);
    cancel();
  }

  void remove(children::iterator child) {
    // A signal must not be destroyed while its emit() is on the stack.
    if (emitting_ > 0) {
      removed_.splice(removed_.end(), children_, child);
    } else {
      children_.erase(child);
    }
  }

  std::shared_ptr<parked_registry> registry_;
  children children_;
  children removed_;
  continuation<> joiner_;
  std::exception_ptr failure_;
  int emitting_ = 0;
  bool cancelled_ = false;
  bool joiner_cancelled_ = false;
  bool joined_ = true;
};

// Called when the child finishes; destroyed without having been called when the child is.
class child_handler {
 public:
  child_handler(std::shared_ptr<scope_state> state, scope_state::children::iterator child)
      : state_(std::move(state)), child_(child) {}
  child_handler(child_handler&&) = default;
  child_handler& operator=(child_handler&&) = delete;
  ~child_handler() {
    if (state_) state_->destroyed(child_);
  }

  void operator()(std::exception_ptr failure) {
    const std::shared_ptr<scope_state> state = std::move(state_);
    state->finished(child_, std::move(failure));
  }

 private:
  std::shared_ptr<scope_state> state_;
  scope_state::children::iterator child_;
};

// Older versions of Asio start a spawned coroutine inside co_spawn, newer ones do not: posting first makes it the same.
template <class F>
task<> run_child(F body) {
  co_await asio::post(asio::use_awaitable);
  co_await body();
}

}  // namespace detail

/// Runs coroutines side by side and waits for all of them: no child outlives its scope, no failure is lost.
///
/// The first child that fails cancels the others, and `join` rethrows its exception; later failures are logged. A child
/// that ends with `operation_aborted` after it was cancelled has not failed. Belongs to one event loop and its thread.
///
/// Every scope must be joined after its last `spawn`; destroying one that was not ends the program with a message,
/// unless its event loop is being destroyed. A coroutine that can be cancelled, or can throw, between `spawn` and
/// `join` cannot keep that promise: there `with_scope` does it.
class scope {
 public:
  explicit scope(executor home) : state_(std::make_shared<detail::scope_state>(home)), home_(std::move(home)) {}
  scope(const scope&) = delete;
  scope& operator=(const scope&) = delete;
  ~scope() {
    if (state_->may_be_destroyed()) return;
    std::fputs(
        "rondo::scope destroyed without join(): its children refer to what is about to disappear. "
        "Await join() on every path, or use with_scope().\n",
        stderr);
    std::terminate();
  }

  /// Starts `body()`, which returns a `task<>`, from the event loop (never inside `spawn`; in the order of the calls).
  /// The scope keeps `body` alive until the child has finished, so that a lambda coroutine may use its captures. In a
  /// scope that was cancelled the child is cancelled before it starts. Children may spawn siblings, also during `join`.
  template <class F>
    requires std::same_as<std::invoke_result_t<F&>, task<>>
  void spawn(F body) {
    const auto child = state_->add();
    asio::co_spawn(home_, detail::run_child<F>(std::move(body)),
                   asio::bind_cancellation_slot(child->slot(), detail::child_handler(state_, child)));
    if (state_->cancelled()) child->emit(asio::cancellation_type::terminal);
  }

  /// Cancels every child, present and future, until the scope is joined.
  void cancel() {
    const std::shared_ptr<detail::scope_state> state = state_;
    state->cancel();
  }

  /// The number of children that have not finished.
  [[nodiscard]] std::size_t size() const noexcept { return state_->size(); }

  /// Completes when no child is left; the scope is empty and uncancelled then and can be used again. Throws what the
  /// first failed child threw. Cancellation cancels the children, still waits for them, and then throws
  /// `operation_aborted` unless one failed. Throws std::logic_error when another coroutine is joining already.
  [[nodiscard]] task<> join() {
    if (state_->joining()) throw std::logic_error("scope: two coroutines join it; there can be one only");
    const bool busy = state_->size() > 0;
    if (busy) co_await state_->wait();
    state_->rethrow();
  }

 private:
  std::shared_ptr<detail::scope_state> state_;
  executor home_;
};

namespace detail {

template <class Body>
task<> scoped(Body body) {
  const executor home = co_await asio::this_coro::executor;
  scope children(home);
  children.spawn([&children, &body] { return body(children); });
  co_await children.join();
}

}  // namespace detail

/// Runs `body(scope&)`, which returns a `task<>`, as the first child of a new scope, and joins it whatever happens:
/// when the body throws, when a child fails (which cancels the body), when the caller is cancelled.
///
/// Completes when the body and all that it spawned have finished. Throws what the first of them threw. Cancellation
/// reaches all of them and is thrown on when they have finished.
///
/// `body` is a named closure, or one whose captures are trivially destructible: GCC 12 destroys the captures of a
/// temporary closure twice when it stands in a `co_await` expression.
template <class Body>
[[nodiscard]] task<> with_scope(Body&& body) {
  static_assert(std::is_lvalue_reference_v<Body> || std::is_trivially_destructible_v<Body>,
                "name the closure before the co_await expression and pass the name: GCC 12 destroys a temporary "
                "closure in a co_await expression twice");
  return detail::scoped<Body>(std::forward<Body>(body));
}

}  // namespace rondo

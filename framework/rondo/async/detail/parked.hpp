#pragma once

#include <asio/execution/context.hpp>
#include <asio/execution_context.hpp>
#include <asio/query.hpp>
#include <memory>

#include "rondo/async/task.hpp"

namespace rondo::detail {

/// A suspended coroutine that nothing in Asio knows of: its handler lies in one of our own objects. Those objects often
/// live in the frames of other suspended coroutines, so that an event loop destroyed half-way would leave cycles
/// behind. Therefore every one is listed with its execution context, which destroys the handlers when it shuts down:
///
///     execution_context ── parked_service ── parked_registry ── parked ── parked ── ...
///                                                                 │
///     mailbox, barrier, ... ── continuation ──────────────────────┘ owns the node; the node owns the handler,
///                                                                   the handler owns the coroutine's frames
class parked {
 public:
  parked() = default;
  parked(const parked&) = delete;
  parked& operator=(const parked&) = delete;

  /// Destroys the handler, and with it the coroutine, but not this node.
  virtual void abandon() noexcept = 0;

  void link(parked& head) noexcept {
    previous_ = &head;
    next_ = head.next_;
    next_->previous_ = this;
    head.next_ = this;
  }

  void unlink() noexcept {
    previous_->next_ = next_;
    next_->previous_ = previous_;
    previous_ = next_ = this;
  }

  [[nodiscard]] parked* next() const noexcept { return next_; }

 protected:
  ~parked() = default;

 private:
  parked* previous_ = this;
  parked* next_ = this;
};

/// All that is parked on one execution context.
class parked_registry {
 public:
  void add(parked& node) noexcept { node.link(head_); }

  /// True once the context began to shut down: whatever is destroyed from then on is abandoned, not misused.
  [[nodiscard]] bool closed() const noexcept { return closed_; }

  void close() noexcept {
    closed_ = true;
    while (head_.next() != &head_) {
      parked* node = head_.next();
      node->unlink();
      node->abandon();
    }
  }

 private:
  class list_head final : public parked {
   public:
    void abandon() noexcept override {}
  };

  list_head head_;
  bool closed_ = false;
};

/// Ties a registry to the lifetime of an execution context.
class parked_service final : public asio::execution_context::service {
 public:
  inline static asio::execution_context::id id;

  explicit parked_service(asio::execution_context& context) : service(context) {}

  [[nodiscard]] const std::shared_ptr<parked_registry>& registry() const noexcept { return registry_; }

 private:
  void shutdown() noexcept override { registry_->close(); }

  std::shared_ptr<parked_registry> registry_ = std::make_shared<parked_registry>();
};

[[nodiscard]] inline const std::shared_ptr<parked_registry>& registry_of(const executor& home) {
  asio::execution_context& context = asio::query(home, asio::execution::context);
  return asio::use_service<parked_service>(context).registry();
}

}  // namespace rondo::detail

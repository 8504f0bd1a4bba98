#pragma once

#include <asio/associated_executor.hpp>
#include <asio/post.hpp>
#include <asio/recycling_allocator.hpp>
#include <cstddef>
#include <exception>
#include <optional>
#include <utility>

#include "rondo/async/detail/parked.hpp"

namespace rondo::detail {

template <class... T>
class continuation_node;

// Counted, because the handler in a cancellation slot refers to the node as well and neither outlives the other for
// sure. Not atomic: both live on the thread of the event loop.
template <class... T>
class node_reference {
 public:
  using node = continuation_node<T...>;

  node_reference() = default;
  explicit node_reference(node* target) noexcept : target_(target) { acquire(); }
  node_reference(const node_reference& other) noexcept : target_(other.target_) { acquire(); }
  node_reference(node_reference&& other) noexcept : target_(std::exchange(other.target_, nullptr)) {}
  node_reference& operator=(node_reference other) noexcept {
    std::swap(target_, other.target_);
    return *this;
  }
  ~node_reference() {
    if (target_ != nullptr && --target_->references_ == 0) target_->destroy();
  }

  explicit operator bool() const noexcept { return target_ != nullptr; }
  node& operator*() const noexcept { return *target_; }
  node* operator->() const noexcept { return target_; }

 private:
  void acquire() noexcept {
    if (target_ != nullptr) ++target_->references_;
  }

  node* target_ = nullptr;
};

/// A stored handler of unknown type, to be called once.
template <class... T>
class continuation_node : public parked {
 public:
  [[nodiscard]] virtual bool armed() const noexcept = 0;

  void discard() noexcept {
    unlink();
    abandon();
  }

  static void resume(node_reference<T...> self, std::exception_ptr failure, T... values) {
    continuation_node& target = *self;
    target.unlink();
    target.do_resume(std::move(self), std::move(failure), std::move(values)...);
  }

  static void post(node_reference<T...> self, std::exception_ptr failure, T... values) {
    self->unlink();
    self->do_post(std::move(failure), std::move(values)...);
  }

 protected:
  ~continuation_node() = default;

 private:
  friend class node_reference<T...>;
  virtual void do_resume(node_reference<T...> self, std::exception_ptr failure, T... values) = 0;
  virtual void do_post(std::exception_ptr failure, T... values) = 0;
  virtual void destroy() noexcept = 0;

  std::size_t references_ = 0;
};

template <class Handler, class... T>
class continuation_model final : public continuation_node<T...> {
 public:
  explicit continuation_model(Handler handler) : handler_(std::move(handler)) {}

  static void* operator new(std::size_t size) { return asio::recycling_allocator<std::byte>().allocate(size); }
  static void operator delete(void* memory, std::size_t size) {
    asio::recycling_allocator<std::byte>().deallocate(static_cast<std::byte*>(memory), size);
  }

  [[nodiscard]] bool armed() const noexcept override { return handler_.has_value(); }
  void abandon() noexcept override {
    // Out of the node first: destroying a coroutine may come back here.
    std::optional<Handler> last(std::move(handler_));
    handler_.reset();
  }

 private:
  Handler take() {
    Handler taken = std::move(*handler_);
    handler_.reset();
    return taken;
  }

  void do_resume(node_reference<T...> self, std::exception_ptr failure, T... values) override {
    Handler handler = take();
    // Frees the node, so that the next wait of the resumed coroutine gets the same memory.
    self = node_reference<T...>();
    std::move(handler)(std::move(failure), std::move(values)...);
  }

  void do_post(std::exception_ptr failure, T... values) override {
    Handler handler = take();
    const auto home = asio::get_associated_executor(handler);
    asio::post(home,
               [handler = std::move(handler), failure = std::move(failure), ... values = std::move(values)]() mutable {
                 std::move(handler)(std::move(failure), std::move(values)...);
               });
  }

  void destroy() noexcept override { delete this; }

  std::optional<Handler> handler_;
};

}  // namespace rondo::detail

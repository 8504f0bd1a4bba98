#pragma once

#include <chrono>
#include <cstddef>
#include <list>
#include <memory>
#include <optional>
#include <utility>

#include "rondo/async/continuation.hpp"
#include "rondo/async/park.hpp"
#include "rondo/async/task.hpp"

namespace rondo {

/// Lets coroutines wait until nobody is a member any more. Belongs to one event loop and its thread; members may outlive
/// the group.
class wait_group {
  class state;

 public:
  /// Keeps the group from being empty for as long as it lives.
  class member;

  wait_group();
  wait_group(const wait_group&) = delete;
  wait_group& operator=(const wait_group&) = delete;

  /// A new member.
  [[nodiscard]] member join();
  [[nodiscard]] std::size_t size() const noexcept;

  /// Completes when there is no member; at once if there is none, otherwise from the event loop. Members that join
  /// meanwhile are waited for as well. Cancellation throws `operation_aborted`.
  [[nodiscard]] task<> empty();

 private:
  std::shared_ptr<state> state_;
};

// Shared with members and waiting coroutines: when an event loop is destroyed half-way, frames die in any order.
class wait_group::state {
 public:
  using clock = std::chrono::steady_clock;

  void add() noexcept { ++size_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

  [[nodiscard]] continuation<>& wait() {
    if (!waited_since_) waited_since_ = clock::now();
    return waiting_.emplace_back();
  }

  /// The seconds that somebody has waited, if this was the last member.
  double remove() {
    if (--size_ > 0) return 0.0;
    bool somebody_waits = false;  // and was not cancelled meanwhile
    for (auto& each : std::exchange(waiting_, {})) {
      if (!each) continue;
      somebody_waits = true;
      each.post();
    }
    const auto since = std::exchange(waited_since_, std::nullopt);
    return somebody_waits && since ? std::chrono::duration<double>(clock::now() - *since).count() : 0.0;
  }

 private:
  std::size_t size_ = 0;
  std::list<continuation<>> waiting_;
  std::optional<clock::time_point> waited_since_;
};

class wait_group::member {
 public:
  member() = default;
  member(member&&) noexcept = default;
  member& operator=(member&& other) {
    leave();
    state_ = std::move(other.state_);
    return *this;
  }
  ~member() { leave(); }

  /// Ends the membership early. Gives the seconds that somebody has waited for the group to become empty, if this was
  /// the last member.
  double leave() {
    const auto state = std::exchange(state_, nullptr);
    return state ? state->remove() : 0.0;
  }

 private:
  friend class wait_group;
  explicit member(std::shared_ptr<state> joined) noexcept : state_(std::move(joined)) { state_->add(); }

  std::shared_ptr<state> state_;
};

inline wait_group::wait_group() : state_(std::make_shared<state>()) {}

inline auto wait_group::join() -> member { return member(state_); }

inline std::size_t wait_group::size() const noexcept { return state_->size(); }

inline task<> wait_group::empty() {
  const std::shared_ptr<state> shared = state_;
  while (shared->size() > 0) co_await park(shared->wait());
}

}  // namespace rondo

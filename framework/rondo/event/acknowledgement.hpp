#pragma once

#include "rondo/async/continuation.hpp"
#include "rondo/async/task.hpp"

namespace rondo {

/// What a listener coroutine owes to the emitter of the event that it is working on.
class acknowledgement {
 public:
  /// The listener has been given an event.
  void owe() noexcept { owed_ = true; }
  [[nodiscard]] bool owed() const noexcept { return owed_; }

  /// The listener is done with its event. A waiting emitter is resumed from the event loop, never inline: the listener
  /// is about to wait for its next event, and an emitter that overtook it would find nobody waiting.
  void settle();

  /// Completes when the listener has settled; at once if it owes nothing. One waiter at a time. Cancellation ends the
  /// wait with `operation_aborted`.
  [[nodiscard]] task<> settled();

 private:
  bool owed_ = false;
  continuation<> waiter_;
};

}  // namespace rondo

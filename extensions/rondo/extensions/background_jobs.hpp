#pragma once

#include <deque>
#include <functional>
#include <optional>

#include "rondo/async/task.hpp"
#include "rondo/async/wait_group.hpp"
#include "rondo/async/worker.hpp"

namespace rondo {
class context;
}

namespace rondo::extensions {

/// Work that an extension has done on a thread of its own while training goes on, one piece after the other. What a
/// piece throws ends training with that error, and what waits behind it is dropped. Belongs to the training thread.
class background_jobs {
 public:
  /// Does `job` when all earlier ones are done. `job` owns what it uses.
  void add(context& ctx, std::function<void()> job);
  /// Completes when nothing is left to do; for the end of training.
  [[nodiscard]] task<> finished() { return busy_.empty(); }

 private:
  [[nodiscard]] task<> work();

  std::deque<std::function<void()>> waiting_;
  std::optional<wait_group::member> at_work_;
  wait_group busy_;
  worker thread_;
};

}  // namespace rondo::extensions

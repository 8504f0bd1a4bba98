#pragma once

#include <chrono>
#include <memory>
#include <vector>

namespace rondo::detail {

/// Ends the process when it has not ended by itself within `limit` after one of `signals` has arrived: for a training
/// thread that hangs where nothing can be broken off. Watches from a thread of its own. The process ends as by `_exit`
/// with status `exit_code_too_late`, after a message on stderr: files that are being written are left under their
/// temporary names, those that are complete stay.
class grace_period {
 public:
  /// Throws `option_error` when `limit` is not positive, std::system_error when there can be no thread.
  grace_period(const std::vector<int>& signals, std::chrono::nanoseconds limit);
  grace_period(const grace_period&) = delete;
  grace_period& operator=(const grace_period&) = delete;
  /// Ends the watch.
  ~grace_period();

 private:
  class watch;
  std::unique_ptr<watch> watch_;
};

}  // namespace rondo::detail

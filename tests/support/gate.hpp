#pragma once

#include <condition_variable>
#include <mutex>

namespace rondo::testing {

/// Holds threads up until the test lets them pass.
class gate {
 public:
  /// On the thread that is to be held up.
  void pass() {
    std::unique_lock lock(mutex_);
    ++arrived_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_; });
  }

  /// Lets everybody pass, now and later.
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

  /// Waits until so many have arrived.
  void await_arrival(int number = 1) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return arrived_ >= number; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int arrived_ = 0;
  bool open_ = false;
};

}  // namespace rondo::testing

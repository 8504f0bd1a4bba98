#pragma once

#include <chrono>
#include <ctime>

namespace rondo::testing {

/// What the calling thread has used of processors: a limit on it is one on work, however busy the machine is.
[[nodiscard]] inline std::chrono::duration<double> processor_time() {
  std::timespec used{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
  return std::chrono::seconds(used.tv_sec) + std::chrono::nanoseconds(used.tv_nsec);
}

}  // namespace rondo::testing

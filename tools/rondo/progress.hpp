#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace rondo::tool {

/// A line on stderr about work that takes longer than half a second, such as "verifying snapshot: 1.2 GB of 10.0 GB".
/// It is there only when stderr is a terminal, and goes away with the object.
class progress {
 public:
  /// `what` is shown before the numbers and must be printable. `total` is in bytes, 0 where it is not known.
  progress(std::string what, std::uint64_t total);
  progress(const progress&) = delete;
  progress& operator=(const progress&) = delete;
  ~progress();

  /// So many bytes more are done.
  void advance(std::uint64_t bytes);

 private:
  void draw();

  using clock = std::chrono::steady_clock;
  std::string what_;
  std::uint64_t total_;
  std::uint64_t done_ = 0;
  clock::time_point next_;
  bool wanted_;
  bool drawn_ = false;
};

}  // namespace rondo::tool

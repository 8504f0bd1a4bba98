#pragma once

#include <cstdint>
#include <filesystem>
#include <new>
#include <string>

namespace rondo::writing {

/// How much memory can be had without somebody being killed for it, and what says so.
struct available_memory {
  std::uint64_t bytes = 0;
  std::string limited_by;  ///< for people: "the machine", "the control group /sys/fs/cgroup/…", "RLIMIT_AS"
};

/// The smallest of what the machine has (Linux: MemAvailable and SwapFree of /proc/meminfo), what the control groups of
/// this process leave (version 1 and 2, each group on the way to the root; memory that holds cached files counts as
/// free), and what is left to RLIMIT_AS. Where nothing says anything, everything. `root` stands for "/", for tests.
[[nodiscard]] available_memory find_available_memory(const std::filesystem::path& root = "/");

/// There is not enough memory. Thrown before any is used, as the kernel would kill the process for it.
class memory_shortage : public std::bad_alloc {
 public:
  memory_shortage(std::uint64_t needed, const available_memory& available);
  [[nodiscard]] const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

}  // namespace rondo::writing

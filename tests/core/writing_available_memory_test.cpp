#include "rondo/writing/available_memory.hpp"

#include <sys/resource.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include "rondo/writing/memory_block.hpp"
#include "support/catch.hpp"
#include "support/temporary_directory.hpp"

namespace writing_available_memory_test {

using namespace rondo::writing;
using rondo::testing::temporary_directory;

namespace {

constexpr std::uint64_t mebibyte = std::uint64_t{1} << 20U;

/// A system of a few files.
class machine {
 public:
  void file(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories((root_ / name).parent_path());
    std::ofstream(root_ / name) << text << '\n';
  }
  [[nodiscard]] available_memory look() const { return find_available_memory(root_.path()); }

  machine() { file("proc/meminfo", "MemTotal: 9999999 kB\nMemAvailable:    1024000 kB\nSwapFree: 1024 kB"); }

 private:
  temporary_directory root_;
};

}  // namespace

TEST_CASE("where nothing limits memory, it is the machine's", "[writing][memory]") {
  const machine m;
  CHECK(m.look().bytes == (1024000 + 1024) * std::uint64_t{1024});
  CHECK(m.look().limited_by == "the machine");
}

TEST_CASE("a control group of version 2 counts, and those that it is in", "[writing][memory]") {
  const machine m;
  m.file("proc/self/cgroup", "0::/user/job");
  m.file("sys/fs/cgroup/user/job/memory.max", "max");
  m.file("sys/fs/cgroup/user/job/memory.current", std::to_string(100 * mebibyte));
  CHECK(m.look().limited_by == "the machine");
  m.file("sys/fs/cgroup/user/memory.max", std::to_string(300 * mebibyte));
  m.file("sys/fs/cgroup/user/memory.current", std::to_string(200 * mebibyte));
  CHECK(m.look().bytes == 100 * mebibyte);
  m.file("sys/fs/cgroup/user/memory.stat", "anon 5\ninactive_file " + std::to_string(50 * mebibyte));
  CHECK(m.look().bytes == 150 * mebibyte);
  CHECK(m.look().limited_by.find("cgroup/user") != std::string::npos);
  m.file("sys/fs/cgroup/user/job/memory.max", std::to_string(99 * mebibyte));  // less than is used already
  CHECK(m.look().bytes == 0);
}

TEST_CASE("a group without a limit of its own has that of the one it is in", "[writing][memory]") {
  const machine m;
  m.file("proc/self/cgroup", "0::/user/service/scope");
  m.file("sys/fs/cgroup/user/service/scope/cgroup.procs", "1");  // no memory controller here
  m.file("sys/fs/cgroup/user/memory.max", std::to_string(80 * mebibyte));
  m.file("sys/fs/cgroup/user/memory.current", std::to_string(30 * mebibyte));
  CHECK(m.look().bytes == 50 * mebibyte);
}

TEST_CASE("a limit of the address space counts, less what is used of it", "[writing][memory]") {
  const temporary_directory root;  // a machine that says nothing else
  std::filesystem::create_directories(root / "proc/self");
  std::ofstream(root / "proc/self/status") << "Name:\tprogram\nVmPeak:\t 9000 kB\nVmSize:\t 2048 kB\n";
  struct rlimit before {};
  REQUIRE(::getrlimit(RLIMIT_AS, &before) == 0);
  struct rlimit limited = before;
  limited.rlim_cur = std::uint64_t{1} << 50U;
  REQUIRE(::setrlimit(RLIMIT_AS, &limited) == 0);
  const auto found = find_available_memory(root.path());
  ::setrlimit(RLIMIT_AS, &before);
  CHECK(found.bytes == (std::uint64_t{1} << 50U) - 2 * mebibyte);
  CHECK(found.limited_by == "RLIMIT_AS");
}

TEST_CASE("a container sees its own group as the root", "[writing][memory]") {
  const machine m;
  m.file("proc/self/cgroup", "0::/somewhere/on/the/host");
  m.file("sys/fs/cgroup/memory.max", std::to_string(64 * mebibyte));
  m.file("sys/fs/cgroup/memory.current", std::to_string(4 * mebibyte));
  CHECK(m.look().bytes == 60 * mebibyte);
}

TEST_CASE("a control group of version 1 counts", "[writing][memory]") {
  const machine m;
  m.file("proc/self/cgroup", "9:cpu,cpuacct:/other\n4:memory:/docker/abc\n0::/");
  m.file("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712");
  m.file("sys/fs/cgroup/memory/memory.usage_in_bytes", "4096");
  CHECK(m.look().limited_by == "the machine");
  m.file("sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", std::to_string(200 * mebibyte));
  m.file("sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes", std::to_string(150 * mebibyte));
  m.file("sys/fs/cgroup/memory/docker/abc/memory.stat", "total_inactive_file " + std::to_string(10 * mebibyte));
  CHECK(m.look().bytes == 60 * mebibyte);
}

TEST_CASE("what nobody knows anything of is no limit", "[writing][memory]") {
  const temporary_directory nothing;
  CHECK(find_available_memory(nothing.path()).bytes == std::numeric_limits<std::uint64_t>::max());
}

TEST_CASE("a block that no limit leaves room for is refused before it is touched, with the reason",
          "[writing][memory]") {
  try {
    const memory_block block(std::size_t{1} << 50U);
    FAIL("there is no such machine");
  } catch (const memory_shortage& e) {
    CHECK(std::string(e.what()).find("1073741824 MiB are needed") != std::string::npos);
    CHECK(std::string(e.what()).find("leaves") != std::string::npos);
  }
}

}  // namespace writing_available_memory_test

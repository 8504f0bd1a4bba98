#include "rondo/writing/available_memory.hpp"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string_view>
#include <utility>

namespace rondo::writing {

namespace {

constexpr auto everything = std::numeric_limits<std::uint64_t>::max();
// Version 1 says "no limit" by a number of pages that no machine has.
constexpr std::uint64_t no_limit = std::uint64_t{1} << 60U;

/// The number that is all of a file; "max" is everything.
std::optional<std::uint64_t> number_in(const std::filesystem::path& file) {
  std::ifstream from(file);
  std::string word;
  if (!(from >> word)) return std::nullopt;
  if (word == "max") return everything;
  std::istringstream text(word);
  std::uint64_t number = 0;
  if (!(text >> number)) return std::nullopt;
  return number;
}

/// Of a file with a name and a value in each line, the number after `name`; 0 if there is none.
std::uint64_t entry_of(const std::filesystem::path& file, std::string_view name) {
  std::ifstream from(file);
  for (std::string line; std::getline(from, line);) {
    std::istringstream words(line);
    std::string word;
    std::uint64_t value = 0;
    if (words >> word && word == name && words >> value) return value;
  }
  return 0;
}

std::optional<std::uint64_t> left_to_machine(const std::filesystem::path& root) {
  std::ifstream about(root / "proc/meminfo");
  std::uint64_t kibibytes = 0;
  bool known = false;
  std::string name;
  for (std::uint64_t value = 0; about >> name >> value;
       about.ignore(std::numeric_limits<std::streamsize>::max(), '\n')) {
    if (name == "MemAvailable:" || name == "SwapFree:") kibibytes += value;
    known = known || name == "MemAvailable:";
  }
  if (!known) return std::nullopt;
  return kibibytes * 1024;
}

/// Where a version of control groups keeps its numbers.
struct files_of_version {
  const char* limit;
  const char* usage;
  const char* cache;  ///< in memory.stat
};
constexpr files_of_version version_1 = {"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"};
constexpr files_of_version version_2 = {"memory.max", "memory.current", "inactive_file"};

std::optional<std::uint64_t> left_to_group(const std::filesystem::path& group, const files_of_version& files) {
  const auto limit = number_in(group / files.limit);
  const auto usage = number_in(group / files.usage);
  if (!limit || !usage || *limit >= no_limit) return std::nullopt;
  const auto used = *usage - std::min(*usage, entry_of(group / "memory.stat", files.cache));
  return *limit - std::min(*limit, used);
}

class search {
 public:
  explicit search(std::filesystem::path root) : root_(std::move(root)) {}

  void consider(std::optional<std::uint64_t> bytes, const std::string& limited_by) {
    if (bytes && *bytes < found_.bytes) found_ = {*bytes, limited_by};
  }

  /// A group and those that it is in. Inside a container the path may be one that is not seen there: then the mount
  /// itself is the group.
  void consider_groups(const std::filesystem::path& mount, std::string_view name, const files_of_version& files) {
    auto group = mount;
    group += name;
    if (!exists(group)) group = mount;
    for (;; group = group.parent_path()) {
      consider(left_to_group(group, files), "the control group " + group.string());
      if (group == mount || group.string().size() <= mount.string().size()) return;
    }
  }

  void consider_groups_of_process() {
    std::ifstream about(root_ / "proc/self/cgroup");
    const auto mounts = root_ / "sys/fs/cgroup";
    for (std::string line; std::getline(about, line);) {
      const auto first = line.find(':');
      const auto second = line.find(':', first + 1);
      if (first == std::string::npos || second == std::string::npos) continue;
      const std::string_view controllers = std::string_view(line).substr(first + 1, second - first - 1);
      std::string_view name = std::string_view(line).substr(second + 1);
      if (name == "/") name = {};
      if (controllers == "memory")
        consider_groups(mounts / "memory", name, version_1);
      else if (controllers.empty())
        consider_groups(mounts, name, version_2);
    }
  }

  void consider_address_space() {
    struct rlimit limit {};
    if (::getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return;
    const auto used = entry_of(root_ / "proc/self/status", "VmSize:") * 1024;
    consider(limit.rlim_cur - std::min<std::uint64_t>(limit.rlim_cur, used), "RLIMIT_AS");
  }

  [[nodiscard]] const available_memory& found() const noexcept { return found_; }

 private:
  static bool exists(const std::filesystem::path& file) {
    std::error_code ignored;
    return std::filesystem::exists(file, ignored);
  }

  std::filesystem::path root_;
  available_memory found_{everything, "nothing"};
};

std::string mebibytes(std::uint64_t bytes) { return fmt::format("{} MiB", bytes >> 20U); }

}  // namespace

available_memory find_available_memory(const std::filesystem::path& root) {
  search smallest(root);
  smallest.consider(left_to_machine(root), "the machine");
  smallest.consider_groups_of_process();
  smallest.consider_address_space();
  return smallest.found();
}

memory_shortage::memory_shortage(std::uint64_t needed, const available_memory& available)
    : message_(fmt::format("{} are needed, and {} leaves {}; for snapshots, a writer without a copy in memory "
                           "(writers::simple) needs none, and a smaller capacity of a writer's memory less",
                           mebibytes(needed), available.limited_by, mebibytes(available.bytes))) {}

}  // namespace rondo::writing

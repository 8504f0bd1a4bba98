#include "rondo/writing/temporary_name.hpp"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <string>
#include <system_error>

namespace rondo::writing {

namespace {

constexpr std::string_view marker = ".tmp-";
constexpr std::size_t host_digits = 6;
constexpr std::size_t start_digits = 5;
constexpr std::size_t number_digits = 5;
constexpr std::size_t all_digits = host_digits + start_digits + number_digits;

constexpr std::uint64_t mask_of(std::size_t digits) { return (std::uint64_t{1} << (4 * digits)) - 1; }

/// FNV-1a; std::hash need not be the same in two programs.
std::uint64_t hash_of(std::string_view text) {
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3U;
  return hash ^ (hash >> 32U);
}

std::string content_of(const char* file) {
  std::ifstream from(file);
  return {std::istreambuf_iterator<char>(from), {}};
}

std::uint64_t this_host() {
  static const std::uint64_t host = [] {
    std::array<char, 256> name{};
    ::gethostname(name.data(), name.size() - 1);
    std::error_code unknown;
    const auto processes = std::filesystem::read_symlink("/proc/self/ns/pid", unknown);
    return hash_of(content_of("/proc/sys/kernel/random/boot_id") + processes.string() + name.data()) &
           mask_of(host_digits);
  }();
  return host;
}

/// Of a process on this host. `start` is 0 where it cannot be known.
struct process_about {
  bool runs = false;
  std::uint64_t start = 0;
};

process_about look_at(pid_t process) {
  if (::kill(process, 0) != 0 && errno == ESRCH) return {};
  // "pid (name) state …", where a name may hold anything; the start is the 22nd field.
  const auto text = content_of(fmt::format("/proc/{}/stat", process).c_str());
  const auto end_of_name = text.rfind(')');
  if (end_of_name == std::string::npos || end_of_name + 2 >= text.size()) return {true, 0};
  const char state = text[end_of_name + 2];
  if (state == 'Z' || state == 'X') return {};
  std::string_view rest = std::string_view(text).substr(end_of_name + 2);
  for (int field = 3; field < 22 && !rest.empty(); ++field)
    rest.remove_prefix(std::min(rest.find(' ') + 1, rest.size()));
  std::uint64_t ticks = 0;
  std::from_chars(rest.data(), rest.data() + rest.size(), ticks);
  return {true, ticks == 0 ? 0 : std::max<std::uint64_t>(ticks & mask_of(start_digits), 1)};
}

std::optional<std::uint64_t> number_in(std::string_view hexadecimal) {
  if (hexadecimal.find_first_not_of("0123456789abcdef") != std::string_view::npos) return std::nullopt;
  std::uint64_t number = 0;
  std::from_chars(hexadecimal.data(), hexadecimal.data() + hexadecimal.size(), number, 16);
  return number;
}

}  // namespace

std::string temporary_name(const std::filesystem::path& target, pid_t process) {
  static std::atomic<std::uint64_t> names{hash_of(std::to_string(::getpid()))};
  return fmt::format(".{}{}{}-{:06x}{:05x}{:05x}", target.filename().string(), marker, process, this_host(),
                     look_at(process).start, ++names & mask_of(number_digits));
}

std::optional<temporary_owner> owner_of(std::string_view name) {
  const auto at = name.rfind(marker);
  if (at == std::string_view::npos || at < 2 || name.front() != '.') return std::nullopt;
  const auto rest = name.substr(at + marker.size());
  const auto dash = rest.find('-');
  if (dash == std::string_view::npos) return std::nullopt;
  pid_t process = 0;
  const auto parsed = std::from_chars(rest.data(), rest.data() + dash, process);
  if (parsed.ec != std::errc() || parsed.ptr != rest.data() + dash || process <= 0) return std::nullopt;
  const auto digits = rest.substr(dash + 1);
  if (digits.size() != all_digits || !number_in(digits)) return std::nullopt;

  using state = temporary_owner::state;
  if (number_in(digits.substr(0, host_digits)) != this_host()) return temporary_owner{process, state::elsewhere};
  const auto about = look_at(process);
  const auto start = *number_in(digits.substr(host_digits, start_digits));
  const bool same = about.runs && (start == about.start || start == 0 || about.start == 0);
  if (!same) return temporary_owner{process, state::gone};
  return temporary_owner{process, process == ::getpid() ? state::here : state::running};
}

}  // namespace rondo::writing

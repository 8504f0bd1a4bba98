#include "rondo/extensions/snapshot/sharded_directory.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <stdio.h>

#include <cerrno>
#include <cstdint>
#include <random>
#include <string_view>
#include <system_error>

#include "rondo/checkpoint/planner.hpp"
#include "rondo/checkpoint/sharded.hpp"
#include "rondo/error.hpp"
#include "rondo/log.hpp"
#include "rondo/writing/atomic_file.hpp"
#include "rondo/writing/file_system.hpp"

namespace rondo::extensions {

namespace {

constexpr std::string_view marker = ".tmp-";
constexpr std::size_t digits = 16;

std::string new_attempt() {
  std::random_device random;
  return fmt::format("{:016x}", std::uint64_t{random()} << 32U | random());
}

bool is_attempt(const std::string& name) {
  const auto at = name.rfind(marker);
  if (at == std::string::npos || at < 2 || name.front() != '.') return false;
  const auto attempt = std::string_view(name).substr(at + marker.size());
  return attempt.size() == digits && attempt.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

io_error failure(const char* operation, const std::filesystem::path& path) {
  return {operation, path, std::error_code(errno, std::generic_category())};
}

/// Swaps two names in one step. False where that is not possible.
bool swap_names(const std::filesystem::path& a, const std::filesystem::path& b) {
  if (::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0) return true;
  if (errno == EINVAL || errno == ENOSYS || errno == ENOTSUP) return false;
  throw failure("rename", b);
}

void give_name(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) throw failure("rename", to);
}

void remove_quietly(const std::filesystem::path& path) noexcept {
  std::error_code failed;
  std::filesystem::remove_all(path, failed);
  if (failed) log::warn(fmt::format("'{}' cannot be removed: {}", path.string(), failed.message()));
}

}  // namespace

std::filesystem::path attempt_directory(const std::filesystem::path& target, const std::string& attempt) {
  return writing::directory_of(target) / fmt::format(".{}{}{}", target.filename().string(), marker, attempt);
}

std::string begin_attempt(const std::filesystem::path& target) {
  const auto files = writing::posix_file_system();
  writing::create_directories(*files, writing::directory_of(target));
  auto attempt = new_attempt();
  files->create_directory(attempt_directory(target, attempt));
  return attempt;
}

std::int64_t number_of_attempt(const std::string& attempt) {
  return static_cast<std::int64_t>(std::stoull(attempt, nullptr, 16));
}

void require_parts(const std::filesystem::path& target, const std::string& attempt, std::size_t ranks) {
  const auto directory = attempt_directory(target, attempt);
  for (std::size_t rank = 0; rank < ranks; ++rank)
    if (!std::filesystem::is_regular_file(directory / std::to_string(rank)))
      throw error(fmt::format(
          "'{}' lacks the part of rank {}, which has written it elsewhere: all ranks need the same out directory, on a "
          "file system that they share, and a filename that gives the same name on each",
          target.string(), rank));
}

void complete_attempt(const std::filesystem::path& target, const std::string& attempt, const state::value& index,
                      const checkpoint::snapshot_info& info) {
  checkpoint::planner planner;
  planner.plan(index, info);
  const auto write = [&](const writing::append_function& append) { planner.file().write(append); };
  writing::write_atomically(*writing::posix_file_system(),
                            attempt_directory(target, attempt) / checkpoint::sharded_index, planner.file().size(),
                            write);
}

void commit_attempt(const std::filesystem::path& target, const std::string& attempt) {
  const auto files = writing::posix_file_system();
  const auto whole = attempt_directory(target, attempt);
  std::filesystem::path earlier;
  if (files->kind(target) == writing::file_kind::none) {
    give_name(whole, target);
  } else if (swap_names(whole, target)) {
    earlier = whole;
  } else {
    earlier = attempt_directory(target, new_attempt());
    give_name(target, earlier);
    give_name(whole, target);
  }
  files->sync_directory(writing::directory_of(target));
  if (!earlier.empty()) remove_quietly(earlier);
}

void discard_attempt(const std::filesystem::path& target, const std::string& attempt) noexcept {
  remove_quietly(attempt_directory(target, attempt));
}

void remove_sharded(const std::filesystem::path& snapshot) {
  const auto hidden = attempt_directory(snapshot, new_attempt());
  give_name(snapshot, hidden);
  writing::posix_file_system()->sync_directory(writing::directory_of(snapshot));
  remove_quietly(hidden);
}

void remove_stale_attempts(const std::filesystem::path& directory) noexcept {
  try {
    for (const auto& entry : writing::posix_file_system()->list(directory))
      if (entry.kind == writing::file_kind::directory && is_attempt(entry.name)) remove_quietly(directory / entry.name);
  } catch (const std::exception& e) {
    log::warn(fmt::format("what earlier runs have left in '{}' cannot be removed: {}", directory.string(), e.what()));
  }
}

}  // namespace rondo::extensions

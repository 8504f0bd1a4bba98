#include "rondo/writing/posix.hpp"

#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <system_error>

#include "rondo/writing/file_system.hpp"

namespace rondo::writing::posix {

io_error failure(const std::string& operation, const path& file, int code, const std::string& advice) {
  return {operation, file, std::error_code(code, std::generic_category()), advice};
}

std::uint64_t available_bytes(const path& file) {
  struct statvfs about {};
  const bool known = ::statvfs(directory_of(file).c_str(), &about) == 0;
  return known ? static_cast<std::uint64_t>(about.f_bavail) * about.f_frsize : 0;
}

std::string advice_for(int code, const path& file, std::uint64_t needed) {
  if (code == ENOSPC) {
    return fmt::format("{} bytes needed, {} available: free some space or keep fewer files", needed,
                       available_bytes(file));
  }
  if (code == EDQUOT) return fmt::format("{} bytes needed, more than the disk quota leaves", needed);
  if (code == EFBIG) return fmt::format("{} bytes needed, more than the limit on file sizes (ulimit -f)", needed);
  return "";
}

bool is_open_here(const path& file) {
  struct stat wanted {};
  if (::stat(file.c_str(), &wanted) != 0) return false;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd", ignored)) {
    struct stat found {};
    // Follows the link to what is open; the descriptor that lists the directory is closed again by the end.
    if (::stat(entry.path().c_str(), &found) != 0) continue;
    if (found.st_dev == wanted.st_dev && found.st_ino == wanted.st_ino) return true;
  }
  return false;
}

descriptor::~descriptor() {
  if (value_ >= 0) ::close(value_);
}

}  // namespace rondo::writing::posix

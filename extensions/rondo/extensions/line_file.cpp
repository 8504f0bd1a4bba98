#include "rondo/extensions/line_file.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string>
#include <system_error>
#include <utility>

#include "rondo/error.hpp"

namespace rondo::extensions {

namespace {

io_error failure(const char* operation, const std::filesystem::path& path, int reason, const std::string& advice = "") {
  return io_error(operation, path, std::error_code(reason, std::system_category()), advice);
}

/// Calls a system function again as long as a signal interrupts it.
template <class F>
auto uninterrupted(F call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

/// Throws unless the open file is a regular one that nobody else has open as a `line_file`.
void claim(int descriptor, const std::filesystem::path& path) {
  struct stat status {};
  if (::fstat(descriptor, &status) != 0) throw failure("fstat", path, errno);
  if (!S_ISREG(status.st_mode)) throw failure("open", path, EINVAL, "it is not a regular file; choose another name");
  if (uninterrupted([&] { return ::flock(descriptor, LOCK_EX | LOCK_NB); }) == 0) return;
  if (errno == EWOULDBLOCK)
    throw failure("lock", path, errno, "it is being written already; give each log a file of its own");
}

}  // namespace

line_file::line_file(std::filesystem::path path) : path_(std::move(path)) {
  constexpr int flags = O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
  descriptor_ = uninterrupted([&] { return ::open(path_.c_str(), flags, 0666); });
  if (descriptor_ < 0) {
    const int reason = errno;
    throw failure("open", path_, reason, reason == ELOOP ? "it is a symbolic link, which is not followed" : "");
  }
  try {
    claim(descriptor_, path_);
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

line_file::~line_file() { ::close(descriptor_); }

std::int64_t line_file::size() const {
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0) throw failure("fstat", path_, errno);
  return status.st_size;
}

std::int64_t line_file::whole_lines(std::int64_t limit) const {
  std::array<char, 4096> chunk;
  std::int64_t end = std::min(limit, size());
  while (end > 0) {
    const std::int64_t begin = std::max<std::int64_t>(0, end - static_cast<std::int64_t>(chunk.size()));
    const auto wanted = static_cast<std::size_t>(end - begin);
    const auto got = uninterrupted([&] { return ::pread(descriptor_, chunk.data(), wanted, begin); });
    if (got != static_cast<ssize_t>(wanted)) throw failure("read", path_, got < 0 ? errno : EIO);
    const auto newline = std::string_view(chunk.data(), wanted).rfind('\n');
    if (newline != std::string_view::npos) return begin + static_cast<std::int64_t>(newline) + 1;
    end = begin;
  }
  return 0;
}

void line_file::truncate(std::int64_t size) {
  if (uninterrupted([&] { return ::ftruncate(descriptor_, size); }) != 0) throw failure("truncate", path_, errno);
}

void line_file::append(std::string_view line) {
  while (!line.empty()) {
    const auto written = uninterrupted([&] { return ::write(descriptor_, line.data(), line.size()); });
    if (written < 0) throw failure("write", path_, errno);
    line.remove_prefix(static_cast<std::size_t>(written));
  }
}

}  // namespace rondo::extensions

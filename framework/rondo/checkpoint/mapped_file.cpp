#include "rondo/checkpoint/mapped_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <vector>

#include "rondo/error.hpp"

namespace rondo::checkpoint {

namespace {

[[noreturn]] void fail_to(const char* operation, const std::filesystem::path& path, const char* advice = "") {
  throw io_error(operation, path, std::error_code(errno, std::generic_category()), advice);
}

}  // namespace

mapped_file::mapped_file(const std::filesystem::path& path) : path_(path) {
  // Not blocking, because opening a FIFO would wait for a writer.
  file_ = ::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (file_ < 0) fail_to("open", path, errno == ELOOP ? "symbolic links are not followed" : "");
  // Files are mostly read from beginning to end. Only a hint.
  static_cast<void>(::posix_fadvise(file_, 0, 0, POSIX_FADV_SEQUENTIAL));
  try {
    map();
  } catch (...) {
    ::close(file_);
    throw;
  }
}

mapped_file::~mapped_file() {
  ::munmap(start_, size_);
  ::close(file_);
}

void mapped_file::map() {
  struct stat status {};
  if (::fstat(file_, &status) != 0) fail_to("examine", path_);
  if (!S_ISREG(status.st_mode)) throw format_error(path_.string(), 0, "this is not a regular file");
  if (status.st_size == 0) throw format_error(path_.string(), 0, "the file is empty");
  size_ = static_cast<std::size_t>(status.st_size);
  start_ = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file_, 0);
  if (start_ == MAP_FAILED) fail_to("map", path_);
}

void mapped_file::read(std::uint64_t offset, std::span<std::byte> out) const {
  while (!out.empty()) {
    const auto got = ::pread(file_, out.data(), out.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_to("read", path_, "the disk may be failing");
    if (got == 0) throw format_error(path_.string(), offset, "the file has become shorter while it was read");
    out = out.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
  }
}

void mapped_file::require_readable(std::uint64_t begin, std::uint64_t end) const {
  std::vector<std::byte> buffer(static_cast<std::size_t>(std::min<std::uint64_t>(end - begin, std::uint64_t{1} << 20)));
  while (begin < end) {
    const auto piece = static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), end - begin));
    read(begin, std::span(buffer).first(piece));
    begin += piece;
  }
}

}  // namespace rondo::checkpoint

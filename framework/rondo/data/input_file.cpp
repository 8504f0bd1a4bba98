#include "rondo/data/input_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <system_error>
#include <utility>

#include "rondo/error.hpp"

namespace rondo::data::detail {

input_file::input_file(std::filesystem::path path) : path_(std::move(path)) {
  errno = 0;
  file_.reset(gzopen(path_.c_str(), "rbe"));
  if (!file_) throw_io("open", errno == 0 ? ENOMEM : errno);
  gzbuffer(file_.get(), 1U << 17);
}

void input_file::close::operator()(gzFile_s* file) const noexcept { gzclose_r(file); }

std::size_t input_file::read(std::span<std::uint8_t> to) {
  std::size_t done = 0;
  while (done < to.size()) {
    const auto wanted = static_cast<unsigned>(std::min<std::size_t>(to.size() - done, 1U << 30));
    errno = 0;
    const int got = gzread(file_.get(), to.data() + done, wanted);
    const int reason = errno;
    if (got > 0) {
      done += static_cast<std::size_t>(got);
      offset_ += static_cast<std::uint64_t>(got);
    }
    if (got < 0 || static_cast<unsigned>(got) < wanted) {
      check(reason);
      return done;
    }
  }
  return done;
}

void input_file::seek(std::uint64_t offset) {
  // zlib has to know that a file is plain before it jumps; otherwise it reads up to the place.
  static_cast<void>(compressed());
  const auto limit = static_cast<std::uint64_t>(std::numeric_limits<z_off_t>::max());
  errno = 0;
  if (gzseek(file_.get(), static_cast<z_off_t>(std::min(offset, limit)), SEEK_SET) < 0) check(errno);
  offset_ = offset;
}

bool input_file::compressed() const { return gzdirect(file_.get()) == 0; }

std::string input_file::where() const { return compressed() ? path_.string() + " (decompressed)" : path_.string(); }

void input_file::fail(std::uint64_t offset, const std::string& problem) const {
  throw format_error(where(), offset, problem);
}

void input_file::check(int reason) const {
  int status = Z_OK;
  const char* text = gzerror(file_.get(), &status);
  if (status == Z_OK || status == Z_STREAM_END) return;
  if (status == Z_ERRNO) throw_io("read", reason == 0 ? EIO : reason);
  if (status == Z_BUF_ERROR) fail(offset_, "the gzip stream is cut off here; copy or download the file again");
  fail(offset_, fmt::format("the gzip stream is damaged ({}); copy or download the file again", text));
}

void input_file::throw_io(const char* operation, int reason) const {
  throw io_error(operation, path_, std::error_code(reason, std::generic_category()));
}

namespace {

int open_regular(const std::filesystem::path& path, std::uint64_t& size) {
  const auto fail = [&](int reason, const char* advice = "") {
    throw io_error("open", path, std::error_code(reason, std::generic_category()), advice);
  };
  // A pipe would otherwise wait for somebody to write into it.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) fail(errno);
  struct stat found {};
  const int reason = ::fstat(descriptor, &found) == 0 ? 0 : errno;
  if (reason == 0 && S_ISREG(found.st_mode)) {
    size = static_cast<std::uint64_t>(found.st_size);
    return descriptor;
  }
  ::close(descriptor);
  if (reason != 0) fail(reason);
  if (S_ISDIR(found.st_mode)) fail(EISDIR);
  fail(ESPIPE, "a regular file is needed, which can be read again and at any place");
  return -1;
}

}  // namespace

random_access_file::random_access_file(std::filesystem::path path)
    : path_(std::move(path)), descriptor_(open_regular(path_, size_)) {}

random_access_file::~random_access_file() { ::close(descriptor_); }

std::string random_access_file::read(std::uint64_t first, std::uint64_t count) const {
  std::string bytes(static_cast<std::size_t>(count), '\0');
  std::size_t done = 0;
  while (done < bytes.size()) {
    const auto got = ::pread(descriptor_, bytes.data() + done, bytes.size() - done, static_cast<off_t>(first + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw io_error("read", path_, std::error_code(errno, std::generic_category()));
    if (got == 0)
      throw format_error(path_.string(), first + done,
                         "the file ends here now; it was longer when it was opened, and must not change after that");
    done += static_cast<std::size_t>(got);
  }
  return bytes;
}

}  // namespace rondo::data::detail

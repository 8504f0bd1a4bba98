#include "rondo/writing/directory_lock.hpp"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <string_view>
#include <utility>

#include "rondo/writing/posix.hpp"

namespace rondo::writing {

namespace {

using posix::failure;
using std::filesystem::path;

constexpr std::size_t longest_note = 4096;

std::string host_name() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? std::string(name.data()) : std::string("unknown");
}

std::string note_about_us() {
  const auto now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  return fmt::format("process {}\nhost {}\nstarted {:%Y-%m-%dT%H:%M:%SZ}\n", ::getpid(), host_name(), fmt::gmtime(now));
}

std::string read_note(int file) {
  std::string note(longest_note, '\0');
  const auto count = ::pread(file, note.data(), note.size(), 0);
  note.resize(count > 0 ? static_cast<std::size_t>(count) : 0);
  return note;
}

// The rest of the line that begins with `label`, empty when there is none.
std::string_view value_of(std::string_view note, std::string_view label) {
  while (!note.empty()) {
    const auto line = note.substr(0, note.find('\n'));
    if (line.substr(0, label.size()) == label) return line.substr(label.size());
    note.remove_prefix(std::min(note.size(), line.size() + 1));
  }
  return {};
}

lock_error held_by_another(const path& directory, const std::string& note) {
  const auto process_text = value_of(note, "process ");
  pid_t process = 0;
  std::from_chars(process_text.data(), process_text.data() + process_text.size(), process);
  return {directory, process, std::string(value_of(note, "host ")), std::string(value_of(note, "started "))};
}

bool no_such_locks(int code) { return code == EINVAL || code == ENOLCK || code == EOPNOTSUPP || code == ENOSYS; }
bool taken(int code) { return code == EAGAIN || code == EACCES || code == EWOULDBLOCK; }

// 0, or why the lock was not granted.
int try_to_lock(int file) {
  struct flock whole {};
  whole.l_type = F_WRLCK;
  whole.l_whence = SEEK_SET;
  if (::fcntl(file, F_OFD_SETLK, &whole) == 0) return 0;
  if (!no_such_locks(errno)) return errno;
  return ::flock(file, LOCK_EX | LOCK_NB) == 0 ? 0 : errno;
}

void write_note(int file, const path& name) {
  const auto note = note_about_us();
  if (::ftruncate(file, 0) != 0 || ::pwrite(file, note.data(), note.size(), 0) < 0) throw failure("write", name, errno);
}

std::string describe(const path& directory, pid_t process, const std::string& host, const std::string& since) {
  if (process == 0) return fmt::format("'{}' is in use by another trainer", directory.string());
  return fmt::format("'{}' is in use by process {} on host {} since {}: stop it or choose another output directory",
                     directory.string(), process, host, since);
}

}  // namespace

lock_error::lock_error(path directory, pid_t process, std::string host, const std::string& since)
    : error(describe(directory, process, host, since)),
      directory_(std::move(directory)),
      process_(process),
      host_(std::move(host)) {}

directory_lock::directory_lock(const path& directory) {
  const auto name = directory / ".rondo.lock";
  // From here on the destructor does not run, so the guard closes the file when something below throws.
  struct guard {
    int file;
    ~guard() {
      if (file >= 0) ::close(file);
    }
  } opened{::open(name.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0666)};
  if (opened.file < 0) {
    throw failure("open", name, errno, errno == ELOOP ? "it is a symbolic link, and links are not followed" : "");
  }
  struct stat about {};
  if (::fstat(opened.file, &about) != 0) throw failure("inspect", name, errno);
  if (!S_ISREG(about.st_mode)) throw failure("lock", name, EINVAL, "it is not a regular file");
  const int refused = try_to_lock(opened.file);
  if (taken(refused)) throw held_by_another(directory, read_note(opened.file));
  if (refused != 0) throw failure("lock", name, refused, "the file system offers no locks; use a directory on another");
  write_note(opened.file, name);
  file_ = std::exchange(opened.file, -1);
}

directory_lock::directory_lock(directory_lock&& other) noexcept : file_(std::exchange(other.file_, -1)) {}

directory_lock& directory_lock::operator=(directory_lock&& other) noexcept {
  std::swap(file_, other.file_);
  return *this;
}

directory_lock::~directory_lock() {
  if (file_ >= 0) ::close(file_);
}

}  // namespace rondo::writing

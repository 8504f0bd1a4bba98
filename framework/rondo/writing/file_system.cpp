#include "rondo/writing/file_system.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <ctime>
#include <optional>
#include <utility>

#include "rondo/error.hpp"
#include "rondo/writing/posix.hpp"
#include "rondo/writing/posix_output_file.hpp"

namespace rondo::writing {

namespace {

using posix::advice_for;
using posix::available_bytes;
using posix::descriptor;
using posix::failure;
using posix::uninterrupted;

descriptor open_file(const path& file, int flags, mode_t mode = 0) {
  return descriptor(uninterrupted([&] { return ::open(file.c_str(), flags | O_CLOEXEC, mode); }));
}

// 0, or why there cannot be room. File systems that cannot set space aside are at least asked how much is left.
int reserve(int file, const path& name, std::uint64_t size) {
  if (size == 0) return 0;
  if (uninterrupted([&] { return ::fallocate(file, 0, 0, static_cast<off_t>(size)); }) == 0) return 0;
  if (errno != EOPNOTSUPP && errno != ENOSYS) return errno;
  return available_bytes(name) < size ? ENOSPC : 0;
}

file_kind kind_of(mode_t mode) {
  if (S_ISREG(mode)) return file_kind::regular;
  if (S_ISDIR(mode)) return file_kind::directory;
  if (S_ISLNK(mode)) return file_kind::symlink;
  return file_kind::other;
}

std::optional<directory_entry> inspect(int directory, const char* name) {
  struct stat about {};
  if (::fstatat(directory, name, &about, AT_SYMLINK_NOFOLLOW) != 0) return std::nullopt;
  const auto kind = kind_of(about.st_mode);
  return directory_entry{name, kind, kind == file_kind::regular ? static_cast<std::uint64_t>(about.st_size) : 0};
}

struct close_directory {
  void operator()(DIR* directory) const noexcept { ::closedir(directory); }
};

// After which nobody is believed to be at work on a file of another host, where locks do not travel.
constexpr std::time_t quiet_seconds = 600;

struct flock whole_file() {
  struct flock range {};
  range.l_type = F_WRLCK;
  range.l_whence = SEEK_SET;
  return range;
}

/// Until the last descriptor of this opening is closed, in whichever process. Where there are no locks, others have to
/// go by the time.
void lock(int file) {
  auto range = whole_file();
  static_cast<void>(::fcntl(file, F_OFD_SETLK, &range));
}

bool is_locked(int file) {
  auto range = whole_file();
  return ::fcntl(file, F_OFD_GETLK, &range) == 0 && range.l_type != F_UNLCK;
}

class operating_system final : public file_system {
 public:
  std::unique_ptr<output_file> create(const path& file, std::uint64_t expected_size) override {
    auto opened = open_file(file, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0666);
    if (!opened.valid()) throw failure("create", file, errno);
    lock(opened.get());
    if (const int code = reserve(opened.get(), file, expected_size); code != 0) {
      ::unlink(file.c_str());
      throw failure("create", file, code, advice_for(code, file, expected_size));
    }
    try {
      return std::make_unique<posix::posix_output_file>(std::move(opened), file, expected_size);
    } catch (...) {
      ::unlink(file.c_str());
      throw;
    }
  }

  file_use use_of(const path& file) override {
    const auto opened = open_file(file, O_RDWR | O_NOFOLLOW | O_NONBLOCK);
    struct stat about {};
    const bool seen = opened.valid() ? ::fstat(opened.get(), &about) == 0 : ::lstat(file.c_str(), &about) == 0;
    if (opened.valid() && is_locked(opened.get())) return file_use::locked;
    const bool just_now = seen && std::time(nullptr) - about.st_mtime < quiet_seconds;
    return just_now ? file_use::changed : file_use::idle;
  }

  std::uint64_t sync_file(const path& file) override {
    // Non-blocking, so that a FIFO in place of the file cannot hang the caller.
    const auto opened = open_file(file, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
    struct stat about {};
    if (!opened.valid() || ::fstat(opened.get(), &about) != 0) throw failure("open", file, errno);
    if (!S_ISREG(about.st_mode)) throw failure("sync", file, EINVAL, "it is not a regular file");
    if (uninterrupted([&] { return ::fsync(opened.get()); }) != 0) throw failure("sync", file, errno);
    return static_cast<std::uint64_t>(about.st_size);
  }

  void rename(const path& from, const path& to) override {
    if (std::rename(from.c_str(), to.c_str()) != 0) throw failure("rename to", to, errno);
  }

  bool remove(const path& file) override {
    if (::unlink(file.c_str()) == 0) return true;
    if (errno == ENOENT) return false;
    throw failure("remove", file, errno);
  }

  file_kind kind(const path& name) override {
    if (const auto found = inspect(AT_FDCWD, name.c_str())) return found->kind;
    if (errno == ENOENT) return file_kind::none;
    throw failure("inspect", name, errno);
  }

  std::vector<directory_entry> list(const path& directory) override {
    const std::unique_ptr<DIR, close_directory> opened(::opendir(directory.c_str()));
    if (!opened) throw failure("list", directory, errno);
    std::vector<directory_entry> entries;
    errno = 0;
    while (const auto* found = ::readdir(opened.get())) {
      const std::string name(found->d_name);
      if (name != "." && name != "..") {
        auto entry = inspect(::dirfd(opened.get()), found->d_name);
        if (entry) entries.push_back(std::move(*entry));
        // Whoever removes files at the same time may have taken this one.
        if (!entry && errno != ENOENT) throw failure("inspect", directory / name, errno);
      }
      errno = 0;
    }
    if (errno != 0) throw failure("list", directory, errno);
    std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
    return entries;
  }

  void sync_directory(const path& directory) override {
    const auto opened = open_file(directory, O_RDONLY | O_DIRECTORY);
    if (!opened.valid()) throw failure("open directory", directory, errno);
    const auto result = uninterrupted([&] { return ::fsync(opened.get()); });
    // EINVAL: a file system that cannot sync directories, so there is nothing more that could be done.
    if (result != 0 && errno != EINVAL) throw failure("sync directory", directory, errno);
  }

  bool create_directory(const path& directory) override {
    if (::mkdir(directory.c_str(), 0777) == 0) return true;
    const int code = errno;
    struct stat about {};
    if (code != EEXIST || ::stat(directory.c_str(), &about) != 0) throw failure("create directory", directory, code);
    if (!S_ISDIR(about.st_mode)) throw failure("create directory", directory, ENOTDIR, "something else has this name");
    return false;
  }
};

// Whoever may use a directory need not be allowed to read the one above it. Then its entry there was made, and made
// durable, by somebody else.
void sync_directory_if_readable(file_system& files, const path& directory) {
  try {
    files.sync_directory(directory);
  } catch (const io_error& error) {
    if (error.code() != std::errc::permission_denied) throw;
  }
}

path without_trailing_separator(const path& directory) {
  auto plain = directory.empty() ? path(".") : directory.lexically_normal();
  return plain.has_filename() || plain == plain.root_path() ? plain : plain.parent_path();
}

}  // namespace

std::shared_ptr<file_system> posix_file_system() {
  static const auto instance = std::make_shared<operating_system>();
  return instance;
}

path directory_of(const path& name) {
  const auto parent = name.parent_path();
  return parent.empty() ? path(".") : parent;
}

void create_directories(file_system& files, const path& directory) {
  std::vector<path> missing;
  auto existing = without_trailing_separator(directory);
  while (files.kind(existing) == file_kind::none) {
    missing.push_back(existing);
    existing = directory_of(existing);
  }
  // A run that was killed between creating this one and syncing its parent left it undurable.
  sync_directory_if_readable(files, directory_of(existing));
  files.create_directory(existing);
  for (auto next = missing.rbegin(); next != missing.rend(); ++next) {
    files.create_directory(*next);
    files.sync_directory(directory_of(*next));
  }
}

}  // namespace rondo::writing

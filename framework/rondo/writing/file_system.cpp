#include "rondo/writing/file_system.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <optional>
#include <utility>

#include "rondo/error.hpp"

namespace rondo::writing {

namespace {

constexpr std::size_t block = 4096;
constexpr std::size_t chunk = std::size_t{8} << 20U;
// Below this many bytes one copy is cheaper than one system call.
constexpr std::size_t worth_a_call = std::size_t{64} << 10U;

io_error failure(const std::string& operation, const path& file, int code, const std::string& advice = "") {
  return {operation, file, std::error_code(code, std::generic_category()), advice};
}

class descriptor {
 public:
  explicit descriptor(int value) noexcept : value_(value) {}
  descriptor(descriptor&& other) noexcept : value_(std::exchange(other.value_, -1)) {}
  descriptor& operator=(descriptor&&) = delete;
  ~descriptor() {
    if (value_ >= 0) ::close(value_);
  }

  [[nodiscard]] int get() const noexcept { return value_; }
  [[nodiscard]] bool valid() const noexcept { return value_ >= 0; }
  int release() noexcept { return std::exchange(value_, -1); }

 private:
  int value_;
};

template <class Call>
auto uninterrupted(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

descriptor open_file(const path& file, int flags, mode_t mode = 0) {
  return descriptor(uninterrupted([&] { return ::open(file.c_str(), flags | O_CLOEXEC, mode); }));
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

struct free_memory {
  void operator()(std::byte* memory) const noexcept { std::free(memory); }
};
using staging_buffer = std::unique_ptr<std::byte, free_memory>;

std::size_t round_up(std::size_t size) { return (size + block - 1) / block * block; }
std::size_t round_down(std::size_t size) { return size / block * block; }

staging_buffer allocate_staging(std::size_t size) {
  staging_buffer memory(static_cast<std::byte*>(std::aligned_alloc(block, size)));
  if (!memory) throw std::bad_alloc();
  return memory;
}

class posix_output_file final : public output_file {
 public:
  posix_output_file(descriptor file, path name, std::uint64_t expected_size)
      : file_(std::move(file)),
        name_(std::move(name)),
        expected_size_(expected_size),
        capacity_(round_up(static_cast<std::size_t>(std::clamp<std::uint64_t>(expected_size, 1, chunk)))),
        direct_(set_direct(true)) {}

  void append(std::span<const std::byte> bytes) override {
    expect_usable("write");
    while (!bytes.empty()) {
      const auto straight = staged_ == 0 ? writable_without_copy(bytes) : 0;
      if (straight > 0) {
        write_fully(bytes.first(straight));
        bytes = bytes.subspan(straight);
      } else {
        bytes = bytes.subspan(stage(bytes));
        if (staged_ == capacity_) flush();
      }
    }
  }

  void sync() override {
    expect_usable("sync");
    finish();
    if (uninterrupted([&] { return ::fdatasync(file_.get()); }) != 0) give_up("sync");
  }

  void close() override {
    expect_usable("close");
    finish();
    // Linux has closed the file even when a signal interrupted close, so that is no failure and never retried.
    if (::close(file_.release()) != 0 && errno != EINTR) give_up("close");
  }

 private:
  void expect_usable(const char* operation) const {
    if (dead_ != 0) throw failure(operation, name_, dead_, "the file was given up after an earlier failure");
    if (!file_.valid()) throw failure(operation, name_, EBADF, "the file is closed");
  }

  [[noreturn]] void give_up(const char* operation) {
    dead_ = errno;
    const auto missing = std::max(expected_size_, written_) - written_;
    throw failure(operation, name_, dead_, advice_for(dead_, name_, missing));
  }

  bool set_direct(bool wanted) const noexcept {
    const int flags = ::fcntl(file_.get(), F_GETFL);
    return flags >= 0 && ::fcntl(file_.get(), F_SETFL, wanted ? flags | O_DIRECT : flags & ~O_DIRECT) == 0 && wanted;
  }

  void leave_direct() noexcept { direct_ = set_direct(false); }

  [[nodiscard]] std::size_t writable_without_copy(std::span<const std::byte> bytes) const noexcept {
    if (!direct_) return bytes.size() >= worth_a_call ? bytes.size() : 0;
    const bool aligned = reinterpret_cast<std::uintptr_t>(bytes.data()) % block == 0;
    return aligned && bytes.size() >= worth_a_call ? std::min(chunk, round_down(bytes.size())) : 0;
  }

  std::size_t stage(std::span<const std::byte> bytes) {
    if (!staging_) staging_ = allocate_staging(capacity_);
    const auto count = std::min(bytes.size(), capacity_ - staged_);
    std::memcpy(staging_.get() + staged_, bytes.data(), count);
    staged_ += count;
    return count;
  }

  // Direct writes need whole blocks: the unaligned tail, which only the end of a file has, goes through the page cache.
  void flush() {
    const std::span<const std::byte> bytes(staging_.get(), staged_);
    staged_ = 0;
    const auto whole = direct_ ? round_down(bytes.size()) : bytes.size();
    write_fully(bytes.first(whole));
    if (whole == bytes.size()) return;
    leave_direct();
    write_fully(bytes.subspan(whole));
  }

  void finish() {
    if (staged_ > 0) flush();
    if (written_ >= expected_size_) return;
    if (uninterrupted([&] { return ::ftruncate(file_.get(), static_cast<off_t>(written_)); }) != 0) give_up("truncate");
  }

  void write_fully(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const auto count = ::write(file_.get(), bytes.data(), bytes.size());
      if (count < 0 && errno == EINTR) continue;
      if (count < 0 && errno == EINVAL && direct_) {
        leave_direct();
        continue;
      }
      if (count == 0) errno = EIO;
      if (count <= 0) give_up("write");
      const auto done = static_cast<std::size_t>(count);
      if (direct_ && done % block != 0) leave_direct();
      written_ += done;
      bytes = bytes.subspan(done);
    }
  }

  descriptor file_;
  path name_;
  std::uint64_t expected_size_;
  std::uint64_t written_ = 0;
  std::size_t capacity_;
  std::size_t staged_ = 0;
  staging_buffer staging_;
  bool direct_;
  int dead_ = 0;
};

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

class posix final : public file_system {
 public:
  std::unique_ptr<output_file> create(const path& file, std::uint64_t expected_size) override {
    auto opened = open_file(file, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0666);
    if (!opened.valid()) throw failure("create", file, errno);
    if (const int code = reserve(opened.get(), file, expected_size); code != 0) {
      ::unlink(file.c_str());
      throw failure("create", file, code, advice_for(code, file, expected_size));
    }
    try {
      return std::make_unique<posix_output_file>(std::move(opened), file, expected_size);
    } catch (...) {
      ::unlink(file.c_str());
      throw;
    }
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
  static const auto instance = std::make_shared<posix>();
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

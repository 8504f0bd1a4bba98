#include "rondo/writing/helper/process.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <system_error>
#include <utility>

#include "rondo/error.hpp"
#include "rondo/writing/helper/program_image.hpp"
#include "rondo/writing/helper/protocol.hpp"
#include "rondo/writing/helper/registry.hpp"

extern char** environ;

namespace rondo::writing::helper {

namespace {

// Above the numbers that the helper's own descriptors will have, so that giving it those overwrites nothing.
constexpr int lowest_number = 10;
constexpr int leaving_takes_ms = 1000;

[[noreturn]] void fail(const char* operation, const std::filesystem::path& target, int code,
                       const std::string& advice = "") {
  throw io_error(operation, target, std::error_code(code, std::generic_category()), advice);
}

[[noreturn]] void fail_to_start(const std::filesystem::path& target, int code, const std::string& advice = "") {
  fail("start a helper process to write", target, code, advice);
}

descriptor moved_up(int number) {
  const int moved = ::fcntl(number, F_DUPFD_CLOEXEC, lowest_number);
  // So the system says that there may be no such number.
  if (moved < 0 && errno == EINVAL) errno = EMFILE;
  return descriptor(moved);
}

bool write_all(int file, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const auto count = ::write(file, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    bytes = bytes.subspan(static_cast<std::size_t>(count));
  }
  return true;
}

// Since Linux 6.3 memory that is to be executed has to say so; before, the flag is unknown.
int make_executable_memory() {
  constexpr unsigned executable = 0x0010U;
  constexpr unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  const int made = ::memfd_create("rondo-writer", flags | executable);
  return made < 0 && errno == EINVAL ? ::memfd_create("rondo-writer", flags) : made;
}

descriptor program_in_memory() {
  const descriptor made(make_executable_memory());
  if (!made.valid() || !write_all(made.get(), program_image()) || ::fchmod(made.get(), 0700) != 0) return {};
  ::fcntl(made.get(), F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL);
  return moved_up(made.get());
}

class spawn_settings {
 public:
  explicit spawn_settings(int socket) {
    sigset_t all;
    ::sigfillset(&all);
    ::posix_spawnattr_init(&attributes_);
    ::posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    ::posix_spawnattr_setsigdefault(&attributes_, &all);
    ::posix_spawnattr_setsigmask(&attributes_, &all);
    ::posix_spawn_file_actions_init(&actions_);
    ::posix_spawn_file_actions_addopen(&actions_, 0, "/dev/null", O_RDWR, 0);
    ::posix_spawn_file_actions_adddup2(&actions_, 0, 1);
    ::posix_spawn_file_actions_adddup2(&actions_, 0, 2);
    ::posix_spawn_file_actions_adddup2(&actions_, socket, socket_number);
  }
  spawn_settings(const spawn_settings&) = delete;
  spawn_settings& operator=(const spawn_settings&) = delete;
  ~spawn_settings() {
    ::posix_spawn_file_actions_destroy(&actions_);
    ::posix_spawnattr_destroy(&attributes_);
  }

  /// Leaves the new process no other descriptors. Where it closes them itself, it is too late for a program whose own
  /// variables have opened files by then.
  void close_all_others() {
#ifdef __GLIBC__
    ::posix_spawn_file_actions_addclosefrom_np(&actions_, socket_number + 1);
#endif
  }

  /// 0, or why not.
  int start(const std::string& file, pid_t& id, char* const* environment = environ) const {
    std::string name = "rondo-writer";
    const std::array<char*, 2> arguments{name.data(), nullptr};
    return ::posix_spawn(&id, file.c_str(), &actions_, &attributes_, arguments.data(), environment);
  }

 private:
  posix_spawnattr_t attributes_{};
  posix_spawn_file_actions_t actions_{};
};

class temporary_program {
 public:
  explicit temporary_program(const std::filesystem::path& directory)
      : name_((directory / "rondo-writer-XXXXXX").string()) {
    const descriptor file(::mkostemp(name_.data(), O_CLOEXEC));
    if (!file.valid()) {
      code_ = errno;
      return;
    }
    exists_ = true;
    if (::fchmod(file.get(), 0700) != 0 || !write_all(file.get(), program_image())) code_ = errno;
  }
  temporary_program(const temporary_program&) = delete;
  temporary_program& operator=(const temporary_program&) = delete;
  ~temporary_program() {
    if (exists_) ::unlink(name_.c_str());
  }

  [[nodiscard]] int code() const noexcept { return code_; }
  [[nodiscard]] const std::string& name() const noexcept { return name_; }

 private:
  std::string name_;
  bool exists_ = false;
  int code_ = 0;
};

std::filesystem::path directory_for_programs() {
  std::error_code unknown;
  auto directory = std::filesystem::temp_directory_path(unknown);
  return unknown ? std::filesystem::path("/tmp") : directory;
}

int start_from_file(const spawn_settings& settings, const std::filesystem::path& directory, pid_t& id) {
  const temporary_program file(directory);
  if (file.code() != 0) return file.code();
  int code = ETXTBSY;
  // Another thread may fork just now, and its child then holds the file open for writing until it executes something.
  for (int attempt = 0; attempt < 100 && code == ETXTBSY; ++attempt) {
    if (attempt > 0) ::usleep(1000);
    code = settings.start(file.name(), id);
  }
  return code;
}

// Helpers whose owner did not wait for their end. Whoever starts the next one collects them.
class left_behind {
 public:
  static left_behind& instance() {
    static left_behind all;
    return all;
  }

  void add(pid_t id) {
    const std::lock_guard lock(mutex_);
    ids_.push_back(id);
  }

  void collect() {
    const std::lock_guard lock(mutex_);
    std::erase_if(ids_, [](pid_t id) { return ::waitpid(id, nullptr, WNOHANG) != 0; });
  }

 private:
  std::mutex mutex_;
  std::vector<pid_t> ids_;
};

// This program, also if its file has been removed or replaced.
int start_again(const spawn_settings& settings, const std::string& savefun, pid_t& id) {
  std::string variable = fmt::format("{}={}", savefun_variable, savefun);
  std::vector<char*> environment;
  for (char** each = environ; *each != nullptr; ++each) environment.push_back(*each);
  environment.push_back(variable.data());
  environment.push_back(nullptr);
  return settings.start("/proc/self/exe", id, environment.data());
}

std::string describe(const siginfo_t& about) {
  if (about.si_code == CLD_EXITED) return fmt::format("exited with code {}", about.si_status);
  return fmt::format("was killed by signal {} ({})", about.si_status, ::strsignal(about.si_status));
}

}  // namespace

pid_t program::start(int socket, const std::filesystem::path& target) {
  const auto given = moved_up(socket);
  if (!given.valid()) fail_to_start(target, errno);
  spawn_settings settings(given.get());
  pid_t id = 0;
  int code = 0;
  if (!savefun_.empty()) {
    settings.close_all_others();
    code = start_again(settings, savefun_, id);
    if (code == 0) return id;
    fail_to_start(target, code, "the program itself cannot be started again");
  }
  if (where_ == place::memory) {
    if (!memory_.valid()) memory_ = program_in_memory();
    code = memory_.valid() ? settings.start(fmt::format("/proc/self/fd/{}", memory_.get()), id) : errno;
    if (code == 0) return id;
    if (code == EAGAIN || code == ENOMEM || code == EMFILE || code == ENFILE) fail_to_start(target, code);
  }
  const auto directory = directory_for_programs();
  const int file_code = start_from_file(settings, directory, id);
  if (file_code == 0) {
    where_ = place::file;
    return id;
  }
  fail_to_start(target, file_code,
                fmt::format("it can be executed neither in memory ({}) nor from '{}': let TMPDIR name a directory from "
                            "which programs may be executed, or take a writer that needs no process",
                            std::generic_category().message(code), directory.string()));
}

std::shared_ptr<process> process::start(program& from, const std::filesystem::path& target) {
  left_behind::instance().collect();
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0) fail_to_start(target, errno);
  descriptor ours(ends[0]);
  const descriptor theirs(ends[1]);
  const pid_t id = from.start(theirs.get(), target);
  return std::make_shared<process>(id, std::move(ours));
}

process::process(pid_t id, descriptor socket)
    : id_(id), socket_(std::move(socket)), handle_(static_cast<int>(::syscall(SYS_pidfd_open, id, 0U))) {}

process::~process() {
  if (ending()) return;
  socket_ = descriptor();
  pollfd gone{handle_.get(), POLLIN, 0};
  if (unanswered_ == 0) ::poll(&gone, 1, leaving_takes_ms);
  if (!ending()) left_behind::instance().add(id_);
}

process::delivery process::send(std::span<const std::byte> message, std::span<const int> descriptors,
                                const std::filesystem::path& target) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(job_message::most_descriptors * sizeof(int))> control{};
  iovec place{const_cast<std::byte*>(message.data()), message.size()};
  msghdr header{};
  header.msg_iov = &place;
  header.msg_iovlen = 1;
  header.msg_control = control.data();
  header.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
  auto* const rights = CMSG_FIRSTHDR(&header);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(descriptors.size_bytes());
  std::memcpy(CMSG_DATA(rights), descriptors.data(), descriptors.size_bytes());
  ssize_t sent = -1;
  do {
    sent = ::sendmsg(socket_.get(), &header, MSG_DONTWAIT | MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent >= 0) {
    ++unanswered_;
    return delivery::sent;
  }
  if (errno == EAGAIN || errno == ETOOMANYREFS) return delivery::full;
  if (errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN) return delivery::dead;
  fail("hand to a helper process", target, errno);
}

void process::finish() noexcept { ::shutdown(socket_.get(), SHUT_WR); }

std::optional<std::vector<std::byte>> process::receive() {
  if (silent_) return std::nullopt;
  std::vector<std::byte> buffer(longest_message);
  ssize_t count = -1;
  // A reset is told once, before what the helper said last.
  do {
    count = ::recv(socket_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
  } while (count < 0 && (errno == EINTR || errno == ECONNRESET));
  silent_ = count == 0 || (count < 0 && errno != EAGAIN);
  if (count <= 0) return std::nullopt;
  buffer.resize(static_cast<std::size_t>(count));
  if (unanswered_ > 0) --unanswered_;
  return buffer;
}

void process::kill() noexcept {
  if (ending_) return;
  unanswered_ = 0;
  const bool done = handle_.valid() && ::syscall(SYS_pidfd_send_signal, handle_.get(), SIGKILL, nullptr, 0U) == 0;
  if (!done && !handle_.valid()) ::kill(id_, SIGKILL);
}

std::optional<std::string> process::ending() {
  if (ending_) return ending_;
  siginfo_t about{};
  const int result = ::waitid(P_PID, static_cast<id_t>(id_), &about, WEXITED | WNOHANG);
  if (result == 0 && about.si_pid == id_) ending_ = describe(about);
  // The program has its own way with its children: it ignores SIGCHLD or waits for any child.
  if (result != 0 && errno == ECHILD) ending_ = "ended in a way that somebody else has been told of";
  return ending_;
}

}  // namespace rondo::writing::helper

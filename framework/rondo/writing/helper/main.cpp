// The program of the helper processes (see writers::process). It receives images of files, gives them their checksums
// and writes them, one after the other, until its socket ends; also when the trainer is no longer there.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <utility>

#include "rondo/checkpoint/image.hpp"
#include "rondo/writing/atomic_file.hpp"
#include "rondo/writing/helper/descriptor.hpp"
#include "rondo/writing/helper/protocol.hpp"

namespace {

using namespace rondo::writing;
using helper::descriptor;
using spot = rondo::checkpoint::checksum_spot;

struct received_job {
  helper::job_message message;
  descriptor image;
  // Closed with the job, so that the helper after this one knows when to begin.
  descriptor turn;
  descriptor turn_before;
};

[[noreturn]] void refuse(const std::string& operation, const path& target, int code, const std::string& why) {
  throw rondo::io_error(operation, target, std::error_code(code, std::generic_category()), why);
}

// The image and its spots, mapped.
class mapped_image {
 public:
  mapped_image(const helper::job_message& job, int file) : job_(job) {
    struct stat about {};
    if (::fstat(file, &about) != 0) refuse("map image of", job.target, errno, "");
    const auto length = static_cast<std::uint64_t>(about.st_size);
    const bool fits = job.size <= length && job.spots_offset <= length && job.spots_offset % alignof(spot) == 0 &&
                      job.spots <= (length - job.spots_offset) / sizeof(spot);
    if (!fits || length == 0) refuse("map image of", job.target, EINVAL, "it is larger than its memory");
    length_ = static_cast<std::size_t>(std::max(job.size, job.spots_offset + job.spots * sizeof(spot)));
    // The file may be empty, a mapping may not.
    length_ = std::max<std::size_t>(length_, 1);
    auto* const address = ::mmap(nullptr, length_, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (address == MAP_FAILED) refuse("map image of", job.target, errno, "");
    begin_ = static_cast<std::byte*>(address);
  }
  mapped_image(const mapped_image&) = delete;
  mapped_image& operator=(const mapped_image&) = delete;
  ~mapped_image() { ::munmap(begin_, length_); }

  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return {begin_, static_cast<std::size_t>(job_.size)}; }
  [[nodiscard]] std::span<const spot> spots() const noexcept {
    return {reinterpret_cast<const spot*>(begin_ + job_.spots_offset), static_cast<std::size_t>(job_.spots)};
  }

 private:
  const helper::job_message& job_;
  std::size_t length_ = 0;
  std::byte* begin_ = nullptr;
};

// Signals are sent to whole groups, when a terminal is closed or a job scheduler ends a job. The work is finished all
// the same; SIGKILL ends it.
void survive_signals() {
  for (const int number : {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGPIPE, SIGXFSZ, SIGALRM, SIGTSTP,
                           SIGTTIN, SIGTTOU, SIGXCPU}) {
    ::signal(number, SIG_IGN);
  }
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
}

void close_what_was_not_given() {
  constexpr unsigned first = helper::socket_number + 1;
  if (::syscall(SYS_close_range, first, ~0U, 0U) == 0) return;
  const long limit = ::sysconf(_SC_OPEN_MAX);
  for (int number = static_cast<int>(first); number < limit; ++number) ::close(number);
}

// Ends when the process that started this one does. The socket says so as well, unless somebody else inherited the
// trainer's end of it.
descriptor watch_trainer() { return descriptor(static_cast<int>(::syscall(SYS_pidfd_open, ::getppid(), 0U))); }

void take_descriptors(msghdr& header, received_job& job) {
  std::array<descriptor*, helper::job_message::most_descriptors> places{&job.image, &job.turn, &job.turn_before};
  for (auto* part = CMSG_FIRSTHDR(&header); part != nullptr; part = CMSG_NXTHDR(&header, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const auto count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int number = -1;
      std::memcpy(&number, CMSG_DATA(part) + i * sizeof(int), sizeof number);
      descriptor taken(number);
      if (i < places.size()) *places[i] = std::move(taken);
    }
  }
}

// The next job; nothing at the end. A reset means only that the trainer died before it read the last reply: what it
// sent before is still there.
std::optional<received_job> receive(int flags) {
  static std::array<std::byte, helper::longest_message> buffer;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(helper::job_message::most_descriptors * sizeof(int))> control{};
  iovec place{buffer.data(), buffer.size()};
  msghdr header{};
  ssize_t count = -1;
  do {
    header = {};
    header.msg_iov = &place;
    header.msg_iovlen = 1;
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    count = ::recvmsg(helper::socket_number, &header, flags | MSG_CMSG_CLOEXEC);
  } while (count < 0 && (errno == EINTR || errno == ECONNRESET));
  if (count <= 0) return std::nullopt;
  received_job job;
  take_descriptors(header, job);
  auto message = helper::unpack_job(std::span(buffer).first(static_cast<std::size_t>(count)));
  if (!message || (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) std::_Exit(2);
  job.message = std::move(*message);
  return job;
}

std::optional<received_job> next_job(const descriptor& trainer) {
  std::array<pollfd, 2> events{pollfd{helper::socket_number, POLLIN, 0}, pollfd{trainer.get(), POLLIN, 0}};
  while (::poll(events.data(), events.size(), -1) < 0 && errno == EINTR) {
  }
  return receive(MSG_DONTWAIT);
}

void wait_for_turn(const received_job& job) {
  if (!job.turn_before.valid()) return;
  char nothing = 0;
  while (::read(job.turn_before.get(), &nothing, 1) < 0 && errno == EINTR) {
  }
}

write_receipt write(const received_job& job) {
  const mapped_image image(job.message, job.image.get());
  const auto produce = [&](const append_function& append) {
    seal(image.bytes(), image.spots(), [&](std::span<const std::byte> part) { append.stable(part); });
  };
  return write_atomically(*posix_file_system(), job.message.target, job.message.size, produce);
}

// Lets go of the image before the trainer is told that it may use the memory again.
helper::reply_message serve(const received_job job) {
  helper::reply_message reply;
  reply.number = job.message.number;
  try {
    wait_for_turn(job);
    const auto receipt = write(job);
    reply.bytes = receipt.bytes;
    reply.write_seconds = receipt.write_seconds;
    reply.sync_seconds = receipt.sync_seconds;
    reply.commit_seconds = receipt.commit_seconds;
  } catch (...) {
    helper::put_failure(reply, job.message.target, std::current_exception());
  }
  if (!job.message.announcement.empty()) ::unlink(job.message.announcement.c_str());
  return reply;
}

}  // namespace

int main() {
  survive_signals();
  close_what_was_not_given();
  ::prctl(PR_SET_NAME, "rondo-writer");
  // A process keeps the file system of its directory from being unmounted.
  if (::chdir("/") != 0) return 1;
  const auto trainer = watch_trainer();
  while (auto job = next_job(trainer)) {
    const auto reply = helper::pack(serve(std::move(*job)));
    // Nobody listens when the trainer has died; the files that it handed over are written all the same.
    (void)::send(helper::socket_number, reply.data(), reply.size(), MSG_NOSIGNAL);
  }
}

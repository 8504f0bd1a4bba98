#include "rondo/writing/helper/service.hpp"

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
#include <exception>
#include <optional>
#include <string>
#include <system_error>
#include <utility>

#include "rondo/writing/helper/descriptor.hpp"
#include "rondo/writing/helper/protocol.hpp"

namespace rondo::writing::helper {

namespace {

using spot = checkpoint::checksum_spot;

struct received_job {
  job_message message;
  descriptor image;
  // Closed with the job, so that the helper after this one knows when to begin.
  descriptor turn;
  descriptor turn_before;
};

[[noreturn]] void refuse(const std::string& operation, const path& target, int code, const std::string& why) {
  throw io_error(operation, target, std::error_code(code, std::generic_category()), why);
}

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

// Ends when the process that started this one does. The socket says so as well, unless somebody else inherited the
// trainer's end of it.
descriptor watch_trainer() { return descriptor(static_cast<int>(::syscall(SYS_pidfd_open, ::getppid(), 0U))); }

void take_descriptors(msghdr& header, received_job& job) {
  std::array<descriptor*, job_message::most_descriptors> places{&job.image, &job.turn, &job.turn_before};
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
  static std::array<std::byte, longest_message> buffer;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(job_message::most_descriptors * sizeof(int))> control{};
  iovec place{buffer.data(), buffer.size()};
  msghdr header{};
  ssize_t count = -1;
  do {
    header = {};
    header.msg_iov = &place;
    header.msg_iovlen = 1;
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    count = ::recvmsg(socket_number, &header, flags | MSG_CMSG_CLOEXEC);
  } while (count < 0 && (errno == EINTR || errno == ECONNRESET));
  if (count <= 0) return std::nullopt;
  received_job job;
  take_descriptors(header, job);
  auto message = unpack_job(std::span(buffer).first(static_cast<std::size_t>(count)));
  if (!message || (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) std::_Exit(2);
  job.message = std::move(*message);
  return job;
}

std::optional<received_job> next_job(const descriptor& trainer) {
  std::array<pollfd, 2> events{pollfd{socket_number, POLLIN, 0}, pollfd{trainer.get(), POLLIN, 0}};
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

// Lets go of the image before the trainer is told that it may use the memory again.
reply_message work_on(const received_job job, const write_function& write) {
  reply_message reply;
  reply.number = job.message.number;
  try {
    wait_for_turn(job);
    const mapped_image image(job.message, job.image.get());
    const auto receipt = write(job.message.target, image, job.message.format);
    reply.bytes = receipt.bytes;
    reply.write_seconds = receipt.write_seconds;
    reply.sync_seconds = receipt.sync_seconds;
    reply.commit_seconds = receipt.commit_seconds;
  } catch (...) {
    put_failure(reply, job.message.target, std::current_exception());
  }
  if (!job.message.announcement.empty()) ::unlink(job.message.announcement.c_str());
  return reply;
}

}  // namespace

mapped_image::mapped_image(const job_message& job, int file)
    : size_(job.size), spots_(job.spots), spots_offset_(job.spots_offset) {
  struct stat about {};
  if (::fstat(file, &about) != 0) refuse("map image of", job.target, errno, "");
  const auto length = static_cast<std::uint64_t>(about.st_size);
  const bool fits = size_ <= length && spots_offset_ <= length && spots_offset_ % alignof(spot) == 0 &&
                    spots_ <= (length - spots_offset_) / sizeof(spot);
  if (!fits || length == 0) refuse("map image of", job.target, EINVAL, "it is larger than its memory");
  length_ = static_cast<std::size_t>(std::max(size_, spots_offset_ + spots_ * sizeof(spot)));
  // The file may be empty, a mapping may not.
  length_ = std::max<std::size_t>(length_, 1);
  auto* const address = ::mmap(nullptr, length_, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (address == MAP_FAILED) refuse("map image of", job.target, errno, "");
  begin_ = static_cast<std::byte*>(address);
}

mapped_image::~mapped_image() { ::munmap(begin_, length_); }

std::span<const spot> mapped_image::spots() const noexcept {
  return {reinterpret_cast<const spot*>(begin_ + spots_offset_), static_cast<std::size_t>(spots_)};
}

void close_what_was_not_given() {
  constexpr unsigned first = socket_number + 1;
  if (::syscall(SYS_close_range, first, ~0U, 0U) == 0) return;
  const long limit = ::sysconf(_SC_OPEN_MAX);
  for (int number = static_cast<int>(first); number < limit; ++number) ::close(number);
}

int serve(const write_function& write) {
  survive_signals();
  ::prctl(PR_SET_NAME, "rondo-writer");
  // A process keeps the file system of its directory from being unmounted.
  if (::chdir("/") != 0) return 1;
  const auto trainer = watch_trainer();
  while (auto job = next_job(trainer)) {
    const auto reply = pack(work_on(std::move(*job), write));
    // Nobody listens when the trainer has died; the files that it handed over are written all the same.
    (void)::send(socket_number, reply.data(), reply.size(), MSG_NOSIGNAL);
  }
  return 0;
}

}  // namespace rondo::writing::helper

#include "rondo/loop/requeue.hpp"

#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <string>
#include <string_view>
#include <system_error>

#include "rondo/error.hpp"
#include "rondo/log.hpp"

extern char** environ;  // NOLINT: as POSIX declares it

namespace rondo {

namespace {

std::string variable(const char* name) {
  const char* const value = std::getenv(name);
  return value != nullptr ? value : "";
}

/// A child has the default actions of signals, whatever this process does with them: `ignored` would be inherited.
class default_signals {
 public:
  default_signals() {
    sigset_t all;
    ::sigemptyset(&all);
    for (const int signal : {SIGPIPE, SIGXFSZ, SIGCHLD, SIGINT, SIGTERM}) ::sigaddset(&all, signal);
    ::posix_spawnattr_init(&attributes_);
    ::posix_spawnattr_setsigdefault(&attributes_, &all);
    ::posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETSIGDEF);
  }
  default_signals(const default_signals&) = delete;
  default_signals& operator=(const default_signals&) = delete;
  ~default_signals() { ::posix_spawnattr_destroy(&attributes_); }
  [[nodiscard]] const posix_spawnattr_t* get() const noexcept { return &attributes_; }

 private:
  posix_spawnattr_t attributes_;
};

/// The way a child has ended, in words; empty if well. A process that ignores SIGCHLD never learns how.
std::string run_and_wait(std::string program, std::string verb, std::string job) {
  char* const arguments[] = {program.data(), verb.data(), job.data(), nullptr};
  const default_signals attributes;
  pid_t child = 0;
  const int refused = ::posix_spawnp(&child, program.c_str(), nullptr, attributes.get(), arguments, environ);
  if (refused != 0) return std::generic_category().message(refused);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    if (errno == ECHILD) return {};
    if (errno != EINTR) return std::generic_category().message(errno);
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
  if (WIFEXITED(status)) return fmt::format("exit status {}", WEXITSTATUS(status));
  return fmt::format("killed by signal {}", WTERMSIG(status));
}

}  // namespace

std::function<void(const run_result&)> slurm_requeue() {
  return [](const run_result& result) {
    if (result.signal == SIGINT) return;
    const auto job = variable("SLURM_JOB_ID");
    if (job.empty()) {
      log::warn("slurm_requeue: SLURM_JOB_ID is not set, so there is no job to requeue");
      return;
    }
    const auto task = variable("SLURM_PROCID");
    if (!task.empty() && task != "0") return;
    const auto problem = run_and_wait("scontrol", "requeue", job);
    if (!problem.empty())
      throw error(fmt::format("'scontrol requeue {}' failed: {}; the run can be resumed by starting the job again", job,
                              problem));
    log::info(fmt::format("asked SLURM to requeue job {}", job));
  };
}

}  // namespace rondo

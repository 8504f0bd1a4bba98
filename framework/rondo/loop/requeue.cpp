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

/// The way a child has ended, in words; empty if well.
std::string run_and_wait(std::string program, std::string verb, std::string job) {
  char* const arguments[] = {program.data(), verb.data(), job.data(), nullptr};
  pid_t child = 0;
  const int refused = ::posix_spawnp(&child, program.c_str(), nullptr, nullptr, arguments, environ);
  if (refused != 0) return std::generic_category().message(refused);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0)
    if (errno != EINTR) return std::generic_category().message(errno);
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

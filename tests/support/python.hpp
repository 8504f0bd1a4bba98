#pragma once

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <iterator>
#include <string>
#include <system_error>
#include <vector>

#include "support/temporary_directory.hpp"

namespace rondo::testing {

struct process_result {
  int status = -1;     ///< exit status, or 128 + the signal that ended the process
  std::string output;  ///< stdout and stderr together
};

/// Runs a program found on the PATH, and waits for it.
inline process_result run_program(std::vector<std::string> command) {
  const temporary_directory directory;
  const auto output_path = (directory / "output").string();
  std::vector<char*> arguments;
  for (auto& word : command) arguments.push_back(word.data());
  arguments.push_back(nullptr);

  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, output_path.c_str(), O_WRONLY | O_CREAT, 0600);
  ::posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  pid_t child = 0;
  const int problem = ::posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  if (problem != 0) throw std::system_error(problem, std::generic_category(), "cannot start " + command[0]);

  int status = 0;
  while (::waitpid(child, &status, 0) < 0)
    if (errno != EINTR) throw std::system_error(errno, std::generic_category(), "waitpid");
  std::ifstream output(output_path);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
          std::string(std::istreambuf_iterator<char>(output), {})};
}

/// Runs a script with the system's Python, the one that Debian's python3-torch belongs to. `sys.argv[1:]` are
/// `arguments`.
inline process_result run_python(const std::string& script, const std::vector<std::string>& arguments = {}) {
  const temporary_directory directory;
  const auto path = (directory / "script.py").string();
  std::ofstream(path) << script;
  std::vector<std::string> command = {"/usr/bin/python3", path};
  command.insert(command.end(), arguments.begin(), arguments.end());
  return run_program(std::move(command));
}

}  // namespace rondo::testing

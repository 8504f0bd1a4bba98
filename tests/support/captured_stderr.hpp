#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

#include "support/temporary_directory.hpp"

namespace rondo::testing {

/// While it lives, what the process writes to stderr goes here, Rondo's messages among it.
class captured_stderr {
 public:
  captured_stderr() : before_(::dup(STDERR_FILENO)) {
    std::fflush(stderr);
    const int file = ::open((directory_ / "stderr").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    ::dup2(file, STDERR_FILENO);
    ::close(file);
  }
  captured_stderr(const captured_stderr&) = delete;
  captured_stderr& operator=(const captured_stderr&) = delete;
  ~captured_stderr() {
    std::fflush(stderr);
    ::dup2(before_, STDERR_FILENO);
    ::close(before_);
  }

  [[nodiscard]] std::string text() const {
    std::fflush(stderr);
    std::ifstream in(directory_ / "stderr");
    return {std::istreambuf_iterator<char>(in), {}};
  }

 private:
  temporary_directory directory_;
  int before_;
};

}  // namespace rondo::testing

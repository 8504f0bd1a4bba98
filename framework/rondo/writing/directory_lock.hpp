#pragma once

#include <sys/types.h>

#include <filesystem>
#include <string>

#include "rondo/error.hpp"

namespace rondo::writing {

/// Somebody else works in the directory. Thrown before anything in it was touched.
class lock_error : public error {
 public:
  /// `process` is 0 and `host` empty when the holder has not written its name yet.
  lock_error(std::filesystem::path directory, pid_t process, std::string host, const std::string& since);

  [[nodiscard]] const std::filesystem::path& directory() const noexcept { return directory_; }
  [[nodiscard]] pid_t process() const noexcept { return process_; }
  [[nodiscard]] const std::string& host() const noexcept { return host_; }

 private:
  std::filesystem::path directory_;
  pid_t process_;
  std::string host_;
};

/// Keeps a second trainer, in this process or another, out of a directory for as long as it lives.
///
/// Holds an open file description lock on `<directory>/.rondo.lock`, where the file system has no such locks a flock.
/// The kernel releases either one when the process dies, however it dies, so a stale lock cannot exist; the file itself
/// stays. It names the holder: process id, host and start time. A child made by fork shares the lock until it ends or
/// executes another program.
class directory_lock {
 public:
  /// The directory must exist. Throws lock_error when somebody else holds the lock, and io_error when the lock file
  /// cannot be opened or locked, or is not a regular file (a symbolic link is not followed).
  explicit directory_lock(const std::filesystem::path& directory);
  directory_lock(directory_lock&& other) noexcept;
  directory_lock& operator=(directory_lock&& other) noexcept;
  ~directory_lock();

 private:
  int file_ = -1;
};

}  // namespace rondo::writing

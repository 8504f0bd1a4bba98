#pragma once

#include <sys/types.h>

#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "rondo/writing/helper/descriptor.hpp"

namespace rondo::writing::helper {

/// The helper program: one that is part of the library, in a place from which it can be started: in memory or, where
/// memory may not be executed, in a temporary file that exists while a process is being started.
class program {
 public:
  enum class place { memory, file };

  /// In memory if that is possible.
  program() = default;
  /// For tests.
  explicit program(place where) : where_(where) {}
  /// This very program, started again as the helper of a registered function.
  explicit program(std::string savefun) : savefun_(std::move(savefun)) {}

  /// Starts it with `socket` as its only descriptor besides /dev/null, in a session of its own and with all signals
  /// blocked. Returns the process id. Throws io_error, in the name of `target`, when it cannot be started.
  [[nodiscard]] pid_t start(int socket, const std::filesystem::path& target);

 private:
  place where_ = place::memory;
  std::string savefun_;
  descriptor memory_;
};

/// A running helper, seen from the trainer. Nothing here blocks, but for `start` (until the program runs) and for the
/// destructor of one that has nothing to do (a moment, so that it leaves no zombie).
class process {
 public:
  /// Throws io_error, in the name of `target`.
  [[nodiscard]] static std::shared_ptr<process> start(program& from, const std::filesystem::path& target);
  explicit process(pid_t id, descriptor socket);
  process(const process&) = delete;
  process& operator=(const process&) = delete;
  /// A helper that has been given work finishes it and ends by itself.
  ~process();

  [[nodiscard]] pid_t id() const noexcept { return id_; }

  enum class delivery { sent, full, dead };
  /// Gives the helper a message with copies of descriptors. `full`: there are too many on their way; `dead`: it takes
  /// no more. Throws io_error, in the name of `target`, for anything else.
  [[nodiscard]] delivery send(std::span<const std::byte> message, std::span<const int> descriptors,
                              const std::filesystem::path& target);

  /// Tells it that there will be no more. It ends when it has done what it was given.
  void finish() noexcept;

  /// What it said, if anything.
  [[nodiscard]] std::optional<std::vector<std::byte>> receive();

  void kill() noexcept;

  /// How it ended, in words; nothing while it runs.
  [[nodiscard]] std::optional<std::string> ending();

  /// Can be read when there is a message or the end of all messages; -1 after that end.
  [[nodiscard]] int socket() const noexcept { return silent_ ? -1 : socket_.get(); }
  /// Can be read when the process has ended; -1 where the system has no such descriptors.
  [[nodiscard]] int handle() const noexcept { return handle_.get(); }

 private:
  pid_t id_;
  descriptor socket_;
  descriptor handle_;
  bool silent_ = false;
  std::size_t unanswered_ = 0;
  std::optional<std::string> ending_;
};

}  // namespace rondo::writing::helper

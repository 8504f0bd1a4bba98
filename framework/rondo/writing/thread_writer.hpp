#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>

#include "rondo/writing/file_system.hpp"
#include "rondo/writing/staging.hpp"
#include "rondo/writing/writer.hpp"

namespace rondo::writers {

/// How a writer with a thread works.
struct thread_options {
  /// How many files may be in memory at the same time, the one that is being written included. 2: while one is written
  /// the next may be taken already. At least 1. Memory for so many files is held from their first use on.
  std::size_t capacity = 2;
  /// What happens to the file that would be one too many.
  writing::when_full full = writing::when_full::wait;
  /// How long one file may take until it is durable; more than 0. None: as long as it takes.
  ///
  /// When it is over, `write` fails with io_error (timed_out), which says what the thread was doing. The thread is
  /// given up with all that it uses: it lets go of the file's memory when it comes back, and a file that it has not
  /// given its name by then is removed. The next file gets a new thread; when all memory is lost in this way, an error.
  std::optional<std::chrono::steady_clock::duration> timeout = std::nullopt;
  std::shared_ptr<writing::file_system> files = writing::posix_file_system();
  /// The format of the files, if it is not Rondo's own; it runs on the writer's thread. Its tensors refer to the file's
  /// memory. After a `timeout` it is left to run, with that memory, and what it writes is removed.
  writing::savefun savefun = nullptr;
};

/// The same for files that wait in a queue.
struct queue_options {
  /// As in thread_options. 4: training that takes snapshots quickly for a while waits later.
  std::size_t capacity = 4;
  writing::when_full full = writing::when_full::wait;
  std::optional<std::chrono::steady_clock::duration> timeout = std::nullopt;
  std::shared_ptr<writing::file_system> files = writing::posix_file_system();
  writing::savefun savefun = nullptr;
};

/// Writes each file on a thread of its own while training goes on; there is no thread between two files. One file at a
/// time, in the order of the calls. See writing::make_staged_writer for requests that are not in staging memory.
///
/// Failures reach the coroutine that awaits `write` as soon as they are known, and the next file is a new attempt. An
/// event loop that is destroyed while a file is written does not wait for it; whoever destroys the writer does, for no
/// longer than `timeout`.
/// Throws option_error for a capacity of 0 and a timeout that is not positive.
[[nodiscard]] std::shared_ptr<writing::writer> thread(thread_options options = {});

/// The same with one thread that stays from the first file to `close` or the end.
[[nodiscard]] std::shared_ptr<writing::writer> thread_queue(queue_options options = {});

}  // namespace rondo::writers

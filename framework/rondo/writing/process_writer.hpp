#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>

#include "rondo/writing/writer.hpp"

namespace rondo::writers {

struct process_options {
  /// How many files may be on their way to disk at the same time, the one that is being written included. Each takes
  /// as much shared memory as its size. At least 1.
  std::size_t capacity = 2;
  /// What happens to one more.
  writing::when_full full = writing::when_full::wait;
  /// The longest that one file may take, counted from when it is the first in line. Then its helper process is killed
  /// and the write fails with ETIMEDOUT. Nothing (default): as long as it takes.
  std::optional<std::chrono::steady_clock::duration> timeout = std::nullopt;
  /// The format of the files, if it is not Rondo's own: one of namespace formats, or a registered function (see
  /// writing::register_savefun). It is written in the helper process, from the memory that both share. For a function
  /// the helper is this program, started again, which takes as long as it takes to load it.
  writing::savefun savefun = nullptr;
};

/// Writes each file in a helper process of its own, while training goes on.
///
/// The state is copied into shared memory; the helper computes the checksums and writes, syncs and renames. As soon as
/// `write` was called (and its first step has run) nothing depends on the trainer any more: the helper finishes when
/// the trainer is killed, crashes, or is stopped with everything in its session (the helper has a session of its own,
/// and only SIGKILL ends it before its work is done). Files are written one after the other, in the order of the calls;
/// those that wait in line have been handed over as well. With `when_full::replace` they have not, because they may
/// still be replaced: only the one that is being written survives the trainer.
///
/// The helper program is part of this library and is started with posix_spawn, so nothing of the trainer is copied, and
/// it keeps nothing of the trainer open. umask and resource limits are those that the trainer has when the helper is
/// started. The trainer gets SIGCHLD when a helper ends. It should leave waiting for that process to the writer:
/// with SIGCHLD ignored, or all children awaited elsewhere, everything works, but errors cannot say how a helper ended.
///
/// `write` throws what write_atomically throws, with absolute paths; io_error when no helper can be started, when it
/// dies (with its process id and how it ended) or takes too long; write_superseded for a file whose place a newer one
/// has taken. After a failure there is no temporary file left, and the next file gets a new helper. Cancellation
/// withdraws a file that has not been handed over; others are finished. A request without an image blocks training:
/// `produce` is run on the calling thread into shared memory.
///
/// `close` waits for all files and until no helper is left. An event loop that is destroyed while files are on their
/// way leaves them to their helpers; the next use of the writer first waits, blocking, until they are done. Destroying
/// the writer does not wait for files.
///
/// Throws option_error for a capacity of 0, a timeout that is not positive and a savefun that is neither registered nor
/// one of namespace formats.
[[nodiscard]] std::shared_ptr<writing::writer> process(process_options options = {});

/// The same with one helper process for all files, which is started for the first one and ends with `close`: cheaper
/// for each file, as nothing is started.
[[nodiscard]] std::shared_ptr<writing::writer> process_queue(process_options options = {});

}  // namespace rondo::writers

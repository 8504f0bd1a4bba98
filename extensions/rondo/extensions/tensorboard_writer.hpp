#pragma once

#include <filesystem>
#include <memory>

#include "rondo/extensions/report_writer.hpp"

namespace rondo::writers {

/// Writes the numbers of a log for TensorBoard: `loop | log_report({.writer = writers::tensorboard("runs")})`, and then
/// `tensorboard --logdir result/runs`. `directory` is made if it is missing; a relative one is inside the loop's `out`.
///
/// Each run adds a file, see `event_file`, in which a number is a scalar with the name as its tag and the iteration as
/// its step. Where a run goes on from a snapshot, points after the snapshot's iteration are dropped by TensorBoard; a
/// run that starts afresh takes the place of all that were in the directory. Files of earlier runs stay as they are.
///
/// An entry is appended on the training thread, a few hundred bytes in one system call, as the log's own line is.
/// Throws `io_error` before training when there can be no such file, and later when it cannot be written.
///
/// Logs of one loop may share a writer. Loops that train at the same time need a directory each.
[[nodiscard]] std::shared_ptr<report_writer> tensorboard(std::filesystem::path directory = "tensorboard");

}  // namespace rondo::writers

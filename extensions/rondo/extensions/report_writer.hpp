#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace rondo {

/// Takes the numbers of a log to another place than the log's own file: to TensorBoard (`writers::tensorboard`), or
/// wherever a class of yours brings them. Given to `log_report` as its `writer`.
///
/// Everything is called on the training thread, which waits for it. What a function throws ends training with that
/// error.
class report_writer {
 public:
  /// Numbers under their names, in the order of the log.
  using numbers = std::vector<std::pair<std::string, double>>;

  virtual ~report_writer() = default;

  /// Once for each log of the run, before training. `out` is the loop's directory, absolute, and there. `iteration`:
  /// iterations done in earlier runs, 0 for a fresh start. If the writer has been given numbers of later iterations,
  /// they are of a run that was lost, and are going to come again.
  virtual void begin(const std::filesystem::path& out, std::int64_t iteration) = 0;
  /// One entry of the log, after `iteration` iterations.
  virtual void write(std::int64_t iteration, const numbers& values) = 0;
  /// Once for each log of the run, after its last entry, also when training failed. The writer may be used by another
  /// run after that. Default: nothing.
  virtual void end() {}
};

}  // namespace rondo

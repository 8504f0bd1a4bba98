#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <unordered_set>
#include <vector>

#include "progress.hpp"
#include "rondo/checkpoint/reader.hpp"

/// Files that were named on the command line.
namespace rondo::tool {

/// The regular file that is meant. A symbolic link is followed, because the user has named it himself.
/// Throws `unusable_error` for a directory, FIFO, socket or device, `io_error` for what is not there.
[[nodiscard]] std::filesystem::path regular_file(const std::filesystem::path& named);

/// Opens a checkpoint file. Throws as `regular_file` and `checkpoint::reader::open` do.
[[nodiscard]] checkpoint::reader open_checkpoint(const std::filesystem::path& named);

/// Whether the file begins as a safetensors file does.
[[nodiscard]] bool begins_like_safetensors(const std::filesystem::path& file);

/// Reads the whole file once through the system, so that a bad sector is an `io_error` and not a signal.
void read_through(const std::filesystem::path& file);

/// `checkpoint::problems`, with progress.
[[nodiscard]] std::vector<std::string> problems_of(const checkpoint::reader& file);

/// The storages of a file, each compared with its checksum before it is used for the first time.
class sound_storages {
 public:
  /// `file` must live longer. `what` is shown while long work goes on.
  sound_storages(const checkpoint::reader& file, std::string what);

  /// What the tensor's storage holds. Throws `format_error` when it is damaged, missing or too small.
  [[nodiscard]] std::span<const std::byte> of(const checkpoint::tensor_descriptor& tensor);

 private:
  const checkpoint::reader& file_;
  std::unordered_set<std::string> checked_;
  progress progress_;
};

}  // namespace rondo::tool

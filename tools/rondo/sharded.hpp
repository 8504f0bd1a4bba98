#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "rondo/checkpoint/sharded.hpp"

/// Sharded snapshots, which are directories.
namespace rondo::tool {

/// The directory that is meant if it is a sharded snapshot; a symbolic link is followed, because the user has named it
/// himself. Nothing for everything else.
[[nodiscard]] std::optional<std::filesystem::path> sharded_directory(const std::filesystem::path& named);

/// What checking all files of a sharded snapshot has found.
struct sharded_check {
  std::vector<std::string> problems;
  std::uint64_t records = 0;
  std::uint64_t bytes = 0;
};

/// Reads all files, with progress. Throws what makes it impossible to look further: that "complete" cannot be read.
[[nodiscard]] sharded_check check_sharded(const std::filesystem::path& directory);

/// The bytes of all files of the snapshot.
[[nodiscard]] std::uint64_t size_of(const checkpoint::sharded_reader& snapshot);

/// A sharded snapshot as one file would have it.
struct whole_state {
  struct storage {
    std::string key;
    std::uint64_t size = 0;
    std::span<const std::byte> data;  ///< of a tensor that is in "complete"; valid while the reader lives
    std::optional<checkpoint::pieced_tensor> pieces;  ///< of the others
  };
  checkpoint::tree state;
  /// In the order of the tree; the keys are "0", "1", …
  std::vector<storage> storages;

  /// The pieces of a tensor of `state`, or null.
  [[nodiscard]] const checkpoint::pieced_tensor* pieces_of(const checkpoint::tensor_descriptor& tensor) const;
  /// The bytes of the storage of one that is in "complete".
  [[nodiscard]] std::span<const std::byte> data_of(const checkpoint::tensor_descriptor& tensor) const;
};

/// Throws `format_error` for tables of pieces that make no sense.
[[nodiscard]] whole_state whole_state_of(const checkpoint::sharded_reader& snapshot);

/// The bytes of a tensor in pieces, in row-major order, from beginning to end and in little memory: as many rows at a
/// time as the pieces leave undivided, or some MiB.
class row_stream {
 public:
  row_stream(const checkpoint::sharded_reader& from, const checkpoint::pieced_tensor& tensor);

  /// Copies what begins at byte `offset`. Quick for those who ask in order. Throws as `sharded_reader::read` does.
  void read(std::uint64_t offset, std::span<std::byte> out);

 private:
  void load(std::uint64_t offset);

  const checkpoint::sharded_reader& from_;
  const checkpoint::pieced_tensor& tensor_;
  std::uint64_t row_bytes_ = 0;
  std::vector<std::int64_t> cuts_;  // rows between which no piece is divided
  std::vector<std::byte> loaded_;
  std::uint64_t loaded_offset_ = 0;
};

}  // namespace rondo::tool

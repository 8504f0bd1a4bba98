#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "rondo/checkpoint/boxes.hpp"
#include "rondo/checkpoint/reader.hpp"
#include "rondo/checkpoint/tensor_descriptor.hpp"

/// Sharded snapshots: directories in which every rank of a training has written a part of the state.
///
/// The directory holds a file "0", "1", … of each rank and "complete", all of them ordinary checkpoint files. A rank's
/// file holds {"pieces": [tensor, …], "rondo": {"attempt": number, "rank": r, "world_size": W}}. "complete" is written
/// last: without it there is no snapshot. It holds the state, in which a tensor that is kept in pieces is
///
///     {"rondo.sharded": {"sizes": (1000, 10), "dtype": "float32", "pieces": table}}
///
/// The table is an int64 tensor with a row for each piece: rank, number in that rank's list, offsets, sizes. Under
/// "rondo", "sharded" it has {"attempt": number, "world_size": W}, so that parts of different snapshots are told apart.
namespace rondo::checkpoint {

/// Name of the file that makes a directory a sharded snapshot.
inline constexpr std::string_view sharded_index = "complete";
/// Key of the dict that stands for a tensor in pieces.
inline constexpr std::string_view sharded_key = "rondo.sharded";

/// Whether this is a directory with a file "complete" in it. Symbolic links are not followed.
[[nodiscard]] bool is_sharded(const std::filesystem::path& path);

/// Whether a node of the tree of "complete" stands for a tensor in pieces.
[[nodiscard]] bool is_in_pieces(const tree& node);

/// A tensor that is kept in pieces: what it is, and where its pieces are.
struct pieced_tensor {
  std::string path;  ///< dotted, in the state; for messages
  scalar_type dtype = scalar_type::float32;
  std::vector<std::int64_t> sizes;
  /// As in the file: for each piece rank, number, offsets, sizes.
  std::vector<std::int64_t> table;

  [[nodiscard]] std::size_t row_size() const noexcept { return 2 + 2 * sizes.size(); }
  [[nodiscard]] std::size_t count() const noexcept { return table.size() / row_size(); }
  [[nodiscard]] int rank(std::size_t piece) const { return static_cast<int>(table[piece * row_size()]); }
  [[nodiscard]] std::int64_t number(std::size_t piece) const { return table[piece * row_size() + 1]; }
  [[nodiscard]] box_view box(std::size_t piece) const {
    const auto row = std::span(table).subspan(piece * row_size() + 2);
    return {row.first(sizes.size()), row.subspan(sizes.size(), sizes.size())};
  }
  /// Of the whole tensor, in bytes.
  [[nodiscard]] std::uint64_t byte_size() const;
};

/// A part of a tensor in pieces, and where its elements are to go, in row-major order.
struct wanted_box {
  const pieced_tensor* tensor = nullptr;
  std::vector<std::int64_t> offsets;
  std::vector<std::int64_t> sizes;
  std::span<std::byte> to;
};

/// A sharded snapshot that is open for reading. Of the ranks' files only those are opened of which something is wanted,
/// and of these only the pieces are read of which something is. All const members may be called from several threads at
/// once.
class sharded_reader {
 public:
  /// Reads and verifies "complete". Throws `io_error` when the system refuses, `format_error` for a directory that is
  /// no sound sharded snapshot as far as that shows in this file.
  [[nodiscard]] static sharded_reader open(const std::filesystem::path& directory);
  sharded_reader(sharded_reader&&) noexcept;
  sharded_reader& operator=(sharded_reader&&) noexcept;
  ~sharded_reader();

  [[nodiscard]] const std::filesystem::path& directory() const noexcept;
  /// The file "complete".
  [[nodiscard]] const reader& index() const noexcept;
  /// Its tree, in which tensors in pieces are as described above.
  [[nodiscard]] const tree& state() const noexcept { return index().state(); }
  /// What the snapshot says about itself.
  [[nodiscard]] const snapshot_info& info() const noexcept { return index().info()->info; }
  /// What tells this snapshot's files from those of another one that was begun under the same name.
  [[nodiscard]] std::int64_t attempt() const noexcept;
  /// How many ranks have written it.
  [[nodiscard]] int world_size() const noexcept;

  /// The tensor for which a node of `state` stands at `path`. Throws `format_error` for a node that stands for none,
  /// and for pieces that do not make it up: outside of it, with a gap or an overlap, or of ranks that there are not.
  [[nodiscard]] pieced_tensor pieces_of(const tree& node, std::string_view path) const;
  /// All tensors in pieces, in the order of the tree.
  [[nodiscard]] std::vector<pieced_tensor> tensors() const;

  /// Opens a rank's file. Throws `io_error` when it is missing, `format_error` when it is damaged or belongs to another
  /// snapshot.
  [[nodiscard]] reader rank_file(int rank) const;

  /// Reads a part of a tensor into memory that has room for exactly its elements. Every piece that has some of them is
  /// read as a whole and compared with its checksum, through the system, once per call. Throws `format_error` for a
  /// piece that is damaged or is not what the table says, `io_error` for what cannot be read; the memory may then be
  /// partly written.
  void read(const pieced_tensor& tensor, std::span<const std::int64_t> offsets, std::span<const std::int64_t> sizes,
            std::span<std::byte> to) const;
  /// The same for many, which is faster: on up to `threads` threads, file by file, each piece once whoever wants it.
  void read(std::span<const wanted_box> wanted, int threads = 1) const;

  /// Opens every rank's file and looks whether all pieces are there, without reading them. Throws as `read` does.
  void require_all() const;

  /// How many bytes of pieces have been read so far.
  [[nodiscard]] std::uint64_t bytes_read() const noexcept;

 private:
  struct content;
  explicit sharded_reader(std::unique_ptr<content> all);

  std::unique_ptr<content> content_;
};

/// Reads all files of a sharded snapshot, as `verify(const reader&)` does, and throws for the first thing that is
/// wrong.
void verify(const sharded_reader& snapshot);

}  // namespace rondo::checkpoint

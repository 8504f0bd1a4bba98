#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "rondo/checkpoint/manifest.hpp"

namespace rondo::checkpoint {

/// A file in a directory that says of itself that it is a snapshot, or a sharded snapshot (sharded.hpp). Its data has
/// not been verified.
struct cataloged_snapshot {
  std::filesystem::path path;
  snapshot_info info;
  std::uint64_t size = 0;  ///< of the file, or of all files of a sharded one, in bytes
};

/// A file that is named or begins or ends like a snapshot and cannot be read as one.
struct rejected_snapshot {
  std::filesystem::path path;
  std::string reason;
};

/// The snapshots in a directory, newest first, by the iteration that is recorded inside them. Files are only read; of
/// subdirectories, only those are looked into that are sharded snapshots, complete ones. Not safe for use by several
/// threads at once.
class catalog {
 public:
  /// Whether a name in the directory is that of a snapshot.
  using name_filter = std::function<bool(std::string_view name)>;

  /// Reads the directory as `refresh` does. With `is_snapshot`, all names count for which it returns true, and whatever
  /// cannot be read as a snapshot among them is rejected. Without it, regular files count that begin or end as Rondo's
  /// files do and whose names do not begin with a dot; what is neither is foreign and passed over without a word, as is
  /// what Python's `torch.save` wrote.
  /// Throws `io_error` when the directory cannot be listed.
  explicit catalog(std::filesystem::path directory, name_filter is_snapshot = {});

  /// Reads the directory again. Files that have not been replaced since are not opened again. Throws as above.
  void refresh();

  /// Those taken between two iterations, newest first; of equal iteration, the one whose name sorts last comes first.
  [[nodiscard]] const std::vector<cataloged_snapshot>& snapshots() const noexcept { return snapshots_; }
  /// Those taken inside an iteration, as after an error, in the same order. They are no points to go on from.
  [[nodiscard]] const std::vector<cataloged_snapshot>& interrupted() const noexcept { return interrupted_; }
  /// By name.
  [[nodiscard]] const std::vector<rejected_snapshot>& rejected() const noexcept { return rejected_; }

  /// Reads the whole snapshot and says what is wrong with it, or nothing for a sound one. A result is not kept.
  [[nodiscard]] static std::optional<std::string> problem_of(const cataloged_snapshot& snapshot);

  /// Removes the snapshot unless another one has got its name since the directory was read: one that a running trainer
  /// has just put there stays. Returns whether it was removed. The name's removal is not synced. Of a sharded one goes
  /// "complete" first, durably, so that it counts as none from then on.
  /// Throws `io_error` when the system refuses.
  bool remove(const cataloged_snapshot& snapshot);

 private:
  // What tells a file from another one that takes its name.
  struct identity {
    std::uint64_t device;
    std::uint64_t inode;
    std::uint64_t size;
    std::int64_t seconds;  // of the last change to its content
    std::int64_t nanoseconds;
    friend bool operator==(const identity&, const identity&) = default;
  };
  // One of the two is there.
  struct finding {
    identity file;  // of "complete" for a sharded one
    std::optional<snapshot_info> info;
    std::string problem;
    std::uint64_t size = 0;
  };

  [[nodiscard]] static std::optional<identity> identify(const std::filesystem::path& file);
  [[nodiscard]] std::optional<finding> examine(const std::filesystem::path& file) const;
  void examine_entry(const std::filesystem::path& file, std::map<std::string, finding>& known);
  void file_under(const std::filesystem::path& file, const finding& found);

  std::filesystem::path directory_;
  name_filter is_snapshot_;
  std::map<std::string, finding> known_;  // by name
  std::vector<cataloged_snapshot> snapshots_;
  std::vector<cataloged_snapshot> interrupted_;
  std::vector<rejected_snapshot> rejected_;
};

}  // namespace rondo::checkpoint

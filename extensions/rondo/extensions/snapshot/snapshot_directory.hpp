#pragma once

#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "rondo/extensions/snapshot/retention.hpp"
#include "rondo/writing/file_name.hpp"
#include "rondo/writing/file_system.hpp"

namespace rondo::extensions {

/// A file that looks like one of ours by its name and is none inside.
struct rejected_snapshot {
  std::filesystem::path path;
  std::string reason;
};

/// What follows the name of a snapshot that was taken at another moment than its trigger has asked for, so that it does
/// not replace one that has been. Such a one is resumed from, and retention neither counts nor removes it.
inline constexpr std::string_view preempted_suffix = ".preempted";

/// Whether `e`, thrown while a snapshot was read, leaves open whether it is sound: a lack of rights, memory or file
/// descriptors, or a device that does not answer. Then nobody may go on from an older one.
[[nodiscard]] bool proves_nothing(const std::exception& e);

/// The snapshots of one extension, files and sharded ones, in an output directory.
class snapshot_directory {
 public:
  /// With a template, files count whose names it makes; without one (callable names), files whose manifest says that
  /// the extension `owner` made them. `has_manifest` is false for files of a user's own serialization, whose iteration
  /// is taken from the name.
  /// `is_other` tells the names of other extensions, whose files never count.
  snapshot_directory(std::filesystem::path directory, std::string owner,
                     std::optional<writing::file_name_template> names, bool has_manifest,
                     std::function<bool(const std::string& name)> is_other);

  /// Newest first, by recorded iteration, then by name. Snapshots taken in the middle of an iteration do not count;
  /// files of pytorch-pfn-extras, which have no manifest, count by the iteration in their state. Files that cannot be
  /// read as snapshots, and whatever else has the name of one, are put into `rejected`. If that is asked for, throws
  /// `io_error` for a file that this process has no right to read: that is no damage.
  [[nodiscard]] std::vector<snapshot_record> list(std::vector<rejected_snapshot>* rejected = nullptr);

  /// Removes what `policy` does not keep among the snapshots up to iteration `now`: later ones belong to an earlier run
  /// that went further, and are neither counted nor touched. One that cannot be removed is passed over with a warning.
  /// `newest` stays in any case. Throws nothing: a directory that cannot be listed is a warning.
  void retain(const retention& policy, std::int64_t now, const std::filesystem::path& newest) noexcept;

  /// Removes all that have `preempted_suffix` but `newest`; passes over with a warning what it cannot remove.
  void remove_preempted_but(const std::filesystem::path& newest) noexcept;

  /// Remembers a file that this extension has just written, so that it need not be read again.
  void note(snapshot_record written, bool mid_iteration);

  /// The name of the extension whose snapshot is at `path`, if it is another one.
  [[nodiscard]] std::optional<std::string> other_owner(const std::filesystem::path& path) const;

 private:
  struct stamp {
    std::uint64_t size;
    std::int64_t modified;
    friend bool operator==(const stamp&, const stamp&) = default;
  };
  static void remove(const std::filesystem::path& snapshot);
  [[nodiscard]] static std::optional<stamp> stamp_of(const std::filesystem::path& file);
  [[nodiscard]] std::optional<snapshot_record> record_of(const writing::directory_entry& entry);
  [[nodiscard]] bool may_be_ours(const writing::directory_entry& entry) const;
  [[nodiscard]] std::optional<snapshot_record> record_inside(const std::filesystem::path& file) const;
  [[nodiscard]] snapshot_record record_by_name(const std::filesystem::path& file) const;

  std::filesystem::path directory_;
  std::string owner_;
  std::optional<writing::file_name_template> names_;
  bool has_manifest_;
  std::function<bool(const std::string& name)> is_other_;
  struct known {
    stamp seen;
    std::optional<snapshot_record> record;  // none: not one that counts
  };
  std::map<std::string, known> known_;  // what has been read, so that retention need not read it again
};

}  // namespace rondo::extensions

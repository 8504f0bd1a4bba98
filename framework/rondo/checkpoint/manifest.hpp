#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace rondo::checkpoint {

/// The file format that this version writes, and the newest that it reads. Version 1 differs in that all records are
/// aligned alike (see `plan`).
inline constexpr std::int64_t manifest_version = 2;

/// Name of the manifest record, without the root. Its presence makes a file one of Rondo's.
inline constexpr std::string_view manifest_record = "rondo.json";

/// Name of the record with a storage's bytes, without the root.
[[nodiscard]] inline std::string storage_record(std::string_view key) { return std::string("data/").append(key); }

/// What a snapshot says about itself, for whoever has to choose among snapshots.
struct snapshot_info {
  std::int64_t iteration = 0;
  std::int64_t epoch = 0;
  /// Taken between two iterations' ends, for example after an error.
  bool mid_iteration = false;
  /// Versions by library name. Another version may compute other bits.
  std::map<std::string, std::string> libraries = {};
  /// Threads that computed. Another number changes the last bits of sums.
  std::int64_t num_threads = 1;
  /// Name of the extension that took it; tells the snapshots of several extensions in one directory apart.
  std::string made_by = {};
  /// When it was taken, in seconds since 1970-01-01 UTC; 0: not recorded.
  std::int64_t created = 0;
  /// Observations that belong to the state, such as the validation accuracy, by name. Only finite ones are written.
  std::map<std::string, double> metrics = {};

  friend bool operator==(const snapshot_info&, const snapshot_info&) = default;
};

/// The record `rondo.json`.
struct manifest {
  struct record {
    std::string name;  ///< without the root
    std::uint64_t size = 0;
    std::uint32_t crc32 = 0;
    friend bool operator==(const record&, const record&) = default;
  };

  snapshot_info info;
  /// Dotted path in the state tree to the name of the record with the tensor's storage. For tools and people; where
  /// two paths read alike, the first one counts.
  std::map<std::string, std::string> tensors;
  /// Every other record, in the order of the file.
  std::vector<record> records;
  std::int64_t format_version = manifest_version;

  friend bool operator==(const manifest&, const manifest&) = default;
};

/// As JSON. The length does not depend on the checksums, so that a file can be planned before they are known.
/// Throws `state_error` for text that is not UTF-8.
[[nodiscard]] std::string to_json(const manifest& about);

/// The same JSON piece by piece, for a writer that must know where the checksums stand. The pieces come in the order of
/// their declaration; all but the first one append to what is there. Text must be UTF-8: the first one throws
/// `state_error`, the others take the caller's word.
namespace manifest_json {

[[nodiscard]] std::string begin(const snapshot_info& info, std::int64_t format_version = manifest_version);
/// Returns where in `out` the eight digits of the checksum stand.
std::size_t append_record(std::string& out, bool first, std::string_view name, std::uint64_t size, std::uint32_t crc32);
void end_records(std::string& out);
void append_tensor(std::string& out, bool first, std::string_view path, std::string_view record);
void end(std::string& out);

}  // namespace manifest_json

/// Inverse of `to_json`; unknown fields are ignored. `where` names the source in errors. Throws `format_error` for
/// what is not a manifest, and for one of a later version, saying so.
[[nodiscard]] manifest parse_manifest(std::string_view json, const std::string& where);

}  // namespace rondo::checkpoint

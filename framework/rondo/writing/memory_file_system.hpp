#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "rondo/writing/file_system.hpp"

namespace rondo::writing {

/// What a file system can be asked to do; sync is both output_file::sync and file_system::sync_file.
enum class operation { create, append, sync, close, rename, remove, inspect, list, sync_directory, create_directory };

/// Files in memory, for tests of what durable writing does when things fail.
///
/// * Faults: fail() makes a chosen operation fail as the operating system would.
/// * Crashes: for_each_crash_state() visits the states that a disk may be in after a power loss now. Only what was
///   synced is certain. Of each file that was not, nothing, half, or all of the new bytes are there, or as many zeros;
///   each creation, renaming and removal since the last sync of its directory happened or did not, independently of all
///   others (the weakest promises, after Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014).
///
/// Paths are taken as absolute; "/" exists. Safe for use by several threads, except for the set-up.
class memory_file_system final : public file_system {
 public:
  memory_file_system();
  ~memory_file_system() override;

  std::unique_ptr<output_file> create(const path& file, std::uint64_t expected_size) override;
  std::uint64_t sync_file(const path& file) override;
  void rename(const path& from, const path& to) override;
  bool remove(const path& file) override;
  [[nodiscard]] file_kind kind(const path& name) override;
  [[nodiscard]] std::vector<directory_entry> list(const path& directory) override;
  [[nodiscard]] file_use use_of(const path&) override { return file_use::changed; }
  void sync_directory(const path& directory) override;
  bool create_directory(const path& directory) override;

  /// The content of a regular file; nothing when there is none. Not an operation: never fails by order.
  [[nodiscard]] std::optional<std::vector<std::byte>> read(const path& file) const;

  /// Puts something of the given kind in place, durable at once. `content` is for regular files.
  void place(const path& name, file_kind kind, std::vector<std::byte> content = {});

  /// Makes the `nth` operation of a kind from now on (1: the next) fail with the errno value `code`.
  void fail(operation kind, std::size_t nth, int code);

  /// How many operations of a kind were asked for so far.
  [[nodiscard]] std::size_t count(operation kind) const;

  /// Calls `observer` before each operation, on the thread that asked for it.
  void observe(std::function<void(operation, const path&)> observer);

  /// Visits the states that the disk may be in if the power fails now: all of them when there are at most `limit`,
  /// otherwise `limit` of them, chosen by `seed` and including "nothing more arrived" and "everything arrived". Each
  /// state is a file system of its own in which everything is durable. Returns the number of states visited.
  std::size_t for_each_crash_state(const std::function<void(memory_file_system&)>& visit, std::size_t limit = 4096,
                                   std::uint64_t seed = 0) const;

 private:
  struct node;
  class file;
  struct crash;

  void begin(operation kind, const char* verb, const path& name);
  [[nodiscard]] std::shared_ptr<node> find(const path& name) const;
  [[nodiscard]] std::shared_ptr<node> directory(const char* verb, const path& name) const;

  mutable std::mutex mutex_;
  std::shared_ptr<node> root_;
  std::map<operation, std::size_t> counts_;
  std::map<operation, std::map<std::size_t, int>> faults_;
  std::function<void(operation, const path&)> observer_;
};

}  // namespace rondo::writing

#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

/// Durable writing: everything here moves bytes and knows neither tensors nor events.
namespace rondo::writing {

using std::filesystem::path;

/// What a name stands for. A symbolic link is never followed to find out.
enum class file_kind { none, regular, directory, symlink, other };

/// One name in a directory. `size` is in bytes, and 0 for everything but regular files.
struct directory_entry {
  std::string name;
  file_kind kind = file_kind::none;
  std::uint64_t size = 0;
};

/// What can be seen of whether a file is being written.
enum class file_use {
  locked,   ///< by somebody who has created it and not closed it yet
  changed,  ///< not locked, but changed in the last minutes
  idle,     ///< neither
};

/// A new file, open for appending. Not safe for use by several threads at once.
///
/// After any operation failed the file is given up: every later call throws, and nothing is ever retried, because after
/// a failed sync the kernel drops the data and reports success the next time (Rebello et al., "Can applications recover
/// from fsync failures?", ATC 2020). Destroying an open file closes it and leaves an unfinished file behind.
class output_file {
 public:
  output_file() = default;
  output_file(const output_file&) = delete;
  output_file& operator=(const output_file&) = delete;
  virtual ~output_file() = default;

  /// Adds `bytes` at the end. Small pieces are gathered, and large files are written while the next pieces are
  /// produced, so an error may surface at a later call.
  /// Throws io_error; when the disk is full it says how much was needed and how much there is.
  virtual void append(std::span<const std::byte> bytes) = 0;

  /// The same for bytes that stay as they are until `sync` or `close` has returned or the file is destroyed: they may
  /// be written later, straight from where they are.
  virtual void append_stable(std::span<const std::byte> bytes) { append(bytes); }

  /// Returns once all bytes appended so far are on stable storage. The name of the file is not: see
  /// file_system::sync_directory. Throws io_error.
  virtual void sync() = 0;

  /// Hands over whatever is still gathered and closes. Does not sync. Throws io_error, also for errors of close itself
  /// (network file systems report failed writes there).
  virtual void close() = 0;
};

/// The part of a file system that durable writing needs. Tests replace it (see memory_file_system).
///
/// Calls block the calling thread and may be made from several threads at once. Every failure is an io_error with the
/// operation, the path and the reason.
class file_system {
 public:
  file_system() = default;
  file_system(const file_system&) = delete;
  file_system& operator=(const file_system&) = delete;
  virtual ~file_system() = default;

  /// Creates a file that must not exist yet, following no link in place of it. Permissions are 0666 less the umask.
  /// Space for `expected_size` bytes (0: unknown) is set aside at once, so that a full disk is an error before anything
  /// is written. When it throws, no file is left behind.
  [[nodiscard]] virtual std::unique_ptr<output_file> create(const path& file, std::uint64_t expected_size) = 0;

  /// Brings an existing regular file, which somebody else wrote, to stable storage and returns its size in bytes.
  virtual std::uint64_t sync_file(const path& file) = 0;

  /// Gives a file another name in the same directory. What had that name is replaced in one step: whoever looks sees
  /// the old file or the new one, never none. Durable only after sync_directory.
  virtual void rename(const path& from, const path& to) = 0;

  /// Removes a file (not a directory). Returns false when there is none. Durable only after sync_directory.
  virtual bool remove(const path& file) = 0;

  /// What `name` is, without following a link; file_kind::none when there is nothing.
  [[nodiscard]] virtual file_kind kind(const path& name) = 0;

  /// The entries of a directory, sorted by name, without "." and "..".
  [[nodiscard]] virtual std::vector<directory_entry> list(const path& directory) = 0;

  /// Returns once the names in `directory` (creations, renames, removals so far) are on stable storage.
  virtual void sync_directory(const path& directory) = 0;

  /// Whether somebody writes a regular file, or may do so: here or, where locks travel, on another host of a shared
  /// file system. Those that `create` has made are locked until they are closed.
  [[nodiscard]] virtual file_use use_of(const path& file) = 0;

  /// Creates one directory. Returns false when there is one, or a link to one, already.
  virtual bool create_directory(const path& directory) = 0;
};

/// The file system of the operating system. Data bypasses the page cache (O_DIRECT) in chunks of 8 MiB where the file
/// system allows it, and goes through it elsewhere; interrupted and short writes are completed. A file of more than
/// 16 MiB is written by a thread of its own, up to two chunks behind those who append; it ends with the file. For bytes
/// that are not stable it needs 24 MiB, which are kept for the next file.
[[nodiscard]] std::shared_ptr<file_system> posix_file_system();

/// Creates `directory` and whatever is missing above it, so that it survives a power loss: each parent is synced after
/// its new entry. Does nothing but one sync when it exists. Throws io_error.
void create_directories(file_system& files, const path& directory);

/// The directory that holds `name`: "." for a bare name.
[[nodiscard]] path directory_of(const path& name);

}  // namespace rondo::writing

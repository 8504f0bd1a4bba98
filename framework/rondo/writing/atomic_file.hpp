#pragma once

#include <sys/types.h>

#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "rondo/writing/file_system.hpp"

namespace rondo::writing {

/// Takes the next bytes of a file.
class append_function {
 public:
  using function = std::function<void(std::span<const std::byte>)>;

  /// Makes no difference between bytes that are stable and others.
  template <class F>
    requires(!std::same_as<std::remove_cvref_t<F>, append_function> &&
             std::is_invocable_v<const std::remove_cvref_t<F>&, std::span<const std::byte>>)
  append_function(F&& append) : append_(std::forward<F>(append)) {}

  append_function(function append, function stable) : append_(std::move(append)), stable_(std::move(stable)) {}

  /// The span is used during the call only.
  void operator()(std::span<const std::byte> bytes) const { append_(bytes); }

  /// Saves a copy, where that can be saved: the bytes must stay as they are until the file is finished, that is until
  /// the function returns or throws that has called the producer.
  void stable(std::span<const std::byte> bytes) const { stable_ ? stable_(bytes) : append_(bytes); }

 private:
  function append_;
  function stable_;
};

/// Hands the content of a file to `append`, piece by piece, in order.
using producer = std::function<void(const append_function& append)>;

/// Writes a file of its own at the path that it is given (a user's serializer).
using path_producer = std::function<void(const path& temporary)>;

/// What a finished write says about itself. When there is a receipt, the file is whole, under its name and durable.
class write_receipt {
 public:
  // User-declared: GCC 12 destroys aggregates in co_await expressions twice.
  write_receipt() = default;

  path target;
  /// Size of the file.
  std::uint64_t bytes = 0;
  /// Seconds spent producing and writing.
  double write_seconds = 0;
  /// Seconds spent waiting until the content was on stable storage.
  double sync_seconds = 0;
  /// Seconds spent giving the file its name durably.
  double commit_seconds = 0;
};

/// Writes a file so that at every moment, also after a crash or a power loss, `target` is what it was before or the
/// whole new file: unique temporary name in the same directory, write, sync, rename, sync of the directory. An existing
/// regular file is replaced. A missing directory is created. Blocks the calling thread, on which `produce` runs too.
///
/// `expected_size` is the size in bytes; producing more or less is an error.
/// Throws io_error, also when `target` is a directory, a symbolic link, a FIFO or a device; what `produce` throws
/// passes unchanged. On failure the temporary file is removed and `target` is as before, with one exception: when the
/// last step, the sync of the directory, fails, the new file is in place but might not survive a power loss (the error
/// says so), and older files should be kept.
write_receipt write_atomically(file_system& files, const path& target, std::uint64_t expected_size,
                               const producer& produce);

/// The same for a serializer that insists on writing by itself: `produce` gets the temporary path, at which nothing
/// exists, and must leave a closed regular file there. Its size is in the receipt. `files` must be the file system of
/// the operating system, or one in which `produce` writes.
write_receipt write_atomically_by_path(file_system& files, const path& target, const path_producer& produce);

/// Removes what killed processes left in `directory`: regular files under the temporary names of the functions above
/// (`temporary_name`) whose process no longer runs on this host, or which this process left. Those of other hosts and
/// containers go when nobody has them locked and nothing has changed them for ten minutes. Nothing else is touched, nor
/// are files that this process is writing. Returns what was removed. Throws io_error.
///
/// Call it while holding the directory_lock.
std::vector<path> remove_stale_temporaries(file_system& files, const path& directory);

/// A file under a temporary name, and the living process in whose name it is.
struct live_temporary {
  path file;
  pid_t process = 0;
};

/// The temporaries in `directory` whose processes run on this host, other ones than this, and those of other hosts that
/// are locked. Throws io_error.
[[nodiscard]] std::vector<live_temporary> live_temporaries(file_system& files, const path& directory);

/// Waits, blocking, until no other living process has temporaries in `directory`: a helper process may still be
/// writing what a trainer handed over before it died (writers::process). Returns what is left at the end of `limit`:
/// nothing, or the files of a process that hangs, or that only has the number of the one that made them. Throws
/// io_error.
///
/// Call it while holding the directory_lock, before choosing a file to resume from.
[[nodiscard]] std::vector<live_temporary> wait_for_live_temporaries(file_system& files, const path& directory,
                                                                    std::chrono::steady_clock::duration limit);

/// Makes an empty temporary for `target` in the name of another process, which will write that file: from now on until
/// it removes the file or ends, live_temporaries tells of it. Returns the path, which is empty when it cannot be made,
/// for example because the directory does not exist yet.
[[nodiscard]] path announce_writing(file_system& files, const path& target, pid_t process);

/// Removes all temporaries for `target` in the name of `process`, which must have ended. Throws io_error.
void remove_temporaries_of(file_system& files, const path& target, pid_t process);

}  // namespace rondo::writing

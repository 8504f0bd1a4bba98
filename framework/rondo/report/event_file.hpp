#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <utility>

#include "rondo/writing/posix.hpp"

namespace rondo {

/// A new file of events that TensorBoard reads: records in TensorFlow's framing (length, masked CRC-32C of the length,
/// data, masked CRC-32C of the data), each a protocol buffer `tensorflow.Event`.
///
/// TensorBoard takes the files of a directory in the order of their names, as one run. So the name holds the time,
/// `events.out.tfevents.<seconds since 1970>.<host>.<process>.rondo`, and is always greater than those that are there
/// already, also when the clock goes backwards. Each file begins with a mark, `SessionLog.START`, at its first step:
/// points from that step on in earlier files are of a run that was lost, and TensorBoard drops them. See `_Purge` in
/// TensorBoard's event_accumulator.py; its newer data server has the same effect without the mark, by dropping, tag by
/// tag, what is not before a new point (reservoir.rs).
///
/// Everything is written when the call returns, one system call for each; nothing is synced. After an error the file
/// still ends with a whole record and can be written again. Not for several threads at once; several files may be made
/// in one directory at the same time.
class event_file {
 public:
  /// A number under its name, which TensorBoard calls the tag.
  using scalar = std::pair<std::string, double>;

  /// Makes `directory`, where it is missing, and a file in it that was not there before; a link is not followed.
  /// Throws `io_error`.
  event_file(const std::filesystem::path& directory, std::int64_t first_step);

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  /// Adds one event with all of `scalars`, at the present time. They become floats, NaN and infinities stay what they
  /// are; what is not UTF-8 in a name is replaced. Nothing is added when there are none. Throws `io_error`.
  void write(std::int64_t step, std::span<const scalar> scalars);

 private:
  void append(std::span<const std::byte> records);

  std::filesystem::path path_;
  writing::posix::descriptor file_;
  std::uint64_t size_ = 0;
};

}  // namespace rondo

#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <range/v3/range/access.hpp>
#include <range/v3/view/facade.hpp>
#include <string>

#include "rondo/data/stage.hpp"

namespace rondo::data {

struct text_options {
  /// How many bytes a line may have, counting its end. A file without any line ends is otherwise read into memory
  /// whole.
  std::int64_t max_line = std::int64_t{16} << 20;
};

/// The lines of a text file as a stream of `std::string`: one line is in memory at a time, and the number of lines is
/// not known. A line ends with \n or \r\n, which is not part of it; what stands after the last one is a line if it is
/// not empty. Bytes are passed on as they are, whatever their encoding.
///
/// A file compressed with gzip (told by its content) is read in the same way.
///
/// Each `begin()` opens the file and reads it from the beginning. A position is the byte at which a line begins (in the
/// decompressed bytes): a resumed run goes there at once in a plain file, and decompresses everything before it in a
/// compressed one. The file must not change during training and until it is resumed.
///
/// A copy shares nothing and begins anew. One thread at a time.
class text_lines : public ranges::view_facade<text_lines, ranges::unknown> {
 public:
  using streamed_value = std::string;

  /// No file; `begin` throws `io_error`.
  text_lines() = default;
  /// Throws `io_error` when there is no regular file that can be opened, `option_error` when `max_line` is below 1.
  /// Iterating throws `io_error` when reading fails, and `format_error` with path and line number for a line that is
  /// too long, for a gzip stream that is damaged or cut off, and for a position at which no line begins.
  explicit text_lines(std::filesystem::path path, text_options options = {});

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }

  /// The byte at which the current line begins.
  [[nodiscard]] std::int64_t tell() const;
  /// The next `begin()` begins with the line there, once.
  void seek(std::int64_t position);

 private:
  friend ranges::range_access;
  friend detail::stream_cursor<text_lines>;

  struct pass;

  [[nodiscard]] detail::stream_cursor<text_lines> begin_cursor();
  [[nodiscard]] ranges::default_sentinel_t end_cursor() const { return {}; }
  [[nodiscard]] std::string& current();
  [[nodiscard]] bool exhausted() const;
  void produce_next();

  std::filesystem::path path_;
  text_options options_;
  std::int64_t from_ = 0;
  detail::left_behind<std::shared_ptr<pass>> pass_;
};

/// The lines of a text file, as `text_lines` gives them, reached at random, so that `shuffle` needs no memory for them:
/// 8 bytes per line are held, and a line is read when it is asked for. A random access view; copies share the file,
/// which stays open and must not change. Several threads may read at once.
class text_file : public ranges::view_facade<text_file, ranges::finite> {
 public:
  /// No lines.
  text_file() = default;
  /// Reads the file once, from beginning to end, to find its lines. Throws `io_error` when it is no regular file or
  /// cannot be opened or read, `option_error` when `max_line` is below 1, `format_error` when a line is too long, and
  /// when the file is compressed.
  explicit text_file(const std::filesystem::path& path, text_options options = {});

  [[nodiscard]] std::int64_t size() const;
  /// Line `index`. Throws `std::out_of_range` when there is no such line, `io_error` when it cannot be read,
  /// `format_error` when the file has changed so that no line is there any more.
  [[nodiscard]] std::string operator[](std::int64_t index) const;

 private:
  friend ranges::range_access;
  friend detail::index_cursor<text_file>;

  struct contents;

  [[nodiscard]] std::string element(std::int64_t index) const { return (*this)[index]; }
  [[nodiscard]] auto begin_cursor() const { return detail::index_cursor<text_file>(this, 0); }
  [[nodiscard]] auto end_cursor() const { return detail::index_cursor<text_file>(this, size()); }

  std::shared_ptr<const contents> contents_;
};

}  // namespace rondo::data

#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "rondo/data/input_file.hpp"

namespace rondo::data::detail {

/// Text without the \n or \r\n at its end.
[[nodiscard]] std::string_view without_line_end(std::string_view text) noexcept;

/// Reads a plain or gzip-compressed file line by line, in memory for one line. A line ends with \n, or with the file
/// when something stands after the last \n.
class line_reader {
 public:
  /// Begins at `offset`. `option` is the name under which the user sets `max_bytes`, how long a line may be with its
  /// end. Throws `io_error` when the file cannot be opened, and `format_error` when no line begins at `offset`.
  line_reader(const std::filesystem::path& path, const char* option, std::uint64_t max_bytes, std::uint64_t offset = 0);

  /// Goes on to the next line, at first to the first one; false when there is none. Throws `format_error` for a line
  /// that is too long and for a damaged gzip stream.
  bool next();

  /// The current line with its end. Valid until `next`.
  [[nodiscard]] std::string_view line() const { return {buffer_.data() + begin_, end_ - begin_}; }
  /// Where it begins; at the end of the file, the size of the file.
  [[nodiscard]] std::uint64_t offset() const noexcept { return offset_; }
  /// Counted from 1; 0 when the reading began in the middle of the file.
  [[nodiscard]] std::int64_t number() const noexcept { return from_beginning_ ? number_ : 0; }
  [[nodiscard]] const input_file& file() const noexcept { return file_; }
  /// The file and, if known, the line, for messages.
  [[nodiscard]] std::string where() const;

 private:
  void go_to(std::uint64_t offset);
  bool begin_line(std::size_t length);
  void require_short(std::size_t length);
  bool read_more();

  input_file file_;
  const char* option_;
  std::uint64_t max_bytes_;
  std::string buffer_;     // holds bytes up to filled_
  std::size_t begin_ = 0;  // of the current line
  std::size_t end_ = 0;    // of the current line
  std::size_t filled_ = 0;
  std::uint64_t offset_ = 0;
  std::int64_t number_ = 0;
  bool from_beginning_;
};

}  // namespace rondo::data::detail

#pragma once

#include <c10/core/ScalarType.h>

#include <concepts>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <range/v3/range/access.hpp>
#include <range/v3/view/facade.hpp>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "rondo/data/stage.hpp"
#include "rondo/data/tensor_dataset.hpp"

/// Comma-separated values as RFC 4180 describes them: fields with delimiters, line ends or quotes in them stand between
/// double quotes, quotes inside are doubled, every row has the same number of fields. Lines end with \n or \r\n;
/// any other \r must stand between quotes. Empty lines and a byte order mark are passed over. Numbers are read in the
/// same way whatever the locale.
namespace rondo::data {

/// One column of a CSV file: its name in the header, or its index, counted from 0, negative from the end.
class csv_column {
 public:
  csv_column(std::string name) : which_(std::move(name)) {}
  csv_column(const char* name) : which_(std::string(name)) {}
  csv_column(std::integral auto index) : which_(static_cast<std::int64_t>(index)) {}

  [[nodiscard]] const std::variant<std::int64_t, std::string>& which() const noexcept { return which_; }

 private:
  std::variant<std::int64_t, std::string> which_;
};

struct csv_options {
  /// Whether the first row has the names of the columns.
  bool header = true;
  /// Between two fields. Any character but the double quote and those that end lines.
  char delimiter = ',';
  /// The column that goes into `target`.
  csv_column target = -1;
  /// The columns that go into `data`, in this order. Empty: all but the target, in the order of the file.
  std::vector<csv_column> columns = {};
  /// float32, or int64 for classes: then each target has to be a whole number.
  at::ScalarType target_type = at::kFloat;
  /// How many bytes a row may have. One quote that is not closed makes all the rest of a file one row.
  std::int64_t max_row = std::int64_t{16} << 20;
};

/// Reads a CSV file of numbers, plain or compressed with gzip (told by its content), into memory: `data` is float32
/// [n, k], `target` float32 or int64 [n]. Blanks around numbers and names are ignored. "nan" and "inf" are numbers; an
/// empty field is not. Columns that are not asked for may hold anything.
///
/// Throws `io_error` when the file cannot be opened or read. Throws `option_error` when an option makes no sense, or no
/// sense for this file: a column that it does not have. Throws `format_error` naming file, line, column, what was found
/// and what was expected: for a field that is not a number or does not fit its type, a row with more or fewer fields
/// than the first, quotes in the wrong place, a row that is too long, a damaged gzip stream, and a file without the
/// first row.
[[nodiscard]] tensor_dataset csv(const std::filesystem::path& path, const csv_options& options = {});

struct csv_rows_options {
  /// Whether the first row has the names of the columns.
  bool header = true;
  /// Between two fields. Any character but the double quote and those that end lines.
  char delimiter = ',';
  /// How many bytes a row may have. One quote that is not closed makes all the rest of a file one row.
  std::int64_t max_row = std::int64_t{16} << 20;
};

/// The rows of a CSV file, each a `std::vector<std::string>` with its fields as they are, blanks included. A random
/// access view: 8 bytes per row are held, and a row is read when it is asked for. Copies share the file, which stays
/// open and must not change. Several threads may read at once.
class csv_rows : public ranges::view_facade<csv_rows, ranges::finite> {
 public:
  using row = std::vector<std::string>;

  /// No rows.
  csv_rows() = default;
  /// Reads the file once, from beginning to end, to find and check its rows. Throws `io_error` when it is no regular
  /// file or cannot be opened or read, `option_error` for bad options, and `format_error` as `csv` does, and when the
  /// file is compressed.
  explicit csv_rows(const std::filesystem::path& path, csv_rows_options options = {});

  [[nodiscard]] std::int64_t size() const;
  /// Row `index`, the header not counted. Throws `std::out_of_range` when there is no such row, `io_error` when it
  /// cannot be read, `format_error` when the file has changed so that no row is there any more.
  [[nodiscard]] row operator[](std::int64_t index) const;
  /// The names of the columns; empty without a header.
  [[nodiscard]] const row& header() const;

 private:
  friend ranges::range_access;
  friend detail::index_cursor<csv_rows>;

  struct contents;

  [[nodiscard]] row element(std::int64_t index) const { return (*this)[index]; }
  [[nodiscard]] auto begin_cursor() const { return detail::index_cursor<csv_rows>(this, 0); }
  [[nodiscard]] auto end_cursor() const { return detail::index_cursor<csv_rows>(this, size()); }

  std::shared_ptr<const contents> contents_;
};

}  // namespace rondo::data

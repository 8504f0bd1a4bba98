#include "rondo/data/csv.hpp"

#include <ATen/Functions.h>
#include <csv.h>
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <exception>
#include <new>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string_view>
#include <type_traits>

#include "rondo/data/input_file.hpp"
#include "rondo/data/line_reader.hpp"
#include "rondo/error.hpp"

namespace rondo::data {

namespace {

/// Text as a message shows it: short, between quotes, without control characters.
std::string shown(std::string_view text) {
  constexpr std::size_t enough = 40;
  std::string result = "'";
  for (const char c : text.substr(0, enough)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f)
      result += fmt::format("\\x{:02x}", byte);
    else
      result += c;
  }
  return result + (text.size() > enough ? "…'" : "'");
}

std::string_view trimmed(std::string_view text) {
  const auto first = text.find_first_not_of(" \t");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

/// Takes text apart into the fields of one row after the other. libcsv does the work; only \n ends a row for it, so
/// that rows end where lines do, and the \r before it is a blank, which does not belong to the field.
class row_parser {
 public:
  explicit row_parser(char delimiter) {
    if (csv_init(&parser_, CSV_STRICT | CSV_STRICT_FINI) != 0) throw std::bad_alloc();
    csv_set_delim(&parser_, static_cast<unsigned char>(delimiter));
    csv_set_term_func(&parser_, [](unsigned char c) { return c == '\n' ? 1 : 0; });
    csv_set_space_func(&parser_, [](unsigned char c) { return c == '\r' ? 1 : 0; });
    csv_set_blk_size(&parser_, 4096);
  }
  row_parser(const row_parser&) = delete;
  row_parser& operator=(const row_parser&) = delete;
  ~row_parser() { csv_free(&parser_); }

  /// Text in which at most one row ends. Returns how many bytes of it are right. What comes after the end of a row
  /// begins another one.
  std::size_t parse(std::string_view text) {
    if (ended_) count_ = 0;
    ended_ = false;
    const auto done = csv_parse(&parser_, text.data(), text.size(), &on_field, &on_row, this);
    rethrow();
    if (done < text.size() && csv_error(&parser_) != CSV_EPARSE) throw std::bad_alloc();
    return done;
  }

  /// At the end of the text: ends a row that has no line end. False when a quote is open.
  [[nodiscard]] bool finish() {
    const bool closed = csv_fini(&parser_, &on_field, &on_row, this) == 0;
    rethrow();
    return closed;
  }

  [[nodiscard]] bool row_ended() const noexcept { return ended_; }
  /// How many fields the row has so far.
  [[nodiscard]] std::size_t count() const noexcept { return count_; }
  [[nodiscard]] const std::string& operator[](std::size_t index) const { return fields_[index]; }
  [[nodiscard]] csv_rows::row row() const {
    return {fields_.begin(), fields_.begin() + static_cast<std::ptrdiff_t>(count_)};
  }

 private:
  static void on_field(void* text, std::size_t size, void* self) {
    static_cast<row_parser*>(self)->add({static_cast<const char*>(text), size});
  }
  static void on_row(int, void* self) { static_cast<row_parser*>(self)->ended_ = true; }

  void add(std::string_view text) noexcept {
    try {
      if (count_ == fields_.size()) fields_.emplace_back();
      fields_[count_] = text;
      ++count_;
    } catch (...) {
      problem_ = std::current_exception();  // must not pass through C
    }
  }
  void rethrow() {
    if (problem_) std::rethrow_exception(std::exchange(problem_, nullptr));
  }

  csv_parser parser_{};
  std::vector<std::string> fields_;  // the first count_ count; the others are kept for the memory that they have
  std::size_t count_ = 0;
  bool ended_ = false;
  std::exception_ptr problem_;
};

/// Reads a file row by row, in memory for one row.
class row_reader {
 public:
  row_reader(const std::filesystem::path& path, char delimiter, std::int64_t max_row)
      : lines_(path, "max_row", static_cast<std::uint64_t>(max_row)),
        parser_(delimiter),
        max_row_(static_cast<std::uint64_t>(max_row)) {}

  /// Goes on to the next row, at first to the first one; false when there is none.
  bool next() {
    if (!find_row()) return false;
    std::uint64_t size = 0;
    while (true) {
      parse_line();
      if (parser_.row_ended()) break;
      size += lines_.line().size();
      if (size > max_row_)
        fail(fmt::format(
            "the row that begins here is longer than {} bytes, the option 'max_row'; is a quote not closed?",
            max_row_));
      if (lines_.next()) continue;
      if (!parser_.finish()) fail("a quote in the row that begins here is not closed when the file ends");
      break;
    }
    require_same_count();
    return true;
  }

  [[nodiscard]] const row_parser& fields() const noexcept { return parser_; }
  /// Where the row begins; at the end of the file, the size of the file.
  [[nodiscard]] std::uint64_t offset() const noexcept { return offset_; }
  [[nodiscard]] const detail::input_file& file() const noexcept { return lines_.file(); }

  [[noreturn]] void fail(const std::string& problem) const {
    throw format_error(fmt::format("{}, line {}", lines_.file().where(), line_), offset_, problem);
  }
  /// Field `index` of the row is not `expected`.
  [[noreturn]] void fail_at(std::size_t index, const std::string& column, const std::string& expected) const {
    throw format_error(fmt::format("{}, line {}, column {}", lines_.file().where(), line_, column), offset_,
                       fmt::format("expected {}, found {}", expected, shown(parser_[index])));
  }

 private:
  bool find_row() {
    while (lines_.next()) {
      begin_row();
      if (text_.find_first_not_of("\r\n") != std::string_view::npos) return true;
    }
    offset_ = lines_.offset();
    return false;
  }

  void begin_row() {
    constexpr std::string_view byte_order_mark = "\xef\xbb\xbf";
    line_ = lines_.number();
    offset_ = lines_.offset();
    text_ = lines_.line();
    if (line_ != 1 || !text_.starts_with(byte_order_mark)) return;
    text_.remove_prefix(byte_order_mark.size());
    offset_ += byte_order_mark.size();
  }

  void parse_line() {
    const bool first = lines_.number() == line_;
    const auto text = first ? text_ : lines_.line();
    const auto right = parser_.parse(text);
    if (right == text.size()) return;
    throw format_error(
        fmt::format("{}, column {}", lines_.where(), parser_.count() + 1), (first ? offset_ : lines_.offset()) + right,
        fmt::format("found {} beside a quote; expected a field that stands between quotes as a whole, with each quote "
                    "inside doubled",
                    shown(detail::without_line_end(text.substr(right)))));
  }

  void require_same_count() {
    if (expected_ == 0) expected_ = parser_.count();
    if (parser_.count() != expected_)
      fail(fmt::format("the row has {} fields; expected {}, as in the first row", parser_.count(), expected_));
  }

  detail::line_reader lines_;
  row_parser parser_;
  std::uint64_t max_row_;
  std::uint64_t offset_ = 0;
  std::int64_t line_ = 0;     // on which the row begins
  std::string_view text_;     // of that line
  std::size_t expected_ = 0;  // fields; 0 before the first row
};

void check_format(char delimiter, std::int64_t max_row) {
  if (delimiter == '"' || delimiter == '\n' || delimiter == '\r')
    throw option_error("delimiter", shown({&delimiter, 1}), "any character but the double quote and line ends");
  if (max_row < 1) throw option_error("max_row", fmt::format("{}", max_row), "1 byte or more");
}

/// The columns of a file, which options are compared with.
struct columns {
  std::vector<std::string> names;  // empty without a header
  std::size_t count = 0;

  [[nodiscard]] std::string described(std::size_t index) const {
    return names.empty() ? fmt::format("{}", index + 1) : fmt::format("{} ({})", index + 1, shown(names[index]));
  }
  [[nodiscard]] std::string listed() const {
    constexpr std::size_t enough = 20;
    std::string list;
    for (std::size_t i = 0; i < std::min(names.size(), enough); ++i) list += (i == 0 ? "" : ", ") + shown(names[i]);
    return list + (names.size() > enough ? ", …" : "");
  }
};

std::size_t find(const char* option, std::int64_t index, const columns& all) {
  const auto count = static_cast<std::int64_t>(all.count);
  if (index < -count || index >= count)
    throw option_error(option, fmt::format("{}", index),
                       fmt::format("from {} to {}, the columns of the file", -count, count - 1));
  return static_cast<std::size_t>(index < 0 ? index + count : index);
}

std::size_t find(const char* option, const std::string& name, const columns& all) {
  if (all.names.empty())
    throw option_error(option, shown(name), "an index, since the columns of the file have no names");
  const auto found = std::find(all.names.begin(), all.names.end(), name);
  if (found == all.names.end()) throw option_error(option, shown(name), "one of " + all.listed());
  if (std::find(found + 1, all.names.end(), name) != all.names.end())
    throw option_error(option, shown(name), "an index, since several columns of the file have this name");
  return static_cast<std::size_t>(found - all.names.begin());
}

std::size_t find(const char* option, const csv_column& column, const columns& all) {
  return std::visit([&](const auto& which) { return find(option, which, all); }, column.which());
}

/// Which columns go where.
struct selection {
  std::size_t target;
  std::vector<std::size_t> data;
};

selection select(const csv_options& options, const columns& all) {
  selection result{find("target", options.target, all), {}};
  for (const auto& column : options.columns) result.data.push_back(find("columns", column, all));
  if (std::find(result.data.begin(), result.data.end(), result.target) != result.data.end())
    throw option_error("columns", fmt::format("column {}", all.described(result.target)), "any but the target");
  if (!options.columns.empty()) return result;
  for (std::size_t i = 0; i < all.count; ++i)
    if (i != result.target) result.data.push_back(i);
  if (result.data.empty()) throw option_error("columns", "none", "a file with a column beside the target");
  return result;
}

/// The whole text as a number, or nothing.
template <class Number>
std::optional<Number> parse(std::string_view text) {
  if (text.size() > 1 && text[0] == '+' && text[1] != '-') text.remove_prefix(1);
  Number number{};
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (problem != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

std::optional<float> to_float(std::string_view text) {
  const auto exact = parse<double>(text);
  if (!exact) return std::nullopt;
  const auto rounded = static_cast<float>(*exact);
  return std::isinf(rounded) && !std::isinf(*exact) ? std::nullopt : std::optional(rounded);
}

/// Programs that know one type of number write classes as 3.0 or 3e+00.
std::optional<std::int64_t> to_whole(std::string_view text) {
  if (const auto whole = parse<std::int64_t>(text)) return whole;
  constexpr double exact_limit = 0x1p53;
  const auto number = parse<double>(text);
  if (!number || !(std::abs(*number) <= exact_limit) || std::trunc(*number) != *number) return std::nullopt;
  return static_cast<std::int64_t>(*number);
}

template <class Number>
at::Tensor to_tensor(std::vector<Number> numbers, at::IntArrayRef sizes) {
  const auto type = std::is_same_v<Number, float> ? at::kFloat : at::kLong;
  if (numbers.empty()) return at::empty(sizes, at::TensorOptions().dtype(type));
  auto owner = std::make_unique<std::vector<Number>>(std::move(numbers));
  auto tensor = at::from_blob(
      owner->data(), sizes, [owner = owner.get()](void*) { delete owner; }, at::TensorOptions().dtype(type));
  static_cast<void>(owner.release());
  return tensor;
}

/// What `csv` collects.
class table {
 public:
  table(const selection& selected, const columns& all, at::ScalarType target_type)
      : selected_(selected), all_(all), whole_targets_(target_type == at::kLong) {}

  void add(const row_reader& from) {
    for (const auto index : selected_.data) data_.push_back(float_at(from, index));
    if (whole_targets_)
      classes_.push_back(whole_at(from, selected_.target));
    else
      targets_.push_back(float_at(from, selected_.target));
    ++rows_;
  }

  [[nodiscard]] tensor_dataset take() && {
    const auto width = static_cast<std::int64_t>(selected_.data.size());
    auto target = whole_targets_ ? to_tensor(std::move(classes_), {rows_}) : to_tensor(std::move(targets_), {rows_});
    return {to_tensor(std::move(data_), {rows_, width}), std::move(target)};
  }

 private:
  [[nodiscard]] float float_at(const row_reader& from, std::size_t index) const {
    const auto number = to_float(trimmed(from.fields()[index]));
    if (!number) from.fail_at(index, all_.described(index), "a number that float32 can hold");
    return *number;
  }
  [[nodiscard]] std::int64_t whole_at(const row_reader& from, std::size_t index) const {
    const auto number = to_whole(trimmed(from.fields()[index]));
    if (!number) from.fail_at(index, all_.described(index), "a whole number, as 'target_type' is int64");
    return *number;
  }

  selection selected_;
  const columns& all_;
  bool whole_targets_;
  std::vector<float> data_;
  std::vector<float> targets_;  // one of these two
  std::vector<std::int64_t> classes_;
  std::int64_t rows_ = 0;
};

columns columns_of(const row_reader& first, bool header) {
  columns all;
  all.count = first.fields().count();
  if (header)
    for (std::size_t i = 0; i < all.count; ++i) all.names.emplace_back(trimmed(first.fields()[i]));
  return all;
}

}  // namespace

tensor_dataset csv(const std::filesystem::path& path, const csv_options& options) {
  check_format(options.delimiter, options.max_row);
  if (options.target_type != at::kFloat && options.target_type != at::kLong)
    throw option_error("target_type", c10::toString(options.target_type), "at::kFloat or at::kLong");
  row_reader rows(path, options.delimiter, options.max_row);
  if (!rows.next())
    throw format_error(path.string(), rows.offset(),
                       fmt::format("the file ends here; expected a row with {}",
                                   options.header ? "the names of the columns" : "numbers"));
  const auto all = columns_of(rows, options.header);
  table result(select(options, all), all, options.target_type);
  if (!options.header) result.add(rows);
  while (rows.next()) result.add(rows);
  return std::move(result).take();
}

struct csv_rows::contents {
  explicit contents(const std::filesystem::path& path, char separator) : file(path), delimiter(separator) {}

  detail::random_access_file file;
  char delimiter;
  row header;
  std::size_t fields = 0;
  std::vector<std::uint64_t> begins;  // and the end of the last row
};

csv_rows::csv_rows(const std::filesystem::path& path, csv_rows_options options) {
  check_format(options.delimiter, options.max_row);
  auto found = std::make_shared<contents>(path, options.delimiter);
  row_reader rows(path, options.delimiter, options.max_row);
  if (rows.file().compressed())
    throw format_error(path.string(), 0,
                       "the file is compressed with gzip, so its rows cannot be reached at random; decompress it");
  if (options.header) {
    if (!rows.next())
      throw format_error(path.string(), rows.offset(),
                         "the file ends here; expected a row with the names of the columns");
    found->header = rows.fields().row();
  }
  while (rows.next()) {
    found->begins.push_back(rows.offset());
    found->fields = rows.fields().count();
  }
  found->begins.push_back(rows.offset());
  contents_ = std::move(found);
}

std::int64_t csv_rows::size() const {
  return contents_ == nullptr ? 0 : static_cast<std::int64_t>(contents_->begins.size()) - 1;
}

csv_rows::row csv_rows::operator[](std::int64_t index) const {
  if (index < 0 || index >= size())
    throw std::out_of_range(fmt::format("row {} of a CSV file with {} rows", index, size()));
  const auto* begin = contents_->begins.data() + index;
  const auto text = contents_->file.read(begin[0], begin[1] - begin[0]);
  row_parser parser(contents_->delimiter);
  const bool right = parser.parse(text) == text.size() && parser.finish();
  if (!right || parser.count() != contents_->fields)
    throw format_error(
        contents_->file.path().string(), begin[0],
        fmt::format("row {} has changed since the file was opened; a CSV file must not change while it is "
                    "in use",
                    index));
  return parser.row();
}

const csv_rows::row& csv_rows::header() const {
  static const row none;
  return contents_ == nullptr ? none : contents_->header;
}

}  // namespace rondo::data

#include "rondo/data/text_lines.hpp"

#include <fmt/format.h>

#include <stdexcept>
#include <utility>
#include <vector>

#include "rondo/data/input_file.hpp"
#include "rondo/data/line_reader.hpp"
#include "rondo/error.hpp"

namespace rondo::data {

namespace {

std::uint64_t checked_max_line(const text_options& options) {
  if (options.max_line < 1) throw option_error("max_line", fmt::format("{}", options.max_line), "1 byte or more");
  return static_cast<std::uint64_t>(options.max_line);
}

detail::line_reader reader_of(const std::filesystem::path& path, const text_options& options, std::int64_t from = 0) {
  return {path, "max_line", checked_max_line(options), static_cast<std::uint64_t>(from)};
}

}  // namespace

struct text_lines::pass {
  detail::line_reader reader;
  std::string line;
  bool exhausted = false;
};

text_lines::text_lines(std::filesystem::path path, text_options options) : path_(std::move(path)), options_(options) {
  static_cast<void>(checked_max_line(options_));
  static_cast<void>(detail::random_access_file(path_));
}

std::int64_t text_lines::tell() const { return static_cast<std::int64_t>(pass_->value()->reader.offset()); }

void text_lines::seek(std::int64_t position) {
  if (position < 0) throw option_error("position", fmt::format("{}", position), "0 or more");
  from_ = position;
}

detail::stream_cursor<text_lines> text_lines::begin_cursor() {
  pass_->emplace(std::make_shared<pass>(pass{reader_of(path_, options_, std::exchange(from_, 0)), {}}));
  produce_next();
  return detail::stream_cursor<text_lines>(this);
}

std::string& text_lines::current() { return pass_->value()->line; }

bool text_lines::exhausted() const { return pass_->value()->exhausted; }

void text_lines::produce_next() {
  pass& now = *pass_->value();
  now.exhausted = true;  // also when reading throws
  if (!now.reader.next()) return;
  now.line = detail::without_line_end(now.reader.line());
  now.exhausted = false;
}

struct text_file::contents {
  explicit contents(const std::filesystem::path& path) : file(path) {}

  detail::random_access_file file;
  std::vector<std::uint64_t> begins;  // and the end of the last line
};

text_file::text_file(const std::filesystem::path& path, text_options options) {
  auto found = std::make_shared<contents>(path);
  auto reader = reader_of(path, options);
  if (reader.file().compressed())
    throw format_error(path.string(), 0,
                       "the file is compressed with gzip, so its lines cannot be reached at random; decompress it, or "
                       "read it with data::text_lines");
  while (reader.next()) found->begins.push_back(reader.offset());
  found->begins.push_back(reader.offset());
  contents_ = std::move(found);
}

std::int64_t text_file::size() const {
  return contents_ == nullptr ? 0 : static_cast<std::int64_t>(contents_->begins.size()) - 1;
}

std::string text_file::operator[](std::int64_t index) const {
  if (index < 0 || index >= size())
    throw std::out_of_range(fmt::format("line {} of a text file with {} lines", index, size()));
  const auto* begin = contents_->begins.data() + index;
  auto line = contents_->file.read(begin[0], begin[1] - begin[0]);
  if (!line.ends_with('\n') && index + 1 < size())
    throw format_error(
        contents_->file.path().string(), begin[0],
        fmt::format("line {} has changed since the file was opened; a text file must not change while it "
                    "is in use",
                    index + 1));
  line.resize(detail::without_line_end(line).size());
  return line;
}

}  // namespace rondo::data

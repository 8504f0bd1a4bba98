#include "rondo/data/line_reader.hpp"

#include <fmt/format.h>

#include <cstring>

#include "rondo/error.hpp"

namespace rondo::data::detail {

namespace {

constexpr std::size_t first_buffer = 1U << 17;

}  // namespace

std::string_view without_line_end(std::string_view text) noexcept {
  if (text.ends_with('\n')) {
    text.remove_suffix(1);
    if (text.ends_with('\r')) text.remove_suffix(1);
  }
  return text;
}

line_reader::line_reader(const std::filesystem::path& path, const char* option, std::uint64_t max_bytes,
                         std::uint64_t offset)
    : file_(path), option_(option), max_bytes_(max_bytes), buffer_(first_buffer, '\0'), from_beginning_(offset == 0) {
  if (offset > 0) go_to(offset);
}

void line_reader::go_to(std::uint64_t offset) {
  file_.seek(offset - 1);
  std::uint8_t before = 0;
  const bool there = file_.read({&before, 1}) == 1;
  if (!there || (before != '\n' && read_more()))
    file_.fail(offset, "no line begins here; the file is another one than when this position was saved");
  offset_ = offset;
}

bool line_reader::next() {
  offset_ += end_ - begin_;
  begin_ = end_;
  std::size_t searched = 0;
  do {
    const auto found = std::string_view(buffer_).substr(0, filled_).find('\n', begin_ + searched);
    const auto length = (found == std::string_view::npos ? filled_ : found + 1) - begin_;
    require_short(length);
    if (found != std::string_view::npos) return begin_line(length);
    searched = length;
  } while (read_more());
  return searched > 0 && begin_line(searched);
}

bool line_reader::begin_line(std::size_t length) {
  end_ = begin_ + length;
  ++number_;
  return true;
}

void line_reader::require_short(std::size_t length) {
  if (length <= max_bytes_) return;
  ++number_;
  throw format_error(
      where(), offset_,
      fmt::format("the line is longer than {} bytes, the option '{}'; is this a text file?", max_bytes_, option_));
}

bool line_reader::read_more() {
  std::memmove(buffer_.data(), buffer_.data() + begin_, filled_ - begin_);
  filled_ -= begin_;
  begin_ = end_ = 0;
  if (filled_ == buffer_.size()) buffer_.resize(2 * buffer_.size());
  const auto got = file_.read({reinterpret_cast<std::uint8_t*>(buffer_.data()) + filled_, buffer_.size() - filled_});
  filled_ += got;
  return got > 0;
}

std::string line_reader::where() const {
  return from_beginning_ ? fmt::format("{}, line {}", file_.where(), number_) : file_.where();
}

}  // namespace rondo::data::detail

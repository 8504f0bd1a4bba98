#include "rondo/checkpoint/archive.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "rondo/checkpoint/little_endian.hpp"
#include "rondo/checkpoint/zip_format.hpp"
#include "rondo/error.hpp"

namespace rondo::checkpoint {

archive::archive(std::span<const std::byte> file, std::string where, const guard& before)
    : file_(file), where_(std::move(where)) {
  constexpr std::size_t all_ends = zip::end_size + zip::end64_locator_size + zip::end64_size;
  if (before) before(file_.size() - std::min(file_.size(), all_ends), file_.size());
  const auto place = read_end();
  if (before) before(place.offset, place.offset + place.size);
  read_directory(place);
  find_limits(place.offset);
}

const archive::entry* archive::find(std::string_view path) const {
  const auto at = paths_.find(path);
  return at == text_table::npos ? nullptr : &entries_[at];
}

std::span<const std::byte> archive::data(const entry& which) const {
  const auto header = which.header_offset;
  if (number_at<std::uint32_t>(header) != zip::local_header_signature)
    fail(header, fmt::format("record '{}' does not begin with a header", which.path));
  const auto flags = number_at<std::uint16_t>(header + 6);
  const auto method = number_at<std::uint16_t>(header + 8);
  const auto path_size = number_at<std::uint16_t>(header + 26);
  const auto extra_size = number_at<std::uint16_t>(header + 28);
  constexpr auto encrypted = zip::flag_encrypted | zip::flag_strongly_encrypted | zip::flag_masked;
  if (method != zip::method_stored || (flags & encrypted) != 0)
    fail(header, fmt::format("record '{}' is compressed or encrypted", which.path));
  // The directory's bounds check has made room for header, this very name and the data, but not for the extra field.
  if (path_size != which.path.size() || text_at(header + zip::local_header_size, path_size) != which.path)
    fail(header, fmt::format("record '{}' has another name in its header", which.path));
  const auto offset = header + zip::local_header_size + path_size + extra_size;
  if (offset > which.limit || which.size > which.limit - offset)
    fail(header, fmt::format("record '{}' overlaps what follows it", which.path));
  return file_.subspan(static_cast<std::size_t>(offset), static_cast<std::size_t>(which.size));
}

void archive::fail(std::uint64_t offset, const std::string& problem) const {
  throw format_error(where_, offset, problem);
}

template <class T>
T archive::number_at(std::uint64_t offset) const {
  if (offset > file_.size() || file_.size() - offset < sizeof(T)) fail(offset, "the archive leads outside the file");
  return little_endian_at<T>(file_, static_cast<std::size_t>(offset));
}

std::string_view archive::text_at(std::uint64_t offset, std::uint64_t size) const {
  if (offset > file_.size() || file_.size() - offset < size) fail(offset, "the archive leads outside the file");
  return as_text(file_.subspan(static_cast<std::size_t>(offset), static_cast<std::size_t>(size)));
}

archive::directory archive::read_end() const {
  if (file_.size() < zip::end_size) fail(0, "the file is too short for a checkpoint; it may be truncated");
  const auto end = file_.size() - zip::end_size;
  if (number_at<std::uint32_t>(end) != zip::end_signature || number_at<std::uint16_t>(end + 20) != 0)
    fail(end,
         "the file does not end as a checkpoint does; it is truncated, has something appended or is no checkpoint");
  if (number_at<std::uint16_t>(end + 4) != 0 || number_at<std::uint16_t>(end + 6) != 0 ||
      number_at<std::uint16_t>(end + 8) != number_at<std::uint16_t>(end + 10))
    fail(end, "archives in several parts are not supported");

  const auto count = number_at<std::uint16_t>(end + 10);
  const auto size = number_at<std::uint32_t>(end + 12);
  const auto offset = number_at<std::uint32_t>(end + 16);
  directory place{offset, size, count};
  auto directory_end = end;
  if (const auto wide = read_end64(end)) {
    const bool agrees = (count == zip::see_zip64_count || count == wide->count) &&
                        (size == zip::see_zip64 || size == wide->size) &&
                        (offset == zip::see_zip64 || offset == wide->offset);
    if (!agrees) fail(end, "the two end records of the archive disagree");
    place = *wide;
    directory_end = end - zip::end64_locator_size - zip::end64_size;
  }
  if (place.offset > directory_end || place.size != directory_end - place.offset)
    fail(end, "the directory does not end where the end record begins");
  return place;
}

std::optional<archive::directory> archive::read_end64(std::uint64_t end) const {
  if (end < zip::end64_locator_size + zip::end64_size) return std::nullopt;
  const auto locator = end - zip::end64_locator_size;
  const auto end64 = locator - zip::end64_size;
  if (number_at<std::uint32_t>(locator) != zip::end64_locator_signature ||
      number_at<std::uint32_t>(end64) != zip::end64_signature || number_at<std::uint64_t>(locator + 8) != end64)
    return std::nullopt;
  return directory{number_at<std::uint64_t>(end64 + 48), number_at<std::uint64_t>(end64 + 40),
                   number_at<std::uint64_t>(end64 + 32)};
}

void archive::read_directory(const directory& place) {
  if (place.count > place.size / zip::directory_entry_size)
    fail(place.offset, "the directory is shorter than its count");
  const auto end = place.offset + place.size;
  const auto names = std::make_shared<std::string>();
  names->reserve(static_cast<std::size_t>(place.size));  // so that views of it stay valid
  names_ = names;
  entries_.reserve(static_cast<std::size_t>(place.count));
  paths_.reserve(static_cast<std::size_t>(place.count));
  auto at = place.offset;
  for (std::uint64_t i = 0; i < place.count; ++i) {
    if (end - at < zip::directory_entry_size || number_at<std::uint32_t>(at) != zip::directory_entry_signature)
      fail(at, "the directory holds something that is not an entry");
    const auto flags = number_at<std::uint16_t>(at + 8);
    const auto method = number_at<std::uint16_t>(at + 10);
    const auto crc32 = number_at<std::uint32_t>(at + 16);
    std::uint64_t stored_size = number_at<std::uint32_t>(at + 20);
    std::uint64_t full_size = number_at<std::uint32_t>(at + 24);
    const auto path_size = number_at<std::uint16_t>(at + 28);
    const auto extra_size = number_at<std::uint16_t>(at + 30);
    const auto comment_size = number_at<std::uint16_t>(at + 32);
    std::uint64_t header_offset = number_at<std::uint32_t>(at + 42);
    const auto path_at = at + zip::directory_entry_size;
    const auto next = path_at + path_size + extra_size + comment_size;
    if (next > end) fail(at, "a directory entry is longer than the directory");
    names->append(text_at(path_at, path_size));
    const auto path = std::string_view(*names).substr(names->size() - path_size);
    read_zip64_field(path_at + path_size, extra_size, full_size, stored_size, header_offset);

    constexpr auto encrypted = zip::flag_encrypted | zip::flag_strongly_encrypted | zip::flag_masked;
    if ((flags & encrypted) != 0) fail(at, fmt::format("record '{}' is encrypted", path));
    if (method != zip::method_stored || stored_size != full_size)
      fail(at, fmt::format("record '{}' is compressed; PyTorch's checkpoints are not", path));
    if (!paths_.add(path).is_new) fail(at, fmt::format("there are two records '{}'", path));
    entries_.push_back({path, full_size, header_offset, 0, crc32});
    has_checksums_ = has_checksums_ || crc32 != 0;
    at = next;
  }
  if (at != end) fail(at, "the directory is longer than its count");
}

void archive::read_zip64_field(std::uint64_t offset, std::uint64_t size, std::uint64_t& full_size,
                               std::uint64_t& stored_size, std::uint64_t& header_offset) const {
  std::vector<std::uint64_t*> wanted;
  for (auto* number : {&full_size, &stored_size, &header_offset})
    if (*number == zip::see_zip64) wanted.push_back(number);
  if (wanted.empty()) return;

  const auto end = offset + size;
  for (auto at = offset; end - at >= zip::extra_field_header_size;) {
    const auto id = number_at<std::uint16_t>(at);
    const auto length = number_at<std::uint16_t>(at + 2);
    at += zip::extra_field_header_size;
    if (length > end - at) break;
    if (id == zip::zip64_field) {
      if (length < wanted.size() * sizeof(std::uint64_t)) break;
      for (std::size_t i = 0; i < wanted.size(); ++i)
        *wanted[i] = number_at<std::uint64_t>(at + i * sizeof(std::uint64_t));
      return;
    }
    at += length;
  }
  fail(offset, "a directory entry lacks its 64-bit numbers");
}

void archive::find_limits(std::uint64_t directory_offset) {
  std::vector<std::size_t> order(entries_.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, {}, [this](std::size_t i) { return entries_[i].header_offset; });
  for (std::size_t i = 0; i < order.size(); ++i) {
    auto& e = entries_[order[i]];
    e.limit = i + 1 < order.size() ? entries_[order[i + 1]].header_offset : directory_offset;
    const auto overhead = zip::local_header_size + e.path.size();
    if (e.header_offset > e.limit || e.limit > directory_offset || e.limit - e.header_offset < overhead ||
        e.size > e.limit - e.header_offset - overhead)
      fail(std::min<std::uint64_t>(e.header_offset, file_.size()),
           fmt::format("record '{}' of {} bytes overlaps what follows it or leads outside the file", e.path, e.size));
  }
}

}  // namespace rondo::checkpoint

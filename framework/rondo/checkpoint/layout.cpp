#include "rondo/checkpoint/layout.hpp"

#include <fmt/format.h>

#include <string_view>
#include <unordered_set>

#include "rondo/checkpoint/little_endian.hpp"
#include "rondo/checkpoint/utf8.hpp"
#include "rondo/checkpoint/zip_format.hpp"
#include "rondo/error.hpp"

namespace rondo::checkpoint {

namespace {

using bytes = std::vector<std::byte>;

// Far below zip's own 65,535, so that name and padding always fit.
constexpr std::size_t longest_path = 32'768;
// More than any file system holds; keeps all sums inside 64 bits.
constexpr std::uint64_t largest_record = std::uint64_t{1} << 56;

bool is_big(std::uint64_t number) { return number >= zip::see_zip64; }

std::uint32_t narrow(std::uint64_t number) {
  return is_big(number) ? zip::see_zip64 : static_cast<std::uint32_t>(number);
}

void append16(bytes& out, std::size_t number) { append_little_endian(out, static_cast<std::uint16_t>(number)); }
void append32(bytes& out, std::uint32_t number) { append_little_endian(out, number); }
void append64(bytes& out, std::uint64_t number) { append_little_endian(out, number); }

std::uint16_t version_for(bool zip64) { return zip64 ? zip::version_zip64 : zip::version_plain; }

// Version, flags, method, time and date: alike in local header and directory.
void append_attributes(bytes& out, bool zip64) {
  append16(out, version_for(zip64));
  append16(out, zip::flag_data_descriptor | zip::flag_utf8);
  append16(out, zip::method_stored);
  append16(out, zip::fixed_time);
  append16(out, zip::fixed_date);
}

// In the local header: both sizes, which follow in the data descriptor like the CRC.
std::size_t local_zip64_size(std::uint64_t size) {
  return is_big(size) ? zip::extra_field_header_size + 2 * sizeof(std::uint64_t) : 0;
}

// In the directory: those of size, stored size and offset that do not fit their own places.
std::size_t directory_zip64_size(const plan::record& r) {
  const std::size_t numbers = (is_big(r.size) ? 2u : 0u) + (is_big(r.header_offset) ? 1u : 0u);
  return numbers == 0 ? 0 : zip::extra_field_header_size + numbers * sizeof(std::uint64_t);
}

std::uint64_t descriptor_size(std::uint64_t size) { return is_big(size) ? 24 : 16; }

std::uint64_t data_offset_after(std::uint64_t header_offset, std::size_t path_size, std::uint64_t size) {
  const auto earliest =
      header_offset + zip::local_header_size + path_size + local_zip64_size(size) + zip::extra_field_header_size;
  return (earliest + record_alignment - 1) / record_alignment * record_alignment;
}

std::string checked_path(std::string_view root, const std::string& name) {
  auto path = fmt::format("{}/{}", root, name);
  if (name.empty() || path.size() > longest_path || !is_utf8(path))
    throw option_error("record name", fmt::format("'{}'", path),
                       fmt::format("UTF-8 text of 1 to {} bytes together with the root", longest_path));
  return path;
}

}  // namespace

plan::plan(std::string_view root, std::span<const record_size> records) {
  if (root.empty() || root.find('/') != std::string_view::npos)
    throw option_error("root", fmt::format("'{}'", root), "a name that is not empty and holds no '/'");

  records_.reserve(records.size());
  std::unordered_set<std::string_view> seen;
  std::uint64_t at = 0;
  for (const auto& [name, size] : records) {
    auto path = checked_path(root, name);
    if (!seen.insert(name).second) throw option_error("record name", fmt::format("'{}' twice", path), "each name once");
    if (size > largest_record || at > largest_record)
      throw option_error("record size", fmt::format("{} bytes for '{}'", size, path), "less than 2^56 bytes in all");
    const auto data_offset = data_offset_after(at, path.size(), size);
    records_.push_back({std::move(path), size, at, data_offset});
    at = data_offset + size + descriptor_size(size);
  }
  directory_offset_ = at;
  for (const auto& r : records_) directory_size_ += zip::directory_entry_size + r.path.size() + directory_zip64_size(r);
  const bool zip64 = records_.size() >= zip::see_zip64_count || is_big(directory_offset_) || is_big(directory_size_);
  file_size_ =
      directory_offset_ + directory_size_ + zip::end_size + (zip64 ? zip::end64_size + zip::end64_locator_size : 0);
}

void plan::append_header(bytes& out, const record& which) const {
  const bool zip64 = is_big(which.size);
  append32(out, zip::local_header_signature);
  append_attributes(out, zip64);
  append32(out, 0);
  append32(out, zip64 ? zip::see_zip64 : 0);
  append32(out, zip64 ? zip::see_zip64 : 0);
  append16(out, which.path.size());
  const auto extra = which.data_offset - which.header_offset - zip::local_header_size - which.path.size();
  append16(out, extra);
  append_text(out, which.path);
  if (zip64) {
    append16(out, zip::zip64_field);
    append16(out, 2 * sizeof(std::uint64_t));
    append64(out, 0);
    append64(out, 0);
  }
  const auto padding = extra - local_zip64_size(which.size) - zip::extra_field_header_size;
  append16(out, zip::padding_field);
  append16(out, padding);
  out.resize(out.size() + padding);
}

void plan::append_descriptor(bytes& out, const record& which, std::uint32_t crc32) const {
  append32(out, zip::data_descriptor_signature);
  append32(out, crc32);
  for (int i = 0; i < 2; ++i) is_big(which.size) ? append64(out, which.size) : append32(out, narrow(which.size));
}

void plan::append_directory(bytes& out, std::span<const std::uint32_t> crc32s) const {
  for (std::size_t i = 0; i < records_.size(); ++i) {
    const auto& r = records_[i];
    const auto extra = directory_zip64_size(r);
    append32(out, zip::directory_entry_signature);
    append16(out, version_for(extra != 0));
    append_attributes(out, extra != 0);
    append32(out, crc32s[i]);
    append32(out, narrow(r.size));
    append32(out, narrow(r.size));
    append16(out, r.path.size());
    append16(out, extra);
    append16(out, 0);  // comment
    append16(out, 0);  // disk
    append16(out, 0);  // internal attributes
    append32(out, 0);  // external attributes
    append32(out, narrow(r.header_offset));
    append_text(out, r.path);
    if (extra == 0) continue;
    append16(out, zip::zip64_field);
    append16(out, extra - zip::extra_field_header_size);
    if (is_big(r.size)) append64(out, r.size);
    if (is_big(r.size)) append64(out, r.size);
    if (is_big(r.header_offset)) append64(out, r.header_offset);
  }

  const auto directory_end = directory_offset_ + directory_size_;
  if (file_size_ != directory_end + zip::end_size) {
    append32(out, zip::end64_signature);
    append64(out, zip::end64_size - 12);  // what follows this number
    append16(out, zip::version_zip64);
    append16(out, zip::version_zip64);
    append32(out, 0);
    append32(out, 0);
    append64(out, records_.size());
    append64(out, records_.size());
    append64(out, directory_size_);
    append64(out, directory_offset_);
    append32(out, zip::end64_locator_signature);
    append32(out, 0);
    append64(out, directory_end);
    append32(out, 1);
  }
  const auto count = records_.size() >= zip::see_zip64_count ? zip::see_zip64_count : records_.size();
  append32(out, zip::end_signature);
  append16(out, 0);
  append16(out, 0);
  append16(out, count);
  append16(out, count);
  append32(out, narrow(directory_size_));
  append32(out, narrow(directory_offset_));
  append16(out, 0);
}

}  // namespace rondo::checkpoint

#include "rondo/checkpoint/layout.hpp"

#include <fmt/format.h>

#include <cstring>
#include <string_view>

#include "rondo/checkpoint/text_table.hpp"
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

// Writes numbers and text one behind the other into memory that has room for them.
class output {
 public:
  explicit output(std::byte* at) : at_(at) {}

  void put16(std::size_t number) { put<2>(number); }
  void put32(std::uint64_t number) { put<4>(number); }
  void put64(std::uint64_t number) { put<8>(number); }
  void text(std::string_view text) {
    std::memcpy(at_, text.data(), text.size());
    at_ += text.size();
  }
  void zeros(std::uint64_t count) {
    std::memset(at_, 0, static_cast<std::size_t>(count));
    at_ += count;
  }

 private:
  template <int Width>
  void put(std::uint64_t number) {
    for (int i = 0; i < Width; ++i) *at_++ = static_cast<std::byte>(number >> (8 * i) & 0xff);
  }

  std::byte* at_;
};

std::uint16_t version_for(bool zip64) { return zip64 ? zip::version_zip64 : zip::version_plain; }

// Version, flags, method, time and date: alike in local header and directory.
void put_attributes(output& out, bool zip64) {
  out.put16(version_for(zip64));
  out.put16(zip::flag_data_descriptor | zip::flag_utf8);
  out.put16(zip::method_stored);
  out.put16(zip::fixed_time);
  out.put16(zip::fixed_date);
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

// Makes room for a piece at the end, which `write` fills.
template <class Write>
void append(bytes& out, std::uint64_t size, Write write) {
  const auto end = out.size();
  out.resize(end + static_cast<std::size_t>(size));
  write(out.data() + end);
}

std::uint64_t alignment_of(std::uint64_t size, std::int64_t format_version) {
  return format_version > 1 && size < record_alignment ? small_record_alignment : record_alignment;
}

std::uint64_t data_offset_after(std::uint64_t header_offset, std::size_t path_size, std::uint64_t size,
                                std::int64_t format_version) {
  const auto alignment = alignment_of(size, format_version);
  const auto earliest =
      header_offset + zip::local_header_size + path_size + local_zip64_size(size) + zip::extra_field_header_size;
  return (earliest + alignment - 1) / alignment * alignment;
}

void check_path(std::string_view path, const std::string& name) {
  if (name.empty() || path.size() > longest_path || !is_utf8(path))
    throw option_error("record name", fmt::format("'{}'", path),
                       fmt::format("UTF-8 text of 1 to {} bytes together with the root", longest_path));
}

// All of them one behind the other.
std::string joined_paths(std::string_view root, std::span<const record_size> records) {
  std::size_t size = 0;
  for (const auto& item : records) size += root.size() + 1 + item.name.size();
  std::string all;
  all.reserve(size);
  for (const auto& item : records) all.append(root).append(1, '/').append(item.name);
  return all;
}

}  // namespace

plan::plan(std::string_view root, std::span<const record_size> records, std::int64_t format_version)
    : format_version_(format_version) {
  if (root.empty() || root.find('/') != std::string_view::npos)
    throw option_error("root", fmt::format("'{}'", root), "a name that is not empty and holds no '/'");

  paths_ = std::make_shared<const std::string>(joined_paths(root, records));
  records_.reserve(records.size());
  text_table seen;
  seen.reserve(records.size());
  std::string_view rest = *paths_;
  for (const auto& [name, size] : records) {
    const auto path = rest.substr(0, root.size() + 1 + name.size());
    rest.remove_prefix(path.size());
    check_path(path, name);
    if (!seen.add(path).is_new) throw option_error("record name", fmt::format("'{}' twice", path), "each name once");
    records_.push_back({path, size, 0, 0});
  }
  arrange();
}

void plan::resize(std::size_t record, std::uint64_t size) {
  if (records_[record].size == size) return;
  records_[record].size = size;
  arrange();
}

void plan::arrange() {
  std::uint64_t at = 0;
  for (auto& r : records_) {
    if (r.size > largest_record || at > largest_record)
      throw option_error("record size", fmt::format("{} bytes for '{}'", r.size, r.path),
                         "less than 2^56 bytes in all");
    r.header_offset = at;
    r.data_offset = data_offset_after(at, r.path.size(), r.size, format_version_);
    at = r.descriptor_offset() + descriptor_size(r);
  }
  directory_offset_ = at;
  entries_size_ = 0;
  for (const auto& r : records_) entries_size_ += entry_size(r);
  const bool zip64 = records_.size() >= zip::see_zip64_count || is_big(directory_offset_) || is_big(entries_size_);
  file_size_ =
      directory_offset_ + entries_size_ + zip::end_size + (zip64 ? zip::end64_size + zip::end64_locator_size : 0);
}

std::uint64_t plan::descriptor_size(const record& which) noexcept { return is_big(which.size) ? 24 : 16; }

std::uint64_t plan::entry_size(const record& which) noexcept {
  return zip::directory_entry_size + which.path.size() + directory_zip64_size(which);
}

void plan::append_header(bytes& out, const record& which) const {
  append(out, header_size(which), [&](std::byte* to) { write_header(to, which); });
}

void plan::append_descriptor(bytes& out, const record& which, std::uint32_t crc32) const {
  append(out, descriptor_size(which), [&](std::byte* to) { write_descriptor(to, which, crc32); });
}

void plan::append_directory(bytes& out, std::span<const std::uint32_t> crc32s) const {
  append(out, directory_size(), [&](std::byte* to) { write_directory(to, crc32s); });
}

void plan::write_header(std::byte* to, const record& which) const {
  output out(to);
  const bool zip64 = is_big(which.size);
  out.put32(zip::local_header_signature);
  put_attributes(out, zip64);
  out.put32(0);
  out.put32(zip64 ? zip::see_zip64 : 0);
  out.put32(zip64 ? zip::see_zip64 : 0);
  out.put16(which.path.size());
  const auto extra = header_size(which) - zip::local_header_size - which.path.size();
  out.put16(extra);
  out.text(which.path);
  if (zip64) {
    out.put16(zip::zip64_field);
    out.put16(2 * sizeof(std::uint64_t));
    out.put64(0);
    out.put64(0);
  }
  const auto padding = extra - local_zip64_size(which.size) - zip::extra_field_header_size;
  out.put16(zip::padding_field);
  out.put16(padding);
  out.zeros(padding);
}

void plan::write_descriptor(std::byte* to, const record& which, std::uint32_t crc32) const {
  output out(to);
  out.put32(zip::data_descriptor_signature);
  out.put32(crc32);
  for (int i = 0; i < 2; ++i) is_big(which.size) ? out.put64(which.size) : out.put32(which.size);
}

void plan::write_directory(std::byte* to, std::span<const std::uint32_t> crc32s) const {
  output out(to);
  for (std::size_t i = 0; i < records_.size(); ++i) {
    const auto& r = records_[i];
    const auto extra = directory_zip64_size(r);
    out.put32(zip::directory_entry_signature);
    out.put16(version_for(extra != 0));
    put_attributes(out, extra != 0);
    out.put32(crc32s[i]);
    out.put32(narrow(r.size));
    out.put32(narrow(r.size));
    out.put16(r.path.size());
    out.put16(extra);
    out.put16(0);  // comment
    out.put16(0);  // disk
    out.put16(0);  // internal attributes
    out.put32(0);  // external attributes
    out.put32(narrow(r.header_offset));
    out.text(r.path);
    if (extra == 0) continue;
    out.put16(zip::zip64_field);
    out.put16(extra - zip::extra_field_header_size);
    if (is_big(r.size)) out.put64(r.size);
    if (is_big(r.size)) out.put64(r.size);
    if (is_big(r.header_offset)) out.put64(r.header_offset);
  }

  const auto entries_end = directory_offset_ + entries_size_;
  if (file_size_ != entries_end + zip::end_size) {
    out.put32(zip::end64_signature);
    out.put64(zip::end64_size - 12);  // what follows this number
    out.put16(zip::version_zip64);
    out.put16(zip::version_zip64);
    out.put32(0);
    out.put32(0);
    out.put64(records_.size());
    out.put64(records_.size());
    out.put64(entries_size_);
    out.put64(directory_offset_);
    out.put32(zip::end64_locator_signature);
    out.put32(0);
    out.put64(entries_end);
    out.put32(1);
  }
  const auto count = records_.size() >= zip::see_zip64_count ? zip::see_zip64_count : records_.size();
  out.put32(zip::end_signature);
  out.put16(0);
  out.put16(0);
  out.put16(count);
  out.put16(count);
  out.put32(narrow(entries_size_));
  out.put32(narrow(directory_offset_));
  out.put16(0);
}

}  // namespace rondo::checkpoint

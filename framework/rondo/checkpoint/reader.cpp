#include "rondo/checkpoint/reader.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "rondo/checkpoint/crc32.hpp"
#include "rondo/checkpoint/little_endian.hpp"
#include "rondo/checkpoint/pickle.hpp"
#include "rondo/error.hpp"

namespace rondo::checkpoint {

namespace {

// Files that torch.save wrote before PyTorch 1.6, or writes when it is told to, begin with a pickled magic number.
constexpr std::string_view legacy_magic("\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 12);
constexpr std::size_t legacy_start = 32;

void refuse_legacy(std::span<const std::byte> file, const std::string& where) {
  if (as_text(file.first(std::min(file.size(), legacy_start))).find(legacy_magic) == std::string_view::npos) return;
  throw format_error(
      where, 0,
      "this is PyTorch's format from before version 1.6, which cannot be read without executing it; load "
      "it in Python and save it again with torch.save(..., _use_new_zipfile_serialization=True)");
}

// As PyTorch does: the first entry's folder.
std::string root_of(const archive& records) {
  const auto& entries = records.entries();
  const auto slash = entries.empty() ? std::string_view::npos : entries.front().path.find('/');
  if (slash == std::string_view::npos || slash == 0)
    throw format_error(records.where(), 0, "the archive holds no folder with a data.pkl; it is not a checkpoint");
  return std::string(entries.front().path.substr(0, slash));
}

}  // namespace

reader reader::open(const std::filesystem::path& path) {
  auto owner = std::make_shared<source>();
  const auto bytes = owner->file.emplace(path).bytes();
  return {std::move(owner), bytes, path.string()};
}

void require_readable(const std::filesystem::path& path) {
  const mapped_file file(path);
  file.require_readable(0, file.bytes().size());
}

reader reader::from_bytes(std::vector<std::byte> file, std::string where) {
  auto owner = std::make_shared<source>();
  owner->memory = std::move(file);
  const std::span<const std::byte> bytes(owner->memory);
  return {std::move(owner), bytes, std::move(where)};
}

reader reader::from_span(std::span<const std::byte> file, std::string where) {
  return {std::make_shared<source>(), file, std::move(where)};
}

reader reader::from_image(std::span<const std::byte> image, std::string where) {
  return {std::make_shared<source>(), image, std::move(where), checksums::unknown};
}

reader::reader(std::shared_ptr<const source> owner, std::span<const std::byte> bytes, std::string where,
               checksums state)
    : owner_(std::move(owner)),
      archive_(open_archive(bytes, std::move(where))),
      checksums_(state),
      root_(root_of(archive_)) {
  if (has_record("byteorder") && as_text(checked_record("byteorder")) != "little")
    throw format_error(this->where(), 0, "the tensors are not little-endian");
  if (has_record(manifest_record))
    manifest_ =
        parse_manifest(as_text(checked_record(manifest_record)), fmt::format("{}:{}", this->where(), manifest_record));
  state_ = decode_pickle(checked_record("data.pkl"), this->where() + ":data.pkl");
}

archive reader::open_archive(std::span<const std::byte> bytes, std::string where) const {
  require_readable(0, std::min(bytes.size(), legacy_start));
  refuse_legacy(bytes, where);
  return {bytes, std::move(where), [this](std::uint64_t begin, std::uint64_t end) { require_readable(begin, end); }};
}

void reader::require_readable(std::uint64_t begin, std::uint64_t end) const {
  if (owner_->file) owner_->file->require_readable(begin, end);
}

void reader::read(std::uint64_t offset, std::span<std::byte> out) const {
  if (owner_->file) return owner_->file->read(offset, out);
  const auto bytes = archive_.file();
  if (offset > bytes.size() || out.size() > bytes.size() - offset)
    throw format_error(where(), offset, "the archive leads outside the file");
  std::ranges::copy(bytes.subspan(static_cast<std::size_t>(offset), out.size()), out.begin());
}

std::uint32_t reader::checksum(std::uint64_t offset, std::uint64_t size) const {
  constexpr std::uint64_t piece_size = 256 * 1024;
  std::vector<std::byte> buffer(static_cast<std::size_t>(std::min(size, piece_size)));
  std::uint32_t result = 0;
  while (size != 0) {
    const auto piece = std::span(buffer).first(static_cast<std::size_t>(std::min(size, piece_size)));
    read(offset, piece);
    result = crc32(piece, result);
    offset += piece.size();
    size -= piece.size();
  }
  return result;
}

bool reader::has_record(std::string_view name) const {
  return archive_.find(fmt::format("{}/{}", root_, name)) != nullptr;
}

std::span<const std::byte> reader::record(std::string_view name) const { return data_of(entry_of(name)); }

std::span<const std::byte> reader::storage(const tensor_descriptor& tensor) const {
  const auto& place = entry_of("data/" + tensor.storage_key);
  if (const auto problem = problem_of(tensor)) throw format_error(where(), place.header_offset, *problem);
  const auto size = static_cast<std::uint64_t>(tensor.storage_numel * element_size(tensor.dtype));
  if (size > place.size)
    throw format_error(where(), place.header_offset,
                       fmt::format("record '{}' has {} bytes, but its tensors need {}", place.path, place.size, size));
  return data_of(place).first(static_cast<std::size_t>(size));
}

std::span<const std::byte> reader::data_of(const archive::entry& place) const {
  // No more than the header is touched to find the data.
  require_readable(place.header_offset, place.limit - place.size);
  return archive_.data(place);
}

const archive::entry& reader::entry_of(std::string_view name) const {
  if (const auto* found = archive_.find(fmt::format("{}/{}", root_, name))) return *found;
  throw format_error(where(), 0, fmt::format("there is no record '{}/{}'", root_, name));
}

std::span<const std::byte> reader::checked_record(std::string_view name) const {
  const auto& place = entry_of(name);
  require_readable(place.header_offset, place.limit);
  const auto bytes = archive_.data(place);
  if (checksums_ == checksums::known && archive_.has_checksums() && crc32(bytes) != place.crc32)
    throw format_error(where(), place.header_offset, fmt::format("record '{}' is damaged: wrong checksum", place.path));
  return bytes;
}

}  // namespace rondo::checkpoint

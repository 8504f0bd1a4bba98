#include "input.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <fstream>

#include "outcome.hpp"
#include "rondo/checkpoint/crc32.hpp"
#include "rondo/checkpoint/mapped_file.hpp"
#include "rondo/checkpoint/sharded.hpp"
#include "rondo/checkpoint/verify.hpp"
#include "rondo/error.hpp"
#include "text.hpp"

namespace rondo::tool {

namespace {

constexpr std::size_t step = std::size_t{1} << 20;

std::string kind_of(std::filesystem::file_type type) {
  switch (type) {
    case std::filesystem::file_type::fifo:
      return "a FIFO";
    case std::filesystem::file_type::socket:
      return "a socket";
    case std::filesystem::file_type::character:
    case std::filesystem::file_type::block:
      return "a device";
    default:
      return "something else";
  }
}

/// Compares a record with its checksum, if the file has checksums.
bool is_sound(const checkpoint::reader& file, const checkpoint::archive::entry& place, progress& shown) {
  if (!file.records().has_checksums()) return true;
  const auto bytes = file.records().data(place);
  const auto begin = static_cast<std::uint64_t>(bytes.data() - file.records().file().data());
  std::uint32_t checksum = 0;
  std::vector<std::byte> piece(std::min(step, bytes.size()));
  for (std::size_t at = 0; at < bytes.size(); at += piece.size()) {
    piece.resize(std::min(piece.size(), bytes.size() - at));
    file.read(begin + at, piece);
    checksum = checkpoint::crc32(piece, checksum);
    shown.advance(piece.size());
  }
  return checksum == place.crc32;
}

}  // namespace

std::filesystem::path regular_file(const std::filesystem::path& named) {
  std::error_code failed;
  const auto status = std::filesystem::status(named, failed);
  if (failed) throw io_error("open", named, failed);
  if (checkpoint::is_sharded(named))
    throw unusable_error(fmt::format("'{}' is a sharded snapshot; make one file of it first: rondo consolidate DIR OUT",
                                     named.string()));
  if (std::filesystem::is_directory(status))
    throw unusable_error(fmt::format(
        "'{}' is a directory; name a file in it ('rondo latest' finds the newest snapshot)", named.string()));
  if (!std::filesystem::is_regular_file(status))
    throw unusable_error(
        fmt::format("'{}' is {}; only regular files are read", named.string(), kind_of(status.type())));
  if (!std::filesystem::is_symlink(std::filesystem::symlink_status(named, failed))) return named;
  const auto target = std::filesystem::canonical(named, failed);
  if (failed) throw io_error("follow", named, failed);
  return target;
}

checkpoint::reader open_checkpoint(const std::filesystem::path& named) {
  const auto file = regular_file(named);
  if (begins_like_safetensors(file))
    throw unusable_error(fmt::format(
        "'{}' is a safetensors file; make a checkpoint of it first: rondo convert IN OUT.pt", named.string()));
  return checkpoint::reader::open(file);
}

bool begins_like_safetensors(const std::filesystem::path& file) {
  // The length of a JSON header in 8 bytes, the upper ones of which are zero, and the header's beginning.
  std::array<char, 9> head = {};
  std::ifstream in(file, std::ios::binary);
  return in.read(head.data(), head.size()) && head[8] == '{' &&
         std::all_of(head.begin() + 4, head.begin() + 8, [](char c) { return c == 0; });
}

void read_through(const std::filesystem::path& file) {
  const checkpoint::mapped_file mapped(file);
  const std::uint64_t size = mapped.bytes().size();
  progress shown("reading " + printable(file.string()), size);
  for (std::uint64_t at = 0; at < size; at += step) {
    const auto end = std::min<std::uint64_t>(size, at + step);
    mapped.require_readable(at, end);
    shown.advance(end - at);
  }
}

std::vector<std::string> problems_of(const checkpoint::reader& file) {
  // A sound file is read once. Only a bad one is read again, to find everything that is wrong.
  progress shown("verifying " + printable(file.where()), file.records().file().size());
  const auto prefix = file.root().size() + 1;
  checkpoint::record_names read;
  bool sound = true;
  try {
    for (const auto& entry : file.records().entries()) {
      if (!entry.path.starts_with(file.root() + "/")) continue;
      sound = is_sound(file, entry, shown) && sound;
      read.insert(entry.path.substr(prefix));
    }
    verify_except(file, read);
  } catch (const format_error&) {
    sound = false;
  }
  return sound ? std::vector<std::string>() : problems(file);
}

sound_storages::sound_storages(const checkpoint::reader& file, std::string what)
    : file_(file), progress_(std::move(what), file.records().file().size()) {}

std::span<const std::byte> sound_storages::of(const checkpoint::tensor_descriptor& tensor) {
  const auto bytes = file_.storage(tensor);
  if (!checked_.insert(tensor.storage_key).second) return bytes;
  const auto* place = file_.records().find(fmt::format("{}/data/{}", file_.root(), tensor.storage_key));
  if (!is_sound(file_, *place, progress_))
    throw format_error(file_.where(), place->header_offset,
                       fmt::format("record '{}' is damaged: wrong checksum", place->path));
  return bytes;
}

}  // namespace rondo::tool

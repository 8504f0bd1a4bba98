#include "rondo/checkpoint/reader.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "rondo/checkpoint/crc32.hpp"
#include "rondo/checkpoint/little_endian.hpp"
#include "rondo/checkpoint/pickle.hpp"
#include "rondo/error.hpp"

namespace rondo::checkpoint {

namespace {

class file_descriptor {
 public:
  explicit file_descriptor(int number) : number_(number) {}
  file_descriptor(const file_descriptor&) = delete;
  file_descriptor& operator=(const file_descriptor&) = delete;
  ~file_descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  [[nodiscard]] int number() const noexcept { return number_; }

 private:
  int number_;
};

class mapping {
 public:
  explicit mapping(const std::filesystem::path& path) {
    // Not blocking, because opening a FIFO would wait for a writer.
    const file_descriptor file(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
    if (file.number() < 0) fail("open", path, errno == ELOOP ? "symbolic links are not followed" : "");
    struct stat status {};
    if (::fstat(file.number(), &status) != 0) fail("examine", path);
    if (!S_ISREG(status.st_mode)) throw format_error(path.string(), 0, "this is not a regular file");
    if (status.st_size == 0) throw format_error(path.string(), 0, "the file is empty");
    size_ = static_cast<std::size_t>(status.st_size);
    start_ = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.number(), 0);
    if (start_ == MAP_FAILED) fail("map", path);
    // A page that cannot be read is a signal when it is touched, but an error when it is read. Opening looks at both
    // ends.
    try {
      const std::size_t head = std::min(size_, std::max(probed_bytes, size_ / 8));
      probe(file.number(), path, 0, head);
      probe(file.number(), path, std::max(head, size_ - std::min(size_, probed_bytes)), size_);
    } catch (...) {
      ::munmap(start_, size_);
      throw;
    }
  }
  mapping(const mapping&) = delete;
  mapping& operator=(const mapping&) = delete;
  ~mapping() { ::munmap(start_, size_); }

  [[nodiscard]] std::span<const std::byte> bytes() const noexcept {
    return {static_cast<const std::byte*>(start_), size_};
  }

  static void probe(int file, const std::filesystem::path& path, std::size_t begin, std::size_t end) {
    std::vector<std::byte> buffer(std::min<std::size_t>(end - begin, std::size_t{1} << 20));
    while (begin < end) {
      const auto got = ::pread(file, buffer.data(), std::min(buffer.size(), end - begin), static_cast<off_t>(begin));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail("read", path, "the disk may be failing");
      if (got == 0) throw format_error(path.string(), begin, "the file has become shorter while it was read");
      begin += static_cast<std::size_t>(got);
    }
  }

 private:
  static constexpr std::size_t probed_bytes = std::size_t{4} << 20;

  [[noreturn]] static void fail(const char* operation, const std::filesystem::path& path, const char* advice = "") {
    throw io_error(operation, path, std::error_code(errno, std::generic_category()), advice);
  }

  void* start_ = nullptr;
  std::size_t size_ = 0;
};

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
  auto file = std::make_shared<const mapping>(path);
  const auto bytes = file->bytes();
  return {std::move(file), bytes, path.string()};
}

void require_readable(const std::filesystem::path& path) {
  const file_descriptor file(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  struct stat status {};
  if (file.number() < 0 || ::fstat(file.number(), &status) != 0)
    throw io_error("open", path, std::error_code(errno, std::generic_category()));
  if (S_ISREG(status.st_mode)) mapping::probe(file.number(), path, 0, static_cast<std::size_t>(status.st_size));
}

reader reader::from_bytes(std::vector<std::byte> file, std::string where) {
  auto owner = std::make_shared<const std::vector<std::byte>>(std::move(file));
  const std::span<const std::byte> bytes(*owner);
  return {std::move(owner), bytes, std::move(where)};
}

reader reader::from_span(std::span<const std::byte> file, std::string where) {
  return {nullptr, file, std::move(where)};
}

reader::reader(std::shared_ptr<const void> owner, std::span<const std::byte> file, std::string where)
    : owner_(std::move(owner)), archive_(file, std::move(where)), root_(root_of(archive_)) {
  if (has_record("byteorder") && as_text(checked_record("byteorder")) != "little")
    throw format_error(this->where(), 0, "the tensors are not little-endian");
  if (has_record(manifest_record))
    manifest_ =
        parse_manifest(as_text(checked_record(manifest_record)), fmt::format("{}:{}", this->where(), manifest_record));
  state_ = decode_pickle(checked_record("data.pkl"), this->where() + ":data.pkl");
}

bool reader::has_record(std::string_view name) const {
  return archive_.find(fmt::format("{}/{}", root_, name)) != nullptr;
}

std::span<const std::byte> reader::record(std::string_view name) const { return archive_.data(entry_of(name)); }

std::span<const std::byte> reader::storage(const tensor_descriptor& tensor) const {
  const auto& place = entry_of("data/" + tensor.storage_key);
  if (const auto problem = problem_of(tensor)) throw format_error(where(), place.header_offset, *problem);
  const auto size = static_cast<std::uint64_t>(tensor.storage_numel * element_size(tensor.dtype));
  if (size > place.size)
    throw format_error(where(), place.header_offset,
                       fmt::format("record '{}' has {} bytes, but its tensors need {}", place.path, place.size, size));
  return archive_.data(place).first(static_cast<std::size_t>(size));
}

const archive::entry& reader::entry_of(std::string_view name) const {
  if (const auto* found = archive_.find(fmt::format("{}/{}", root_, name))) return *found;
  throw format_error(where(), 0, fmt::format("there is no record '{}/{}'", root_, name));
}

std::span<const std::byte> reader::checked_record(std::string_view name) const {
  const auto& place = entry_of(name);
  const auto bytes = archive_.data(place);
  if (archive_.has_checksums() && crc32(bytes) != place.crc32)
    throw format_error(where(), place.header_offset, fmt::format("record '{}' is damaged: wrong checksum", place.path));
  return bytes;
}

}  // namespace rondo::checkpoint

#include "rondo/data/idx.hpp"

#include <ATen/Functions.h>
#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "rondo/error.hpp"

namespace rondo::data {

namespace {

/// A plain or gzip-compressed file, read from front to back.
class source {
 public:
  explicit source(std::filesystem::path path) : path_(std::move(path)) {
    errno = 0;
    file_.reset(gzopen(path_.c_str(), "rb"));
    if (!file_) throw_io("open", errno == 0 ? ENOMEM : errno);
    gzbuffer(file_.get(), 1U << 17);
  }

  /// Reads until `to` is full or the file ends, and returns how many bytes were read.
  std::size_t read(std::span<std::uint8_t> to) {
    std::size_t done = 0;
    while (done < to.size()) {
      const auto wanted = static_cast<unsigned>(std::min<std::size_t>(to.size() - done, 1U << 30));
      errno = 0;
      const int got = gzread(file_.get(), to.data() + done, wanted);
      const int reason = errno;
      if (got > 0) {
        done += static_cast<std::size_t>(got);
        offset_ += static_cast<std::uint64_t>(got);
      }
      if (got < 0 || static_cast<unsigned>(got) < wanted) {
        check(reason);
        return done;
      }
    }
    return done;
  }

  [[nodiscard]] std::uint64_t offset() const noexcept { return offset_; }

  [[noreturn]] void fail(std::uint64_t offset, const std::string& problem) const {
    const bool compressed = gzdirect(file_.get()) == 0;
    throw format_error(compressed ? path_.string() + " (decompressed)" : path_.string(), offset, problem);
  }

 private:
  struct close {
    void operator()(gzFile file) const noexcept { gzclose_r(file); }
  };

  void check(int reason) const {
    int status = Z_OK;
    const char* text = gzerror(file_.get(), &status);
    if (status == Z_OK || status == Z_STREAM_END) return;
    if (status == Z_ERRNO) throw_io("read", reason == 0 ? EIO : reason);
    if (status == Z_BUF_ERROR) fail(offset_, "the gzip stream is cut off here; copy or download the file again");
    fail(offset_, fmt::format("the gzip stream is damaged ({}); copy or download the file again", text));
  }

  [[noreturn]] void throw_io(const char* operation, int reason) const {
    throw io_error(operation, path_, std::error_code(reason, std::generic_category()));
  }

  std::filesystem::path path_;
  std::unique_ptr<gzFile_s, close> file_;
  std::uint64_t offset_ = 0;
};

std::optional<at::ScalarType> element_type(std::uint8_t code) {
  switch (code) {
    case 0x08:
      return at::kByte;
    case 0x09:
      return at::kChar;
    case 0x0b:
      return at::kShort;
    case 0x0c:
      return at::kInt;
    case 0x0d:
      return at::kFloat;
    case 0x0e:
      return at::kDouble;
    default:
      return std::nullopt;
  }
}

struct header {
  at::ScalarType type;
  std::vector<std::int64_t> sizes;
  std::uint64_t payload;  // bytes
};

void read_header_bytes(source& from, std::span<std::uint8_t> to) {
  if (from.read(to) < to.size()) from.fail(from.offset(), "the file ends within its IDX header");
}

header read_header(source& from) {
  std::array<std::uint8_t, 4> magic{};
  read_header_bytes(from, magic);
  if (magic[0] != 0 || magic[1] != 0)
    from.fail(
        0, fmt::format("no IDX file: it begins with {:#04x} {:#04x} in place of two zero bytes", magic[0], magic[1]));
  const auto type = element_type(magic[2]);
  if (!type) from.fail(2, fmt::format("no IDX file: unknown element type {:#04x}", magic[2]));
  if (magic[3] < 1 || magic[3] > 16) from.fail(3, fmt::format("{} dimensions; from 1 to 16 can be read", magic[3]));

  header result{*type, {}, at::elementSize(*type)};
  for (int i = 0; i < magic[3]; ++i) {
    const auto offset = from.offset();
    std::array<std::uint8_t, 4> bytes{};
    read_header_bytes(from, bytes);
    std::uint32_t size = 0;
    for (const std::uint8_t byte : bytes) size = (size << 8U) | byte;
    constexpr std::uint64_t limit = std::numeric_limits<std::int64_t>::max();
    if (size != 0 && result.payload > limit / size)
      from.fail(offset, fmt::format("dimension {} of {} elements makes more than 2^63 bytes in all", i, size));
    result.payload *= size;
    result.sizes.push_back(size);
  }
  return result;
}

std::vector<std::uint8_t> read_payload(source& from, std::uint64_t declared) {
  constexpr std::uint64_t first_step = 1U << 20;
  const auto begin = from.offset();
  std::vector<std::uint8_t> bytes;
  while (bytes.size() < declared) {
    const std::size_t have = bytes.size();
    bytes.resize(static_cast<std::size_t>(std::min(declared, std::max<std::uint64_t>(first_step, 2 * have))));
    const auto got = from.read(std::span(bytes).subspan(have));
    if (have + got < bytes.size())
      from.fail(from.offset(),
                fmt::format("the file ends here, {} bytes before the end that its header gives (byte {})",
                            declared - have - got, begin + declared));
  }
  // Reading on makes zlib verify the checksum at the end of the stream.
  std::array<std::uint8_t, 1> more{};
  if (from.read(more) != 0) from.fail(begin + declared, "the file goes on beyond the end that its header gives");
  return bytes;
}

void to_host_order(std::span<std::uint8_t> bytes, std::size_t element) {
  if constexpr (std::endian::native == std::endian::little) {
    if (element == 1) return;
    for (std::size_t i = 0; i < bytes.size(); i += element)
      std::reverse(bytes.begin() + static_cast<std::ptrdiff_t>(i),
                   bytes.begin() + static_cast<std::ptrdiff_t>(i + element));
  }
}

}  // namespace

at::Tensor read_idx(const std::filesystem::path& path) {
  source from(path);
  const header head = read_header(from);
  auto bytes = std::make_unique<std::vector<std::uint8_t>>(read_payload(from, head.payload));
  to_host_order(*bytes, at::elementSize(head.type));
  if (bytes->empty()) return at::empty(head.sizes, at::TensorOptions().dtype(head.type));
  auto* const memory = bytes->data();
  auto tensor = at::from_blob(
      memory, head.sizes, [owner = bytes.get()](void*) { delete owner; }, at::TensorOptions().dtype(head.type));
  static_cast<void>(bytes.release());
  return tensor;
}

}  // namespace rondo::data

#include "rondo/data/idx.hpp"

#include <ATen/Functions.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "rondo/data/input_file.hpp"

namespace rondo::data {

namespace {

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

void read_header_bytes(detail::input_file& from, std::span<std::uint8_t> to) {
  if (from.read(to) < to.size()) from.fail(from.offset(), "the file ends within its IDX header");
}

header read_header(detail::input_file& from) {
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

std::vector<std::uint8_t> read_payload(detail::input_file& from, std::uint64_t declared) {
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
  detail::input_file from(path);
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

#include "rondo/checkpoint/crc32.hpp"

#include <libdeflate.h>

namespace rondo::checkpoint {

std::uint32_t crc32(std::span<const std::byte> bytes, std::uint32_t before) noexcept {
  // libdeflate takes a null pointer for "give me the initial value", even after other bytes.
  return bytes.empty() ? before : libdeflate_crc32(before, bytes.data(), bytes.size());
}

}  // namespace rondo::checkpoint

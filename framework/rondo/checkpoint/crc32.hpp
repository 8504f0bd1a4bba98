#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace rondo::checkpoint {

/// The CRC-32 of zip and gzip. `before` is the checksum of the bytes that precede `bytes`.
[[nodiscard]] std::uint32_t crc32(std::span<const std::byte> bytes, std::uint32_t before = 0) noexcept;

/// The CRC-32 of two parts together, when that of each is known and the second has `second_size` bytes.
[[nodiscard]] std::uint32_t joined_crc32(std::uint32_t first, std::uint32_t second, std::uint64_t second_size) noexcept;

}  // namespace rondo::checkpoint

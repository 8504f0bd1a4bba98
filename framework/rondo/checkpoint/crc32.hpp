#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace rondo::checkpoint {

/// The CRC-32 of zip and gzip. `before` is the checksum of the bytes that precede `bytes`.
[[nodiscard]] std::uint32_t crc32(std::span<const std::byte> bytes, std::uint32_t before = 0) noexcept;

}  // namespace rondo::checkpoint

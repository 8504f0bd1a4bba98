#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "rondo/checkpoint/byte_sink.hpp"

namespace rondo::checkpoint {

/// A part of a file image whose CRC-32 is not known yet, and the places that wait for it. All numbers are offsets in
/// the image. Plain data, so that it can be handed to another process beside the image.
struct checksum_spot {
  std::uint64_t begin;       ///< first byte of the part
  std::uint64_t size;        ///< of the part, in bytes
  std::uint64_t descriptor;  ///< where the checksum goes as four little-endian bytes
  std::uint64_t directory;   ///< and again
  std::uint64_t manifest;    ///< where it goes as eight hexadecimal digits; 0: nowhere
};
static_assert(std::is_trivially_copyable_v<checksum_spot>);

/// Computes the missing checksums of `image`, which `encoder::write_frame` and the copies of the storages have filled,
/// puts them into their places, and gives the finished file to `sink` from the first byte to the last. The pieces are
/// multiples of 8 MiB at multiples of 8 MiB, but for the last one, and are not changed any more after they were given
/// away. `spots` come from `encoder::checksum_spots`, in that order. Runs on the calling thread; may be repeated.
/// Throws `format_error` for spots that lie outside the image, and what `sink` throws.
void seal(std::span<std::byte> image, std::span<const checksum_spot> spots, const byte_sink& sink);

}  // namespace rondo::checkpoint

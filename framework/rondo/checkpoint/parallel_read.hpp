#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

namespace rondo::checkpoint {

/// A part of a file on its way into memory.
struct read_part {
  std::uint64_t offset = 0;
  std::uint64_t size = 0;
  /// Where the bytes go; null reads them for their checksum only.
  std::byte* to = nullptr;
  /// Of the bytes, once they are read.
  std::uint32_t crc32 = 0;
};

/// Copies what begins at `offset` in a file into `out`, or throws.
using read_function = std::function<void(std::uint64_t offset, std::span<std::byte> out)>;

enum class read_checksums { skip, compute };

/// Reads all parts, large ones in pieces, on the calling thread and up to `threads` - 1 others that end before this
/// returns. A checksum is computed while the bytes are in the CPU's cache. `read` is called from several threads at
/// once; the first error that it throws ends the reading and is thrown here, after all threads have ended. The parts'
/// memory may then be partly written.
void read_parts(std::span<read_part> parts, const read_function& read, int threads, read_checksums checksums);

}  // namespace rondo::checkpoint

#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>

namespace rondo::data {

/// Reads an IDX file, the format of MNIST and its relatives, plain or compressed with gzip (told by its content, not by
/// its name), into a tensor of the file's dimensions. Format: two zero bytes, one for the element type (0x08 uint8,
/// 0x09 int8, 0x0b int16, 0x0c int32, 0x0d float32, 0x0e float64), one for the number of dimensions (1 to 16 are
/// accepted), each dimension as 4 bytes, then the elements, all big-endian (Y. LeCun, C. Cortes, "The MNIST database of
/// handwritten digits").
///
/// Throws `io_error` when the file cannot be opened or read. Throws `format_error`, naming the file and the offset (in
/// the decompressed bytes when it is compressed), when it is no IDX file, holds less or more than its header says, or
/// its gzip stream is damaged or cut off. Memory grows with the bytes that are really there, whatever the header says.
[[nodiscard]] at::Tensor read_idx(const std::filesystem::path& path);

}  // namespace rondo::data

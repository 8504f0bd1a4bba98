#pragma once

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "rondo/checkpoint/encoder.hpp"
#include "rondo/checkpoint/pickle.hpp"
#include "rondo/checkpoint/tensor_descriptor.hpp"

namespace rondo::testing {

using byte_vector = std::vector<std::byte>;

inline byte_vector to_bytes(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

/// Bytes that differ from place to place and from seed to seed.
inline byte_vector noise(std::size_t size, unsigned seed = 1) {
  byte_vector bytes(size);
  std::uint32_t state = seed * 2654435761u + 12345u;
  for (auto& byte : bytes) {
    state = state * 1664525u + 1013904223u;
    byte = static_cast<std::byte>(state >> 24);
  }
  return bytes;
}

/// A contiguous vector that owns its storage.
inline checkpoint::tensor_descriptor vector_of(checkpoint::scalar_type dtype, std::string key, std::int64_t size) {
  return {dtype, std::move(key), size, 0, {size}, {1}, false, false};
}

inline byte_vector write_to_memory(const checkpoint::encoder& file) {
  byte_vector out;
  file.write([&](std::span<const std::byte> bytes) { out.insert(out.end(), bytes.begin(), bytes.end()); });
  return out;
}

inline void write_to_file(const std::string& path, std::span<const std::byte> bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

}  // namespace rondo::testing

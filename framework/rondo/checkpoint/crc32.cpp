#include "rondo/checkpoint/crc32.hpp"

#include <libdeflate.h>

namespace rondo::checkpoint {

namespace {

// Polynomials over GF(2) modulo the CRC's, with the coefficient of x^0 in the highest bit.
constexpr std::uint32_t one = 0x80000000;
constexpr std::uint32_t polynomial = 0xedb88320;

constexpr std::uint32_t times_x(std::uint32_t a) { return (a >> 1) ^ ((a & 1) != 0 ? polynomial : 0); }

constexpr std::uint32_t product(std::uint32_t a, std::uint32_t b) {
  std::uint32_t sum = 0;
  for (; a != 0; a <<= 1) {
    if ((a & one) != 0) sum ^= b;
    b = times_x(b);
  }
  return sum;
}

// x^(8 n): what n zero bytes multiply a checksum by.
constexpr std::uint32_t shift_by_bytes(std::uint64_t n) {
  std::uint32_t square = one >> 8;
  std::uint32_t result = one;
  for (; n != 0; n >>= 1) {
    if ((n & 1) != 0) result = product(result, square);
    square = product(square, square);
  }
  return result;
}

}  // namespace

std::uint32_t crc32(std::span<const std::byte> bytes, std::uint32_t before) noexcept {
  // libdeflate takes a null pointer for "give me the initial value", even after other bytes.
  return bytes.empty() ? before : libdeflate_crc32(before, bytes.data(), bytes.size());
}

std::uint32_t joined_crc32(std::uint32_t first, std::uint32_t second, std::uint64_t second_size) noexcept {
  return product(shift_by_bytes(second_size), first) ^ second;
}

}  // namespace rondo::checkpoint

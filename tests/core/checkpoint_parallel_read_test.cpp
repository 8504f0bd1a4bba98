#include "rondo/checkpoint/parallel_read.hpp"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <vector>

#include "rondo/checkpoint/crc32.hpp"
#include "support/catch.hpp"
#include "support/checkpoint.hpp"

namespace checkpoint_parallel_read_test {

using namespace rondo::checkpoint;
using namespace rondo::testing;

TEST_CASE("checksums of two parts join", "[checkpoint][crc32]") {
  const auto bytes = noise(70'000);
  const std::span<const std::byte> all(bytes);
  for (const std::size_t cut : {0U, 1U, 2U, 7U, 8U, 4095U, 4096U, 65'535U, 65'536U, 69'999U, 70'000U}) {
    CAPTURE(cut);
    CHECK(joined_crc32(crc32(all.first(cut)), crc32(all.subspan(cut)), bytes.size() - cut) == crc32(all));
  }
  // As the definition by division has it: 2^40 zero bytes after a part, in two ways.
  const auto zeros = [](std::uint32_t first, std::uint64_t n) {
    const byte_vector kilobyte(1024);
    std::uint32_t zero_checksum = crc32(kilobyte);
    for (std::uint64_t size = 1024; size < n; size *= 2)
      zero_checksum = joined_crc32(zero_checksum, zero_checksum, size);
    return joined_crc32(first, zero_checksum, n);
  };
  const auto start = crc32(all);
  CHECK(zeros(zeros(start, std::uint64_t{1} << 39), std::uint64_t{1} << 39) == zeros(start, std::uint64_t{1} << 40));
}

TEST_CASE("parts of a file are read with their checksums", "[checkpoint][parallel_read]") {
  const auto file = noise(21'000'000);
  const read_function read = [&](std::uint64_t offset, std::span<std::byte> out) {
    std::ranges::copy(std::span(file).subspan(offset, out.size()), out.begin());
  };
  for (const int threads : {0, 1, 2, 7}) {
    for (const auto checksums : {read_checksums::skip, read_checksums::compute}) {
      CAPTURE(threads, checksums == read_checksums::compute);
      byte_vector first(9'000'001);
      byte_vector last(3);
      std::vector<read_part> parts = {{7, first.size(), first.data(), 99},
                                      {9'000'008, 11'000'000, nullptr, 99},
                                      {5, 0, nullptr, 99},
                                      {file.size() - 3, 3, last.data(), 99}};
      read_parts(parts, read, threads, checksums);
      CHECK(std::ranges::equal(first, std::span(file).subspan(7, first.size())));
      CHECK(std::ranges::equal(last, std::span(file).last(3)));
      if (checksums == read_checksums::skip) continue;
      for (const auto& part : parts) CHECK(part.crc32 == crc32(std::span(file).subspan(part.offset, part.size)));
    }
  }
  read_parts({}, read, 4, read_checksums::compute);
}

TEST_CASE("the first error ends the reading on all threads", "[checkpoint][parallel_read]") {
  byte_vector memory(100 << 20);
  std::vector<read_part> parts = {{0, memory.size(), memory.data()}};
  std::atomic<int> calls = 0;
  const read_function read = [&](std::uint64_t offset, std::span<std::byte>) {
    ++calls;
    if (offset >= (8U << 20)) throw std::runtime_error("bad sector");
  };
  CHECK_THROWS_AS(read_parts(parts, read, 3, read_checksums::compute), std::runtime_error);
  CHECK(calls < 200);  // of 400
}

}  // namespace checkpoint_parallel_read_test

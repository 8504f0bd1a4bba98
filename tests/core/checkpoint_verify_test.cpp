#include "rondo/checkpoint/verify.hpp"

#include "rondo/checkpoint/encoder.hpp"
#include "rondo/error.hpp"
#include "support/catch.hpp"
#include "support/checkpoint.hpp"

using namespace rondo;
using namespace rondo::checkpoint;
using namespace rondo::testing;

namespace {

byte_vector small_file() {
  static const auto data = noise(24);
  const tree state = tree::dict{{"weight", vector_of(scalar_type::float32, "0", 6)}, {"lr", 0.1}, {"iteration", 7}};
  return write_to_memory(encoder(state, {{"0", data}}, {7, 1, false, {{"rondo", "0.1.0"}}, 2}, "snap"));
}

bool found_bad(std::span<const std::byte> bytes) {
  try {
    verify(reader::from_span(bytes, "damaged"));
  } catch (const format_error&) {
    return true;
  }
  return false;
}

plan layout_of(const reader& file) {
  std::vector<record_size> sizes;
  for (const auto& entry : file.records().entries())
    sizes.push_back({std::string(entry.path.substr(file.root().size() + 1)), entry.size});
  return plan(file.root(), sizes);
}

}  // namespace

TEST_CASE("every changed bit is found", "[checkpoint][verify]") {
  auto bytes = small_file();
  REQUIRE_FALSE(found_bad(bytes));
  std::vector<std::size_t> missed;
  for (std::size_t i = 0; i < bytes.size() * 8; ++i) {
    const auto bit = std::byte{1} << (i % 8);
    bytes[i / 8] ^= bit;
    if (!found_bad(bytes)) missed.push_back(i);
    bytes[i / 8] ^= bit;
  }
  CHECK(missed.empty());
}

TEST_CASE("every truncation is found", "[checkpoint][verify]") {
  const auto bytes = small_file();
  std::vector<std::size_t> missed;
  for (std::size_t size = 0; size < bytes.size(); ++size)
    if (!found_bad(std::span(bytes).first(size))) missed.push_back(size);
  CHECK(missed.empty());
}

TEST_CASE("zeroed and repeated blocks are found", "[checkpoint][verify]") {
  const auto bytes = small_file();
  for (std::size_t at = 0; at + 512 <= bytes.size(); at += 512) {
    auto damaged = bytes;
    std::fill_n(damaged.begin() + static_cast<std::ptrdiff_t>(at), 512, std::byte{0});
    if (damaged != bytes) CHECK(found_bad(damaged));
  }
}

TEST_CASE("problems name each damaged record once", "[checkpoint][verify]") {
  auto bytes = small_file();
  const auto sound = reader::from_bytes(bytes, "sound");
  CHECK(problems(sound).empty());
  const auto layout = layout_of(sound);
  REQUIRE(layout.file_size() == bytes.size());
  bytes[layout.records()[2].data_offset + 3] ^= std::byte{0x10};
  bytes[layout.records()[3].data_offset] ^= std::byte{0x01};
  const auto damaged = reader::from_bytes(bytes, "damaged");
  const auto found = problems(damaged);
  REQUIRE(found.size() == 2);
  CHECK(contains(found[0], "'snap/data/0' is damaged"));
  CHECK(contains(found[1], "'snap/version' is damaged"));
  CHECK(contains(message_of<format_error>([&] { verify(damaged); }), "'snap/data/0' is damaged"));
}

TEST_CASE("a damaged pickle or manifest is found on opening", "[checkpoint][verify]") {
  for (const std::size_t index : {std::size_t{0}, std::size_t{4}}) {
    auto bytes = small_file();
    bytes[layout_of(reader::from_span(bytes, "sound")).records()[index].data_offset + 10] ^= std::byte{1};
    CHECK(contains(message_of<format_error>([&] { (void)reader::from_span(bytes, "damaged"); }), "wrong checksum"));
  }
}

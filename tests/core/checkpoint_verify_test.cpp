#include "rondo/checkpoint/verify.hpp"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>

#include "rondo/checkpoint/crc32.hpp"
#include "rondo/checkpoint/encoder.hpp"
#include "rondo/checkpoint/layout.hpp"
#include "rondo/error.hpp"
#include "support/catch.hpp"
#include "support/checkpoint.hpp"
#include "support/messages.hpp"
#include "support/temporary_directory.hpp"

namespace checkpoint_verify_test {

using namespace rondo;
using namespace rondo::checkpoint;
using namespace rondo::testing;

namespace {

byte_vector small_file() {
  static const auto data = noise(24);
  const tree state = tree::dict{{"weight", vector_of(scalar_type::float32, "0", 6)}, {"lr", 0.1}, {"iteration", 7}};
  return write_to_memory(encoder(state, {{"0", data}}, {7, 1, false, {{"rondo", "0.1.0"}}, 2}, "snap"));
}

// Says that it is of version `told`, and is laid out by the rule of version `laid_out`.
byte_vector file_of_version(std::int64_t told, std::int64_t laid_out) {
  const auto data = noise(24);
  const auto pickle = encode_pickle(tree::dict{{"weight", vector_of(scalar_type::float32, "0", 6)}});
  std::vector<std::pair<std::string, byte_vector>> contents = {
      {"data.pkl", pickle}, {"byteorder", to_bytes("little")}, {"data/0", data}, {"version", to_bytes("3\n")}};
  manifest about{{7, 1}, {{"weight", "data/0"}}, {}, told};
  for (const auto& [name, bytes] : contents) about.records.push_back({name, bytes.size(), crc32(bytes)});
  contents.emplace_back("rondo.json", to_bytes(to_json(about)));

  std::vector<record_size> sizes;
  std::vector<std::uint32_t> checksums;
  for (const auto& [name, bytes] : contents) {
    sizes.push_back({name, bytes.size()});
    checksums.push_back(crc32(bytes));
  }
  const plan layout("snap", sizes, laid_out);
  byte_vector file;
  for (std::size_t i = 0; i < contents.size(); ++i) {
    layout.append_header(file, layout.records()[i]);
    file.insert(file.end(), contents[i].second.begin(), contents[i].second.end());
    layout.append_descriptor(file, layout.records()[i], checksums[i]);
  }
  layout.append_directory(file, checksums);
  return file;
}

byte_vector version_1_file() { return file_of_version(1, 1); }

template <class Open>
bool found_bad_by(Open open) {
  try {
    verify(open());
  } catch (const format_error&) {
    return true;
  }
  return false;
}

bool found_bad(std::span<const std::byte> bytes) {
  return found_bad_by([&] { return reader::from_span(bytes, "damaged"); });
}

bool found_bad(const std::filesystem::path& file) {
  return found_bad_by([&] { return reader::open(file); });
}

/// Of a large file: few by default, as many as the environment says for a long run.
int how_many_flips() {
  const char* text = std::getenv("RONDO_TEST_FLIPS");
  return text != nullptr ? std::atoi(text) : 300;
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

TEST_CASE("random changed bits of a large file are found", "[checkpoint][verify]") {
  const temporary_directory folder;
  const auto path = folder / "large";
  const auto data = noise(64 << 20);
  const auto size = static_cast<std::int64_t>(data.size());
  const encoder file(tree::dict{{"weight", vector_of(scalar_type::uint8, "0", size)}}, {{"0", data}}, {});
  write_to_file(path.string(), write_to_memory(file));
  REQUIRE_FALSE(found_bad(path));

  std::fstream bytes(path, std::ios::in | std::ios::out | std::ios::binary);
  const auto flip = [&](std::uint64_t bit) {
    const auto at = static_cast<std::streamoff>(bit / 8);
    const auto before = static_cast<unsigned>(bytes.seekg(at).get());
    bytes.seekp(at).put(static_cast<char>(before ^ 1U << bit % 8)).flush();
  };
  std::mt19937_64 random(7);
  std::vector<std::uint64_t> missed;
  for (int i = 0; i < how_many_flips(); ++i) {
    const auto bit = random() % (file.size() * 8);
    flip(bit);
    if (!found_bad(path)) missed.push_back(bit);
    flip(bit);
  }
  CHECK(missed.empty());
  REQUIRE(bytes.good());
  CHECK_FALSE(found_bad(path));
}

TEST_CASE("files of version 1 are read and verified to the last byte", "[checkpoint][verify]") {
  auto bytes = version_1_file();
  const auto file = reader::from_span(bytes, "old");
  REQUIRE(file.info().has_value());
  CHECK(file.info()->format_version == 1);
  CHECK(file.info()->info.iteration == 7);
  CHECK((file.record("data/0").data() - bytes.data()) % 4096 == 0);
  CHECK(file.state().get<tensor_descriptor>("weight").storage_numel == 6);
  CHECK(problems(file).empty());

  std::vector<std::size_t> missed;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const auto bit = std::byte{1} << (i % 8);
    bytes[i] ^= bit;
    if (!found_bad(bytes)) missed.push_back(i);
    bytes[i] ^= bit;
  }
  CHECK(missed.empty());
}

TEST_CASE("a file laid out by another version's rule is refused", "[checkpoint][verify]") {
  CHECK(found_bad(file_of_version(1, 2)));
  CHECK(found_bad(file_of_version(2, 1)));
  CHECK_FALSE(found_bad(file_of_version(2, 2)));
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
  CHECK(contains(refusal_of<format_error>([&] { verify(damaged); }), "'snap/data/0' is damaged"));
}

TEST_CASE("a damaged pickle or manifest is found on opening", "[checkpoint][verify]") {
  for (const std::size_t index : {std::size_t{0}, std::size_t{4}}) {
    auto bytes = small_file();
    bytes[layout_of(reader::from_span(bytes, "sound")).records()[index].data_offset + 10] ^= std::byte{1};
    CHECK(contains(refusal_of<format_error>([&] { (void)reader::from_span(bytes, "damaged"); }), "wrong checksum"));
  }
}

}  // namespace checkpoint_verify_test

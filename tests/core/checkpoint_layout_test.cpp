#include "rondo/checkpoint/layout.hpp"

#include "rondo/checkpoint/little_endian.hpp"
#include "rondo/error.hpp"
#include "support/catch.hpp"
#include "support/checkpoint.hpp"
#include "support/messages.hpp"

namespace checkpoint_layout_test {

using namespace rondo;
using namespace rondo::checkpoint;
using namespace rondo::testing;

namespace {

constexpr std::uint64_t gib = std::uint64_t{1} << 30;

void check_pieces_fill_their_places(const plan& layout, std::uint64_t small_alignment = 64) {
  std::uint64_t at = 0;
  byte_vector piece;
  for (const auto& record : layout.records()) {
    REQUIRE(record.header_offset == at);
    REQUIRE(record.data_offset % (record.size < 4096 ? small_alignment : 4096) == 0);
    REQUIRE(plan::header_size(record) < 4096 + 80 + record.path.size());
    piece.clear();
    layout.append_header(piece, record);
    REQUIRE(record.header_offset + piece.size() == record.data_offset);
    piece.clear();
    layout.append_descriptor(piece, record, 0);
    at = record.descriptor_offset() + piece.size();
  }
  REQUIRE(layout.directory_offset() == at);
  piece.clear();
  layout.append_directory(piece, std::vector<std::uint32_t>(layout.records().size()));
  REQUIRE(layout.file_size() == at + piece.size());
}

}  // namespace

TEST_CASE("a plan says exactly where everything goes", "[checkpoint][layout]") {
  std::vector<record_size> records;
  for (const std::uint64_t size : {0, 1, 4095, 4096, 4097, 1'000'000})
    records.push_back({"r" + std::to_string(size), size});
  // Names of every length, so that every amount of padding occurs.
  for (std::size_t length = 1; length <= 4200; ++length) records.push_back({"n" + std::string(length, 'x'), 3});
  check_pieces_fill_their_places(plan("root", records));
  check_pieces_fill_their_places(plan("root", records, 1), 4096);
  check_pieces_fill_their_places(plan("root", {}));
}

TEST_CASE("small records lie close together, in files of version 1 pages apart", "[checkpoint][layout]") {
  std::vector<record_size> records;
  for (int i = 0; i < 1000; ++i) records.push_back({"data/" + std::to_string(i), 40});
  CHECK(plan("archive", records).file_size() < 1000 * (128 + 64 + 80));
  CHECK(plan("archive", records, 1).file_size() > 1000 * 4096);
}

TEST_CASE("a plan beyond 4 GiB uses zip64 exactly where it must", "[checkpoint][layout]") {
  const std::vector<record_size> records = {
      {"small", 10}, {"limit", 0xfffffffe}, {"big", 5 * gib}, {"exact", 0xffffffff}, {"last", 1}};
  const plan layout("r", records);
  check_pieces_fill_their_places(layout);
  CHECK(layout.file_size() > 13 * gib);

  byte_vector header;
  layout.append_header(header, layout.records()[2]);
  CHECK(little_endian_at<std::uint16_t>(header, 4) == 45);
  CHECK(little_endian_at<std::uint32_t>(header, 18) == 0xffffffff);
  CHECK(little_endian_at<std::uint16_t>(header, 30 + 5) == 1);
  header.clear();
  layout.append_header(header, layout.records()[1]);
  CHECK(little_endian_at<std::uint16_t>(header, 4) == 20);

  byte_vector descriptor;
  layout.append_descriptor(descriptor, layout.records()[2], 0x12345678);
  REQUIRE(descriptor.size() == 24);
  CHECK(little_endian_at<std::uint32_t>(descriptor, 4) == 0x12345678);
  CHECK(little_endian_at<std::uint64_t>(descriptor, 8) == 5 * gib);
  CHECK(little_endian_at<std::uint64_t>(descriptor, 16) == 5 * gib);

  byte_vector tail;
  layout.append_directory(tail, std::vector<std::uint32_t>{1, 2, 3, 4, 5});
  const auto entry_at = [&](std::size_t index) {
    std::size_t at = 0;
    for (std::size_t i = 0; i < index; ++i)
      at += std::size_t{46} + little_endian_at<std::uint16_t>(tail, at + 28) +
            little_endian_at<std::uint16_t>(tail, at + 30);
    return at;
  };
  const auto last = entry_at(4);
  CHECK(little_endian_at<std::uint32_t>(tail, last + 24) == 1);
  CHECK(little_endian_at<std::uint32_t>(tail, last + 42) == 0xffffffff);
  CHECK(little_endian_at<std::uint16_t>(tail, last + 30) == 12);
  CHECK(little_endian_at<std::uint64_t>(tail, last + 46 + 6 + 4) == layout.records()[4].header_offset);
  const auto big = entry_at(2);
  CHECK(little_endian_at<std::uint32_t>(tail, big + 24) == 0xffffffff);
  CHECK(little_endian_at<std::uint64_t>(tail, big + 46 + 5 + 4) == 5 * gib);
}

TEST_CASE("a plan of more than 65,534 records uses zip64", "[checkpoint][layout]") {
  for (const std::size_t count : {65'534, 65'535, 65'536}) {
    std::vector<record_size> records;
    for (std::size_t i = 0; i < count; ++i) records.push_back({std::to_string(i), 0});
    const plan layout("r", records);
    byte_vector tail;
    layout.append_directory(tail, std::vector<std::uint32_t>(count));
    CHECK(layout.directory_offset() + tail.size() == layout.file_size());
    const bool zip64 = little_endian_at<std::uint32_t>(tail, tail.size() - 42) == 0x07064b50;
    CHECK(zip64 == (count > 65'534));
  }
}

TEST_CASE("names that no archive can hold are refused", "[checkpoint][layout]") {
  const auto refused = [](std::string_view root, std::vector<record_size> records) {
    return !refusal_of<option_error>([&] { plan(root, records); }).empty();
  };
  CHECK(refused("", {}));
  CHECK(refused("a/b", {}));
  CHECK(refused("\xff", {{"x", 1}}));
  CHECK(refused("a", {{"", 1}}));
  CHECK(refused("a", {{"x", 1}, {"x", 1}}));
  CHECK(refused("a", {{std::string(40'000, 'x'), 1}}));
  CHECK(refused("a", {{"x", ~std::uint64_t{0}}}));
  CHECK_FALSE(refused("ü", {{"漢", 1}}));
}

}  // namespace checkpoint_layout_test

#include "rondo/checkpoint/reader.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "rondo/checkpoint/crc32.hpp"
#include "rondo/checkpoint/encoder.hpp"
#include "rondo/checkpoint/layout.hpp"
#include "rondo/checkpoint/little_endian.hpp"
#include "rondo/checkpoint/pickle.hpp"
#include "rondo/checkpoint/verify.hpp"
#include "rondo/checkpoint/zip_format.hpp"
#include "rondo/error.hpp"
#include "support/catch.hpp"
#include "support/checkpoint.hpp"
#include "support/messages.hpp"
#include "support/temporary_directory.hpp"

namespace checkpoint_reader_test {

using namespace rondo;
using namespace rondo::checkpoint;
using namespace rondo::testing;

namespace {

/// A zip writer of its own, so that the reader is judged by more than Rondo's planner, and that can lie.
struct foreign_zip {
  struct member {
    std::string path;
    byte_vector data;
    std::uint16_t flags = 0;
    std::uint16_t method = 0;
    std::uint32_t size_change = 0;
    std::string local_path = path;
  };
  std::vector<member> members;
  bool zip64 = false;
  std::string comment = "";
  std::uint32_t offset_change = 0;
  int count_change = 0;
  bool checksums = true;

  [[nodiscard]] byte_vector write() const {
    byte_vector out;
    byte_vector directory;
    const auto put16 = [](byte_vector& to, std::size_t n) { append_little_endian(to, static_cast<std::uint16_t>(n)); };
    const auto put32 = [](byte_vector& to, std::size_t n) { append_little_endian(to, static_cast<std::uint32_t>(n)); };
    const auto put64 = [](byte_vector& to, std::size_t n) { append_little_endian(to, std::uint64_t{n}); };
    for (const auto& m : members) {
      const auto offset = out.size() + offset_change;
      const auto checksum = checksums ? checkpoint::crc32(m.data) : 0;
      const auto size = static_cast<std::uint32_t>(m.data.size()) + m.size_change;
      for (auto* to : {&out, &directory}) {
        put32(*to, to == &out ? zip::local_header_signature : zip::directory_entry_signature);
        if (to == &directory) put16(*to, 0);
        put16(*to, 0);
        put16(*to, m.flags);
        put16(*to, m.method);
        put32(*to, 0);
        put32(*to, checksum);
        put32(*to, to == &directory && zip64 ? zip::see_zip64 : size);
        put32(*to, to == &directory && zip64 ? zip::see_zip64 : size);
        put16(*to, (to == &out ? m.local_path : m.path).size());
        put16(*to, to == &directory && zip64 ? 28 : 0);
        if (to == &directory) {
          put16(*to, 0);
          put16(*to, 0);
          put16(*to, 0);
          put32(*to, 0);
          put32(*to, zip64 ? zip::see_zip64 : offset);
        }
        append_text(*to, to == &out ? m.local_path : m.path);
        if (to == &directory && zip64) {
          put16(*to, zip::zip64_field);
          put16(*to, 24);
          put64(*to, size);
          put64(*to, size);
          put64(*to, offset);
        }
      }
      out.insert(out.end(), m.data.begin(), m.data.end());
    }
    const auto directory_offset = out.size();
    const auto count = static_cast<std::size_t>(static_cast<int>(members.size()) + count_change);
    out.insert(out.end(), directory.begin(), directory.end());
    if (zip64) {
      const auto end64 = out.size();
      put32(out, zip::end64_signature);
      put64(out, 44);
      put32(out, 0);
      put64(out, 0);
      put64(out, count);
      put64(out, count);
      put64(out, directory.size());
      put64(out, directory_offset);
      put32(out, zip::end64_locator_signature);
      put32(out, 0);
      put64(out, end64);
      put32(out, 1);
    }
    put32(out, zip::end_signature);
    put32(out, 0);
    put16(out, zip64 ? 0xffff : count);
    put16(out, zip64 ? 0xffff : count);
    put32(out, zip64 ? 0xffffffff : directory.size());
    put32(out, zip64 ? 0xffffffff : directory_offset);
    put16(out, comment.size());
    append_text(out, comment);
    return out;
  }
};

foreign_zip foreign_example() {
  const tree state = tree::dict{{"w", vector_of(scalar_type::float32, "0", 4)}};
  return {{{"any name/data.pkl", encode_pickle(state)},
           {"any name/data/0", noise(16)},
           {"any name/version", to_bytes("3\n")}}};
}

std::string refusal(const byte_vector& bytes) {
  return refusal_of<format_error>([&] { (void)reader::from_span(bytes, "evil"); });
}
std::string refusal(const foreign_zip& file) { return refusal(file.write()); }

}  // namespace

TEST_CASE("foreign files are read, with and without zip64", "[checkpoint][reader]") {
  for (const bool zip64 : {false, true}) {
    auto file = foreign_example();
    file.zip64 = zip64;
    const auto back = reader::from_bytes(file.write(), "foreign");
    CHECK_FALSE(back.info().has_value());
    CHECK(back.root() == "any name");
    CHECK(back.has_record("data/0"));
    CHECK_FALSE(back.has_record("data/1"));
    const auto& tensor = back.state().get<tensor_descriptor>("w");
    CHECK(std::ranges::equal(back.storage(tensor), noise(16)));
    CHECK(problems(back).empty());
  }
}

TEST_CASE("a foreign file without checksums is read", "[checkpoint][reader]") {
  auto file = foreign_example();
  file.checksums = false;
  const auto back = reader::from_bytes(file.write(), "foreign");
  CHECK(problems(back).empty());
}

TEST_CASE("a reader can be moved", "[checkpoint][reader]") {
  auto first = reader::from_bytes(foreign_example().write(), "foreign");
  const reader second = std::move(first);
  CHECK(second.record("version").size() == 2);
  CHECK(second.storage(second.state().get<tensor_descriptor>("w")).size() == 16);
}

TEST_CASE("storages are only given out whole and in bounds", "[checkpoint][reader]") {
  const auto back = reader::from_bytes(foreign_example().write(), "foreign");
  auto tensor = vector_of(scalar_type::float32, "0", 4);
  CHECK(back.storage(tensor).size() == 16);
  tensor.storage_numel = 3;
  tensor.sizes = {3};
  CHECK(back.storage(tensor).size() == 12);
  const auto refused = [&](const tensor_descriptor& t) {
    return refusal_of<format_error>([&] { (void)back.storage(t); });
  };
  CHECK(contains(refused(vector_of(scalar_type::float32, "0", 5)), "16 bytes, but its tensors need 20"));
  CHECK(contains(refused(vector_of(scalar_type::float64, "0", 4)), "need 32"));
  CHECK(contains(refused(vector_of(scalar_type::float32, "7", 4)), "no record 'any name/data/7'"));
  auto outside = vector_of(scalar_type::float32, "0", 4);
  outside.storage_offset = 1;
  CHECK(contains(refused(outside), "beyond its storage"));
  outside.storage_offset = -1;
  CHECK(contains(refused(outside), "negative"));
}

TEST_CASE("archives that are not sound checkpoints are refused", "[checkpoint][reader]") {
  const auto with = [](auto change) {
    auto file = foreign_example();
    change(file);
    return refusal(file);
  };
  CHECK(with([](auto&) {}).empty());
  CHECK(contains(with([](auto& f) { f.members[1].flags = 1; }), "encrypted"));
  CHECK(contains(with([](auto& f) { f.members[1].method = 8; }), "compressed"));
  CHECK(contains(with([](auto& f) { f.members[2].path = "any name/data/0"; }), "two records"));
  CHECK(contains(with([](auto& f) { f.members[1].size_change = 10'000; }), "overlaps"));
  CHECK(contains(with([](auto& f) { f.members[1].size_change = 20; }), "overlaps"));
  CHECK(contains(with([](auto& f) { f.offset_change = 0x7fffffff; }), "outside the file"));
  CHECK_FALSE(with([](auto& f) { f.offset_change = 1; }).empty());
  CHECK(contains(with([](auto& f) { f.comment = "hello"; }), "does not end"));
  CHECK(contains(with([](auto& f) { f.count_change = 1; }), "not an entry"));
  CHECK(contains(with([](auto& f) { f.count_change = -1; }), "longer than its count"));
  CHECK(contains(with([](auto& f) { f.count_change = 1000; }), "shorter than its count"));
  CHECK(contains(with([](auto& f) { f.members.clear(); }), "not a checkpoint"));
  CHECK(contains(with([](auto& f) { f.members.erase(f.members.begin()); }), "no record 'any name/data.pkl'"));
  CHECK(contains(with([](auto& f) { f.members[0].path = f.members[0].local_path = "data.pkl"; }), "not a checkpoint"));
  CHECK(contains(with([](auto& f) { f.members[0].local_path = "any name/data.pkx"; }), "another name"));
  CHECK(contains(with([](auto& f) { f.members[0].data.push_back(std::byte{'N'}); }), "follows"));
  CHECK(contains(with([](auto& f) { f.members.push_back({"any name/byteorder", to_bytes("big")}); }), "little-endian"));
  CHECK(contains(with([](auto& f) {
                   f.members.push_back({"any name/rondo.json", to_bytes("{}")});
                 }),
                 "format_version"));

  auto bytes = foreign_example().write();
  bytes.push_back(std::byte{0});
  CHECK(contains(refusal(bytes), "does not end"));
  CHECK(contains(refusal(byte_vector()), "too short"));
  CHECK(contains(refusal(noise(1000)), "does not end"));
  bytes = foreign_example().write();
  bytes.insert(bytes.begin(), std::byte{0});
  CHECK_FALSE(refusal(bytes).empty());
}

TEST_CASE("equal header offsets count as overlap", "[checkpoint][reader]") {
  auto bytes = foreign_example().write();
  // The directory offset of the second entry is put on the first.
  const auto directory = little_endian_at<std::uint32_t>(bytes, bytes.size() - 6);
  const auto first_name = little_endian_at<std::uint16_t>(bytes, directory + 28);
  const auto second = directory + 46 + first_name;
  std::fill_n(bytes.begin() + second + 42, 4, std::byte{0});
  CHECK(contains(refusal(bytes), "overlaps"));
}

TEST_CASE("a file of more than 4 GiB is read", "[checkpoint][reader][zip64]") {
  // Sparse: only the structure is written, the big record is a hole.
  const temporary_directory scratch;
  const auto path = scratch.path() / "big";
  const std::uint64_t big = std::uint64_t{5} << 30;
  const auto pickle = encode_pickle(tree("state"));
  const plan layout("r", std::vector<record_size>{{"data.pkl", pickle.size()}, {"data/0", big}, {"last", 3}});
  const std::vector<std::uint32_t> checksums = {checkpoint::crc32(pickle), 0, checkpoint::crc32(to_bytes("end"))};
  std::ofstream file(path, std::ios::binary);
  const auto put = [&](std::uint64_t offset, const byte_vector& bytes) {
    file.seekp(static_cast<std::streamoff>(offset));
    file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  };
  for (std::size_t i = 0; i < 3; ++i) {
    const auto& record = layout.records()[i];
    byte_vector header;
    layout.append_header(header, record);
    put(record.header_offset, header);
    byte_vector descriptor;
    layout.append_descriptor(descriptor, record, checksums[i]);
    put(record.descriptor_offset(), descriptor);
  }
  put(layout.records()[0].data_offset, pickle);
  put(layout.records()[2].data_offset, to_bytes("end"));
  byte_vector directory;
  layout.append_directory(directory, checksums);
  put(layout.directory_offset(), directory);
  file.close();
  REQUIRE(std::filesystem::file_size(path) == layout.file_size());

  const auto back = reader::open(path);
  CHECK(back.state() == tree("state"));
  CHECK(back.record("data/0").size() == big);
  CHECK(std::ranges::equal(back.record("last"), to_bytes("end")));
}

TEST_CASE("files are opened from disk", "[checkpoint][reader]") {
  const temporary_directory scratch;
  const auto path = scratch.path() / "snapshot";
  const auto data = noise(16);
  const auto bytes = write_to_memory(encoder(vector_of(scalar_type::float32, "0", 4), {{"0", data}}, {}, "snapshot"));
  write_to_file(path.string(), bytes);

  SECTION("a sound one") {
    const auto back = reader::open(path);
    CHECK(back.where() == path.string());
    verify(back);
    std::filesystem::remove(path);
    CHECK(std::ranges::equal(back.record("data/0"), data));
  }
  SECTION("one that is not there") {
    const auto missing = scratch.path() / "missing";
    CHECK(contains(refusal_of<io_error>([&] { (void)reader::open(missing); }), missing.string()));
  }
  SECTION("a symbolic link") {
    std::filesystem::create_symlink(path, scratch.path() / "link");
    CHECK(
        contains(refusal_of<io_error>([&] { (void)reader::open(scratch.path() / "link"); }), "links are not followed"));
  }
  SECTION("things that are not files") {
    CHECK(contains(refusal_of<format_error>([&] { (void)reader::open(scratch.path()); }), "not a regular file"));
    const auto fifo = scratch.path() / "fifo";
    REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
    CHECK(contains(refusal_of<format_error>([&] { (void)reader::open(fifo); }), "not a regular file"));
  }
  SECTION("an empty file") {
    write_to_file(path.string(), {});
    CHECK(contains(refusal_of<format_error>([&] { (void)reader::open(path); }), "empty"));
  }
}

}  // namespace checkpoint_reader_test

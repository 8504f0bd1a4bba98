#include "rondo/data/idx.hpp"

#include <ATen/Functions.h>

#include <string>

#include "rondo/error.hpp"
#include "support/catch.hpp"
#include "support/idx_files.hpp"

namespace data_idx_test {

using namespace rondo;
using namespace rondo::test;

namespace {

struct failure {
  std::string where;
  std::uint64_t offset = 0;
  std::string what;
};

failure failure_of(const std::filesystem::path& path) {
  try {
    static_cast<void>(data::read_idx(path));
  } catch (const format_error& e) {
    return {e.where(), e.offset(), e.what()};
  }
  return {"no error", 0, "no error"};
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::string counting(std::size_t n) {
  std::string bytes;
  for (std::size_t i = 0; i < n; ++i) bytes += static_cast<char>(i);
  return bytes;
}

}  // namespace

TEST_CASE("IDX files are read plain and compressed, whatever their name", "[data][idx]") {
  const idx_folder folder;
  const auto bytes = idx_header(0x08, {2, 3}) + counting(6);
  write_plain(folder / "plain.gz", bytes);
  write_gzip(folder / "compressed", bytes);
  for (const auto* name : {"plain.gz", "compressed"}) {
    const auto tensor = data::read_idx(folder / name);
    REQUIRE(tensor.equal(at::arange(6, at::kByte).reshape({2, 3})));
  }
}

TEST_CASE("every element type is read in the machine's byte order", "[data][idx]") {
  const idx_folder folder;
  const auto read = [&](std::uint8_t type, const std::string& payload) {
    write_plain(folder / "file", idx_header(type, {1}) + payload);
    return data::read_idx(folder / "file");
  };
  using namespace std::string_literals;
  REQUIRE(read(0x08, "\xfe"s).equal(at::tensor({254}, at::kByte)));
  REQUIRE(read(0x09, "\xfe"s).equal(at::tensor({-2}, at::kChar)));
  REQUIRE(read(0x0b, "\xff\xfe"s).equal(at::tensor({-2}, at::kShort)));
  REQUIRE(read(0x0c, "\x01\x02\x03\x04"s).equal(at::tensor({0x01020304}, at::kInt)));
  REQUIRE(read(0x0d, "\x3f\x80\x00\x00"s).equal(at::tensor({1.0F})));
  REQUIRE(read(0x0e, "\xc0\x00\x00\x00\x00\x00\x00\x00"s).equal(at::tensor({-2.0}, at::kDouble)));
}

TEST_CASE("a dimension of zero gives an empty tensor of that shape", "[data][idx]") {
  const idx_folder folder;
  write_plain(folder / "file", idx_header(0x08, {0, 28, 28}));
  REQUIRE(data::read_idx(folder / "file").sizes() == at::IntArrayRef({0, 28, 28}));
}

TEST_CASE("more than the first step of memory is read whole", "[data][idx]") {
  const idx_folder folder;
  std::string payload((5U << 20U) + 3U, '\x07');
  payload.back() = '\x09';
  write_gzip(folder / "file.gz", idx_header(0x08, {static_cast<std::uint32_t>(payload.size())}) + payload);
  const auto tensor = data::read_idx(folder / "file.gz");
  REQUIRE(tensor.numel() == static_cast<std::int64_t>(payload.size()));
  REQUIRE(tensor[-1].item<int>() == 9);
  REQUIRE(tensor.slice(0, 0, -1).eq(7).all().item<bool>());
}

TEST_CASE("a plain file cut at any length is refused at its end", "[data][idx]") {
  const idx_folder folder;
  const auto whole = idx_header(0x08, {2, 3}) + counting(6);
  for (std::size_t length = 0; length < whole.size(); ++length) {
    write_plain(folder / "file", whole.substr(0, length));
    const auto failed = failure_of(folder / "file");
    CAPTURE(length, failed.what);
    REQUIRE(failed.where == (folder / "file").string());
    REQUIRE(failed.offset == length);
    REQUIRE(contains(failed.what, "file ends"));
  }
}

TEST_CASE("a gzip file cut at any length is refused", "[data][idx]") {
  const idx_folder folder;
  const auto path = folder / "file.gz";
  write_gzip(path, idx_header(0x08, {20, 30}) + counting(600));
  const auto whole = read_plain(path);
  for (std::size_t length = 0; length < whole.size(); ++length) {
    write_plain(path, whole.substr(0, length));
    const auto failed = failure_of(path);
    CAPTURE(length, whole.size(), failed.what);
    REQUIRE(contains(failed.where, path.string()));
  }
  write_plain(path, whole);
  REQUIRE(failure_of(path).what == "no error");
}

TEST_CASE("a gzip file with a flipped bit is refused or read right, never read wrong", "[data][idx]") {
  const idx_folder folder;
  const auto path = folder / "file.gz";
  write_gzip(path, idx_header(0x08, {20, 30}) + counting(600));
  const auto whole = read_plain(path);
  const auto expected = data::read_idx(path);
  int refused = 0;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    auto damaged = whole;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x10);
    write_plain(path, damaged);
    CAPTURE(i);
    at::Tensor found;
    try {
      found = data::read_idx(path);  // succeeds for the bits of the gzip header that mean nothing to the content
    } catch (const format_error&) {
      ++refused;
      continue;
    }
    REQUIRE(found.equal(expected));
  }
  REQUIRE(refused > static_cast<int>(whole.size()) - 10);  // a gzip header has 10 bytes
}

TEST_CASE("a wrong header is refused where it is wrong", "[data][idx]") {
  const idx_folder folder;
  const auto refused_at = [&](const std::string& bytes) {
    write_plain(folder / "file", bytes);
    const auto failed = failure_of(folder / "file");
    UNSCOPED_INFO(failed.what);
    return failed.what == "no error" ? -1 : static_cast<int>(failed.offset);
  };
  const auto good = idx_header(0x08, {2, 3}) + counting(6);
  REQUIRE(refused_at(good) == -1);
  auto bad = good;
  bad[0] = 'P';
  REQUIRE(refused_at(bad) == 0);
  bad = good;
  bad[1] = 'K';
  REQUIRE(refused_at(bad) == 0);
  bad = good;
  bad[2] = 0x0a;
  REQUIRE(refused_at(bad) == 2);
  bad = good;
  bad[3] = 0;
  REQUIRE(refused_at(bad) == 3);
  bad = good;
  bad[3] = 17;
  REQUIRE(refused_at(bad) == 3);
}

TEST_CASE("dimensions that the file cannot fill are refused without asking for their memory", "[data][idx]") {
  const idx_folder folder;
  SECTION("overflow") {
    write_plain(folder / "file", idx_header(0x0e, {0xffffffffU, 0xffffffffU, 2}) + counting(6));
    REQUIRE(failure_of(folder / "file").offset == 8);
  }
  SECTION("exabytes, plain and compressed") {
    const auto bytes = idx_header(0x08, {0xffffffffU, 0x7fffffffU}) + counting(6);
    write_plain(folder / "file", bytes);
    write_gzip(folder / "file.gz", bytes);
    for (const auto* name : {"file", "file.gz"}) {
      const auto failed = failure_of(folder / name);
      REQUIRE(failed.offset == bytes.size());
      REQUIRE(contains(failed.what, "file ends here"));
    }
  }
}

TEST_CASE("bytes beyond the last element are refused", "[data][idx]") {
  const idx_folder folder;
  const auto bytes = idx_header(0x08, {2, 3}) + counting(7);
  write_plain(folder / "file", bytes);
  write_gzip(folder / "file.gz", bytes);
  REQUIRE(failure_of(folder / "file").offset == bytes.size() - 1);
  REQUIRE(failure_of(folder / "file.gz").offset == bytes.size() - 1);
}

TEST_CASE("what cannot be opened or read is an io_error with its path", "[data][idx]") {
  const idx_folder folder;
  for (const auto& path : {folder / "missing", folder.path()}) {
    try {
      static_cast<void>(data::read_idx(path));
      FAIL("read " << path);
    } catch (const io_error& e) {
      REQUIRE(e.path() == path);
      REQUIRE(e.code());
    }
  }
}

}  // namespace data_idx_test

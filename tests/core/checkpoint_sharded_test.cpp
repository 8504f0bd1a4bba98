#include "rondo/checkpoint/sharded.hpp"

#include <algorithm>
#include <fstream>
#include <numeric>
#include <random>
#include <thread>

#include "rondo/checkpoint/verify.hpp"
#include "rondo/error.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"
#include "support/sharded_files.hpp"
#include "support/temporary_directory.hpp"

namespace checkpoint_sharded_test {

using namespace rondo;
using namespace rondo::checkpoint;
using namespace rondo::testing;

namespace {

using integers = std::vector<std::int64_t>;

struct folder {
  temporary_directory scratch;
  [[nodiscard]] std::filesystem::path path() const { return scratch / "snapshot"; }
  [[nodiscard]] std::filesystem::path file(const std::string& name) const { return path() / name; }
  [[nodiscard]] sharded_reader open() const { return sharded_reader::open(path()); }

  [[nodiscard]] std::string problem() const {
    return refusal_of<format_error>([this] { static_cast<void>(open().tensors()); });
  }
  [[nodiscard]] std::string problem_when_all_is_read() const {
    return refusal_of<format_error>([this] {
      const auto from = open();
      for (const auto& tensor : from.tensors()) {
        byte_vector to(static_cast<std::size_t>(tensor.byte_size()));
        from.read(tensor, integers(tensor.sizes.size(), 0), tensor.sizes, to);
      }
    });
  }
};

byte_vector contents_of(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  return to_bytes(text);
}

void flip(const std::filesystem::path& file, std::uint64_t offset, unsigned bit) {
  auto bytes = contents_of(file);
  bytes[offset] ^= static_cast<std::byte>(1u << bit);
  write_to_file(file.string(), bytes);
}

/// Where in the file a piece's bytes are.
std::uint64_t place_of(const reader& file, int piece) {
  return static_cast<std::uint64_t>(file.record("data/" + std::to_string(piece)).data() - file.records().file().data());
}

byte_vector box_of(const byte_vector& whole, const integers& sizes, const integers& offsets, const integers& box) {
  byte_vector result;
  const integers none(sizes.size(), 0);
  for_common_runs({none, sizes}, {offsets, box}, [&](std::uint64_t at, std::uint64_t, std::uint64_t count) {
    result.insert(result.end(), whole.begin() + static_cast<std::ptrdiff_t>(at),
                  whole.begin() + static_cast<std::ptrdiff_t>(at + count));
  });
  return result;
}

/// A snapshot of three ranks with a tensor of 100 rows in 30 pieces or so.
struct three_ranks : folder {
  sharded_files files{3};
  byte_vector content = noise(100 * 8);
  tree::dict state{{"models", tree::dict{{"main", files.by_rows(100, 8, content, 4)}}}, {"number", 3}};

  three_ranks() { files.write_all(path(), state, {12, 3, false, {}, 1, "snapshot"}); }
};

}  // namespace

TEST_CASE("a sharded snapshot is a directory with a file that says so", "[checkpoint][sharded]") {
  const three_ranks here;
  CHECK(is_sharded(here.path()));
  CHECK(!is_sharded(here.scratch.path()));
  CHECK(!is_sharded(here.file("complete")));
  CHECK(!is_sharded(here.file("nothing")));
  std::filesystem::create_directory_symlink(here.path(), here.scratch / "link");
  CHECK(!is_sharded(here.scratch / "link"));
  std::filesystem::remove(here.file("complete"));
  CHECK(!is_sharded(here.path()));
}

TEST_CASE("the index tells what there is", "[checkpoint][sharded]") {
  const three_ranks here;
  const auto from = here.open();
  CHECK(from.directory() == here.path());
  CHECK(from.world_size() == 3);
  CHECK(from.attempt() == 1);
  CHECK(from.info().iteration == 12);
  CHECK(from.state().at("number") == tree(3));
  const auto tensors = from.tensors();
  REQUIRE(tensors.size() == 1);
  CHECK(tensors[0].path == "models.main");
  CHECK(tensors[0].dtype == scalar_type::uint8);
  CHECK(tensors[0].sizes == integers{100, 8});
  CHECK(tensors[0].byte_size() == 800);
  CHECK(tensors[0].count() == 9 + 9 + 9);
  CHECK(tensors[0].rank(9) == 1);
  CHECK(tensors[0].number(9) == 0);
  CHECK(std::ranges::equal(tensors[0].box(9).offsets, integers{33, 0}));
  CHECK(std::ranges::equal(tensors[0].box(9).sizes, integers{4, 8}));
  CHECK(from.bytes_read() == 0);
  verify(from);
}

TEST_CASE("any box can be read", "[checkpoint][sharded]") {
  const three_ranks here;
  const auto from = here.open();
  const auto tensor = from.tensors().at(0);
  const auto read = [&](const integers& offsets, const integers& sizes) {
    byte_vector to(static_cast<std::size_t>(*volume(sizes)));
    from.read(tensor, offsets, sizes, to);
    return to;
  };
  CHECK(read({0, 0}, {100, 8}) == here.content);
  std::mt19937 random(1);
  for (int i = 0; i < 200; ++i) {
    const auto number = [&](std::int64_t below) {
      return static_cast<std::int64_t>(random() % static_cast<unsigned>(below));
    };
    const integers offsets{number(101), number(9)};
    const integers sizes{number(101 - offsets[0]), number(9 - offsets[1])};
    CHECK(read(offsets, sizes) == box_of(here.content, tensor.sizes, offsets, sizes));
  }
}

TEST_CASE("only the pieces of which something is wanted are read", "[checkpoint][sharded]") {
  const three_ranks here;
  const auto from = here.open();
  const auto tensor = from.tensors().at(0);
  byte_vector to(2 * 8);
  from.read(tensor, integers{33, 0}, integers{2, 8}, to);
  CHECK(from.bytes_read() == 32);
  from.read(tensor, integers{36, 0}, integers{2, 8}, to);
  CHECK(from.bytes_read() == 32 + 64);
  from.read(tensor, integers{36, 0}, integers{0, 8}, {});
  CHECK(from.bytes_read() == 32 + 64);
  // Nobody wants anything of the other ranks' files.
  std::filesystem::remove(here.file("0"));
  std::filesystem::remove(here.file("2"));
  from.read(tensor, integers{50, 0}, integers{2, 8}, to);
  CHECK(to == box_of(here.content, tensor.sizes, {50, 0}, {2, 8}));
}

TEST_CASE("many are read at once, each piece for all who want it", "[checkpoint][sharded]") {
  const folder here;
  sharded_files files(4);
  const auto large = noise(3000 * 4096, 1);
  const auto small = noise(40 * 3, 2);
  files.write_all(here.path(),
                  {{"large", files.by_rows(3000, 4096, large, 9)}, {"small", files.by_rows(40, 3, small, 2)}});
  const auto from = here.open();
  const auto tensors = from.tensors();
  for (const int threads : {1, 4}) {
    const auto before = from.bytes_read();
    byte_vector whole(large.size());
    byte_vector part(2000 * 100);
    byte_vector other(small.size());
    const std::vector<wanted_box> wanted{{&tensors[0], {0, 0}, {3000, 4096}, whole},
                                         {&tensors[0], {500, 3}, {2000, 100}, part},
                                         {&tensors[1], {0, 0}, {40, 3}, other}};
    from.read(wanted, threads);
    CHECK(whole == large);
    CHECK(part == box_of(large, {3000, 4096}, {500, 3}, {2000, 100}));
    CHECK(other == small);
    CHECK(from.bytes_read() - before == large.size() + small.size());
  }
}

TEST_CASE("several threads may read", "[checkpoint][sharded]") {
  const three_ranks here;
  const auto from = here.open();
  const auto tensor = from.tensors().at(0);
  std::vector<byte_vector> results(4, byte_vector(800));
  {
    std::vector<std::jthread> threads;
    for (auto& to : results) threads.emplace_back([&] { from.read(tensor, integers{0, 0}, integers{100, 8}, to); });
  }
  for (const auto& to : results) CHECK(to == here.content);
}

TEST_CASE("tensors without dimensions and without elements have their place", "[checkpoint][sharded]") {
  const folder here;
  sharded_files files(2);
  const auto scalar = files.tensor({}, {files.piece(1, {}, {}, to_bytes("x"))});
  files.write_all(here.path(), {{"scalar", scalar}, {"empty", files.tensor({0, 5}, {})}});
  const auto from = here.open();
  const auto tensors = from.tensors();
  byte_vector to(1);
  from.read(tensors.at(0), {}, {}, to);
  CHECK(to == to_bytes("x"));
  from.read(tensors.at(1), integers{0, 0}, integers{0, 5}, {});
  CHECK(from.bytes_read() == 1);
  verify(from);
}

TEST_CASE("what is asked for must fit the tensor and the memory", "[checkpoint][sharded]") {
  const three_ranks here;
  const auto from = here.open();
  const auto tensor = from.tensors().at(0);
  byte_vector to(800);
  CHECK_THROWS_AS(from.read(tensor, integers{1, 0}, integers{100, 8}, to), state_error);
  CHECK_THROWS_AS(from.read(tensor, integers{0}, integers{100}, to), state_error);
  CHECK_THROWS_AS(from.read(tensor, integers{0, 0}, integers{99, 8}, to), state_error);
}

TEST_CASE("damage in a piece that is needed is found, and only there", "[checkpoint][sharded]") {
  const three_ranks here;
  const auto place = place_of(here.open().rank_file(1), 2);
  flip(here.file("1"), place + 31, 3);
  const auto from = here.open();
  const auto tensor = from.tensors().at(0);
  byte_vector to(4 * 8);
  from.read(tensor, integers{33, 0}, integers{4, 8}, to);
  CHECK(to == box_of(here.content, tensor.sizes, {33, 0}, {4, 8}));
  // The row whose bit is flipped is not asked for, but it is in the same piece.
  const auto message = refusal_of<format_error>([&] {
    from.read(tensor, integers{41, 0}, integers{1, 8}, std::span(to).first(8));
  });
  CHECK(contains(message, here.file("1").string()));
  CHECK(contains(message, "data/2"));
  CHECK(contains(message, "'models.main'"));
  CHECK(contains(message, "wrong checksum"));
  CHECK(contains(refusal_of<format_error>([&] { verify(from); }), "data/2"));
}

TEST_CASE("a missing file of a rank is named", "[checkpoint][sharded]") {
  const three_ranks here;
  std::filesystem::remove(here.file("2"));
  const auto from = here.open();
  byte_vector to(800);
  const auto message = refusal_of<io_error>([&] {
    from.read(from.tensors().at(0), integers{0, 0}, integers{100, 8}, to);
  });
  CHECK(contains(message, here.file("2").string()));
  CHECK(contains(message, "lacks the part of this rank"));
  CHECK_THROWS_AS(verify(from), io_error);
}

TEST_CASE("files of several snapshots are not mixed", "[checkpoint][sharded]") {
  SECTION("another attempt") {
    three_ranks here;
    sharded_files others(3, 2);
    static_cast<void>(others.by_rows(100, 8, here.content, 4));
    others.write_part(here.path(), 1);
    const auto message = here.problem_when_all_is_read();
    CHECK(contains(message, here.file("1").string()));
    CHECK(contains(message, "the id 0000000000000002"));
    CHECK(contains(message, "the id 0000000000000001"));
  }
  SECTION("another rank") {
    const three_ranks here;
    std::filesystem::copy_file(here.file("0"), here.file("1"), std::filesystem::copy_options::overwrite_existing);
    CHECK(contains(here.problem_when_all_is_read(), "rank 0 of 3"));
  }
  SECTION("another number of ranks") {
    const three_ranks here;
    sharded_files(4).write_part(here.path(), 1);
    CHECK(contains(here.problem_when_all_is_read(), "rank 1 of 4"));
  }
  SECTION("no part at all") {
    const three_ranks here;
    write_to_file(here.file("1").string(), write_to_memory(encoder(tree::dict{{"pieces", tree::list{}}}, {}, {})));
    CHECK(contains(here.problem_when_all_is_read(), "is no part of a sharded snapshot"));
  }
}

TEST_CASE("every piece is what the table says", "[checkpoint][sharded]") {
  three_ranks here;
  sharded_files others(3);
  SECTION("fewer pieces") {
    others.write_part(here.path(), 1);
    CHECK(contains(here.problem_when_all_is_read(), "has 0 pieces"));
  }
  SECTION("other sizes") {
    static_cast<void>(others.by_rows(100, 8, here.content, 5));
    others.write_part(here.path(), 1);
    const auto message = here.problem_when_all_is_read();
    CHECK(contains(message, "uint8 [5, 8]"));
    CHECK(contains(message, "uint8 [4, 8]"));
  }
  SECTION("another dtype") {
    auto all = here.files;
    all.write_complete(here.path(), {{"m", all.tensor({4, 8}, {{0, 0, 0, 0, 4, 8}}, "int8")}});
    CHECK(contains(here.problem_when_all_is_read(), "int8 [4, 8]"));
  }
  CHECK(contains(refusal_of<format_error>([&] { here.open().require_all(); }), here.path().string()));
}

TEST_CASE("tables that do not make up their tensors are refused", "[checkpoint][sharded]") {
  const folder here;
  const auto problem = [&](const integers& sizes, const std::vector<integers>& rows,
                           const std::string& dtype = "uint8") {
    sharded_files files(2);
    files.write_all(here.path(), {{"a", tree::dict{{"b", files.tensor(sizes, rows, dtype)}}}});
    const auto message = here.problem();
    CHECK((message.empty() || (contains(message, here.file("complete").string()) && contains(message, "'a.b'"))));
    return message;
  };
  CHECK(problem({4, 2}, {{0, 0, 0, 0, 2, 2}, {1, 0, 2, 0, 2, 2}}).empty());
  CHECK(contains(problem({4, 2}, {{0, 0, 0, 0, 2, 2}, {1, 0, 3, 0, 1, 2}}), "6 of its 8 elements"));
  CHECK(contains(problem({4, 2}, {{0, 0, 0, 0, 3, 2}, {1, 0, 2, 0, 2, 2}}),
                 "piece 0 of rank 0, [3, 2] from [0, 0] on, overlaps piece 0 of rank 1, [2, 2] from [2, 0] on"));
  CHECK(contains(problem({4, 2}, {{0, 0, 0, 0, 2, 2}, {1, 0, 2, 0, 2, 3}}), "leads outside of [4, 2]"));
  CHECK(contains(problem({4, 2}, {{0, 0, 0, 0, 2, 2}, {1, 0, 2, -1, 2, 2}}), "leads outside of [4, 2]"));
  CHECK(contains(problem({4, 2}, {{0, 0, 0, 0, 2, 2}, {2, 0, 2, 0, 2, 2}}), "of rank 2, but there are 2 ranks"));
  CHECK(contains(problem({4, 2}, {{-1, 0, 0, 0, 4, 2}}), "of rank -1"));
  CHECK(contains(problem({4, 2}, {{0, -1, 0, 0, 4, 2}}), "piece -1"));
  CHECK(contains(problem({4, -2}, {}), "[4, -2] are impossible"));
  CHECK(contains(problem({std::int64_t{1} << 62, 2}, {}), "are impossible"));
  CHECK(contains(problem({std::int64_t{1} << 61}, {}, "float32"), "are impossible"));
  CHECK(contains(problem({4, 2}, {{0, 0, 0, 0, 4, 2}}, "float7"), "'float7'"));
}

TEST_CASE("an index that lacks something is refused", "[checkpoint][sharded]") {
  const folder here;
  sharded_files files(1);
  const auto sound = files.tensor({4}, {files.piece(0, {0}, {4}, noise(4))});
  const auto problem = [&](const tree& leaf) {
    files.write_all(here.path(), {{"leaf", leaf}});
    return here.problem();
  };
  CHECK(problem(sound).empty());
  for (const auto* const key : {"sizes", "dtype", "pieces"}) {
    auto leaf = sound;
    auto& about = leaf.as<tree::dict>().find(sharded_key)->as<tree::dict>();
    about[key] = 1.5;
    CHECK(contains(problem(leaf), "'leaf'"));
  }
  auto leaf = sound;
  auto& table = leaf.as<tree::dict>().find(sharded_key)->as<tree::dict>()["pieces"].as<tensor_descriptor>();
  table.sizes = {4};
  table.strides = {1};
  CHECK(contains(problem(leaf), "instead of int64 [n, 4]"));
}

TEST_CASE("an index that is truncated or damaged anywhere is refused", "[checkpoint][sharded]") {
  const three_ranks here;
  const auto complete = here.file("complete");
  const auto sound = contents_of(complete);
  const auto is_refused = [&] {
    const auto message = refusal_of<format_error>([&] { static_cast<void>(here.open()); });
    return contains(message, complete.string());
  };
  CHECK(!is_refused());
  for (std::size_t size = 0; size < sound.size(); size += 37) {
    write_to_file(complete.string(), std::span(sound).first(size));
    CHECK(is_refused());
  }
  for (std::size_t at = 0; at < sound.size(); at += 13) {
    auto bytes = sound;
    bytes[at] ^= std::byte{16};
    write_to_file(complete.string(), bytes);
    CHECK(is_refused());
  }
  write_to_file(complete.string(), write_to_memory(encoder(tree::dict{{"number", 3}}, {}, {})));
  CHECK(is_refused());
}

TEST_CASE("no flipped bit in any file is overlooked", "[checkpoint][sharded]") {
  const three_ranks here;
  const auto verdict = [&] {
    try {
      verify(here.open());
      return true;
    } catch (const error&) {
      return false;
    }
  };
  CHECK(verdict());
  for (const auto* const name : {"0", "2", "complete"}) {
    const auto sound = contents_of(here.file(name));
    for (std::size_t at = 0; at < sound.size(); at += 101) {
      flip(here.file(name), at, static_cast<unsigned>(at % 8));
      CHECK(!verdict());
      write_to_file(here.file(name).string(), sound);
    }
  }
  CHECK(verdict());
}

}  // namespace checkpoint_sharded_test

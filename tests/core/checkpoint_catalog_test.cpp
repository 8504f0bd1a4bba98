#include "rondo/checkpoint/catalog.hpp"

#include <sys/stat.h>

#include <algorithm>

#include "rondo/checkpoint/encoder.hpp"
#include "rondo/error.hpp"
#include "support/catch.hpp"
#include "support/checkpoint.hpp"
#include "support/messages.hpp"
#include "support/sharded_files.hpp"
#include "support/temporary_directory.hpp"

namespace checkpoint_catalog_test {

using namespace rondo;
using namespace rondo::checkpoint;
using namespace rondo::testing;

namespace {

using names = std::vector<std::string>;

byte_vector snapshot_of(std::int64_t iteration, bool mid_iteration = false) {
  static const auto data = noise(16);
  return write_to_memory(
      encoder(vector_of(scalar_type::float32, "0", 4), {{"0", data}}, {iteration, 0, mid_iteration, {}, 1, "mine"}));
}

// What torch.save writes has no manifest.
byte_vector foreign_checkpoint() {
  auto bytes = snapshot_of(5);
  std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  for (std::size_t at = text.find("rondo.json"); at != std::string::npos; at = text.find("rondo.json"))
    text.replace(at, 10, "other.json");
  return to_bytes(text);
}

struct folder {
  temporary_directory scratch;
  void put(const std::string& name, const byte_vector& bytes) const { write_to_file((scratch / name).string(), bytes); }
  [[nodiscard]] catalog look(catalog::name_filter filter = {}) const { return catalog(scratch.path(), filter); }
};

template <class Items>
names names_of(const Items& items) {
  names all;
  for (const auto& item : items) all.push_back(item.path.filename().string());
  return all;
}

}  // namespace

TEST_CASE("snapshots are ordered by the iteration inside them", "[checkpoint][catalog]") {
  const folder here;
  here.put("z", snapshot_of(7));
  here.put("snapshot_100", snapshot_of(9));
  here.put("a", snapshot_of(1000));
  here.put("twin 1", snapshot_of(8));
  here.put("twin 2", snapshot_of(8));
  const auto found = here.look();
  CHECK(names_of(found.snapshots()) == names{"a", "snapshot_100", "twin 2", "twin 1", "z"});
  CHECK(found.snapshots()[0].info.iteration == 1000);
  CHECK(found.snapshots()[0].info.made_by == "mine");
  CHECK(found.snapshots()[0].size == snapshot_of(1000).size());
  CHECK(found.rejected().empty());
}

TEST_CASE("snapshots taken inside an iteration are kept apart", "[checkpoint][catalog]") {
  const folder here;
  here.put("good", snapshot_of(7));
  here.put("after an error", snapshot_of(8, true));
  const auto found = here.look();
  CHECK(names_of(found.snapshots()) == names{"good"});
  CHECK(names_of(found.interrupted()) == names{"after an error"});
}

TEST_CASE("foreign files are passed over", "[checkpoint][catalog]") {
  const folder here;
  here.put("log", to_bytes("{}"));
  here.put("empty", {});
  here.put("torch.pt", foreign_checkpoint());
  here.put(".snapshot.tmp-1-0000000000000000", snapshot_of(7));
  std::filesystem::create_directory(here.scratch / "folder");
  write_to_file((here.scratch / "folder/inside").string(), snapshot_of(7));
  std::filesystem::create_symlink(here.scratch / "folder/inside", here.scratch / "link");
  REQUIRE(::mkfifo((here.scratch / "fifo").c_str(), 0600) == 0);
  const auto found = here.look();
  CHECK(found.snapshots().empty());
  CHECK(found.rejected().empty());
}

TEST_CASE("damaged snapshots are rejected, wherever they are cut", "[checkpoint][catalog]") {
  const folder here;
  auto bytes = snapshot_of(7);
  here.put("without end", byte_vector(bytes.begin(), bytes.end() - 100));
  std::fill_n(bytes.begin(), 100, std::byte{0});
  here.put("without beginning", bytes);
  const auto found = here.look();
  CHECK(found.snapshots().empty());
  REQUIRE(names_of(found.rejected()) == names{"without beginning", "without end"});
  CHECK(contains(found.rejected()[0].reason, "without beginning"));
  CHECK(contains(found.rejected()[1].reason, "truncated"));
}

TEST_CASE("with a filter, names decide", "[checkpoint][catalog]") {
  const folder here;
  here.put("snapshot_1", snapshot_of(1));
  here.put("other", snapshot_of(2));
  here.put("snapshot_zeros", byte_vector(4096));
  here.put("snapshot_foreign", foreign_checkpoint());
  std::filesystem::create_symlink(here.scratch / "snapshot_1", here.scratch / "snapshot_link");
  std::filesystem::create_directory(here.scratch / "snapshot_folder");
  const auto found = here.look([](std::string_view name) { return name.starts_with("snapshot_"); });
  CHECK(names_of(found.snapshots()) == names{"snapshot_1"});
  REQUIRE(names_of(found.rejected()) ==
          names{"snapshot_folder", "snapshot_foreign", "snapshot_link", "snapshot_zeros"});
  CHECK(contains(found.rejected()[0].reason, "no regular file"));
  CHECK(contains(found.rejected()[1].reason, "no manifest"));
  CHECK(contains(found.rejected()[2].reason, "symbolic link"));
  CHECK(contains(found.rejected()[3].reason, "does not end"));
}

TEST_CASE("damage of the data is found on demand", "[checkpoint][catalog]") {
  const folder here;
  auto bytes = snapshot_of(7);
  here.put("good", bytes);
  const auto data = std::ranges::search(bytes, noise(16));
  REQUIRE_FALSE(data.empty());
  data.front() ^= std::byte{1};
  here.put("bad", bytes);
  const auto found = here.look();
  REQUIRE(names_of(found.snapshots()) == names{"good", "bad"});
  CHECK_FALSE(catalog::problem_of(found.snapshots()[0]).has_value());
  const auto problem = catalog::problem_of(found.snapshots()[1]);
  REQUIRE(problem.has_value());
  CHECK(contains(*problem, "bad"));
  CHECK(contains(*problem, "damaged"));
  std::filesystem::remove(here.scratch / "good");
  CHECK(contains(catalog::problem_of(found.snapshots()[0]).value_or(""), "No such file"));
}

TEST_CASE("a refreshed catalog knows what has changed", "[checkpoint][catalog]") {
  const folder here;
  here.put("one", snapshot_of(1));
  here.put("two", snapshot_of(2));
  auto found = here.look();
  std::filesystem::remove(here.scratch / "two");
  here.put("new", snapshot_of(30));
  std::filesystem::rename(here.scratch / "new", here.scratch / "one");
  here.put("three", snapshot_of(3));
  found.refresh();
  CHECK(names_of(found.snapshots()) == names{"one", "three"});
  CHECK(found.snapshots()[0].info.iteration == 30);
}

TEST_CASE("only the file that was read is removed", "[checkpoint][catalog]") {
  const folder here;
  here.put("old", snapshot_of(1));
  here.put("replaced", snapshot_of(2));
  here.put("gone", snapshot_of(3));
  auto found = here.look();
  here.put("new", snapshot_of(30));
  std::filesystem::rename(here.scratch / "new", here.scratch / "replaced");
  std::filesystem::remove(here.scratch / "gone");
  const auto& all = found.snapshots();
  REQUIRE(names_of(all) == names{"gone", "replaced", "old"});
  CHECK_FALSE(found.remove(all[0]));
  CHECK_FALSE(found.remove(all[1]));
  CHECK(found.remove(all[2]));
  CHECK(std::filesystem::exists(here.scratch / "replaced"));
  CHECK_FALSE(std::filesystem::exists(here.scratch / "old"));
  CHECK_FALSE(found.remove(all[2]));
}

TEST_CASE("what is no directory cannot be listed", "[checkpoint][catalog]") {
  const folder here;
  here.put("file", snapshot_of(1));
  CHECK(contains(refusal_of<io_error>([&] { catalog found(here.scratch / "missing"); }), "missing"));
  CHECK(contains(refusal_of<io_error>([&] { catalog found(here.scratch / "file"); }), "file"));
}

TEST_CASE("complete sharded snapshots are among the others", "[checkpoint][catalog][sharded]") {
  const folder here;
  const auto put = [&](const std::string& name, std::int64_t iteration, bool mid_iteration = false) {
    sharded_files files(2);
    const auto content = noise(40);
    files.write_all(here.scratch / name, {{"m", files.by_rows(10, 4, content, 2)}},
                    {iteration, 0, mid_iteration, {}, 1, "mine"});
  };
  put("sharded", 8);
  put("broken off", 9, true);
  put("unfinished", 10);
  std::filesystem::remove(here.scratch / "unfinished" / "complete");
  std::filesystem::create_directory(here.scratch / "folder");
  here.put("file", snapshot_of(7));
  auto found = here.look();
  CHECK(names_of(found.snapshots()) == names{"sharded", "file"});
  CHECK(names_of(found.interrupted()) == names{"broken off"});
  CHECK(found.rejected().empty());
  std::uint64_t size = 0;
  for (const auto* const name : {"0", "1", "complete"})
    size += std::filesystem::file_size(here.scratch / "sharded" / name);
  CHECK(found.snapshots()[0].size == size);
  CHECK(!catalog::problem_of(found.snapshots()[0]));
  CHECK(names_of(here.look([](auto name) { return name == "unfinished"; }).rejected()) == names{"unfinished"});

  // One that has been written anew meanwhile stays.
  const auto before = found.snapshots()[0];
  std::filesystem::remove_all(before.path);
  put("sharded", 11);
  CHECK(!found.remove(before));
  CHECK(std::filesystem::exists(before.path / "complete"));
  found.refresh();
  std::filesystem::remove(before.path / "1");
  CHECK(contains(catalog::problem_of(found.snapshots()[0]).value_or(""), (before.path / "1").string()));
  CHECK(found.remove(found.snapshots()[0]));
  CHECK(!std::filesystem::exists(before.path));
  CHECK(!found.remove(found.snapshots()[0]));
}

}  // namespace checkpoint_catalog_test

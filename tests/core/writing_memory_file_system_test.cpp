#include "rondo/writing/memory_file_system.hpp"

#include <cerrno>
#include <set>

#include "support/writing.hpp"

namespace writing_memory_file_system_test {

using namespace rondo;
using namespace rondo::testing;
using writing::file_kind;
using writing::memory_file_system;
using writing::operation;

namespace {

// The contents that a file may have after a crash; "-" where it is not there.
std::set<std::string> outcomes(const memory_file_system& files, const writing::path& file) {
  std::set<std::string> found;
  files.for_each_crash_state([&](memory_file_system& state) {
    const auto content = state.read(file);
    std::string text = content ? "" : "-";
    for (const auto byte : content.value_or(bytes{})) text += byte == std::byte{0} ? '0' : static_cast<char>(byte);
    found.insert(text);
  });
  return found;
}

bytes text(const std::string& from) {
  const auto* begin = reinterpret_cast<const std::byte*>(from.data());
  return {begin, begin + from.size()};
}

}  // namespace

TEST_CASE("memory files behave like files", "[writing][memory]") {
  memory_file_system files;
  CHECK(files.create_directory("/d"));
  CHECK_FALSE(files.create_directory("/d"));
  const auto file = files.create("/d/a", 3);
  file->append(text("abc"));
  file->close();
  CHECK_THROWS_AS(file->append(text("d")), io_error);
  CHECK(files.read("/d/a") == text("abc"));
  CHECK(files.sync_file("/d/a") == 3);
  CHECK(failure_of([&] { (void)files.create("/d/a", 0); }).code() == std::errc::file_exists);
  CHECK(failure_of([&] { (void)files.create("/e/a", 0); }).code() == std::errc::no_such_file_or_directory);
  files.place("/d/old", file_kind::regular, text("old"));
  files.rename("/d/a", "/d/old");
  CHECK(files.read("/d/old") == text("abc"));
  CHECK_FALSE(files.read("/d/a").has_value());
  CHECK(files.list("/d").size() == 1);
  CHECK(files.remove("/d/old"));
  CHECK_FALSE(files.remove("/d/old"));
  files.place("/d/link", file_kind::symlink);
  CHECK(files.kind("/d/link") == file_kind::symlink);
  CHECK(failure_of([&] { files.rename("/d/link", "/link"); }).code() == std::errc::cross_device_link);
}

TEST_CASE("faults hit the chosen operation once", "[writing][memory]") {
  memory_file_system files;
  files.fail(operation::append, 2, EIO);
  const auto file = files.create("/a", 0);
  file->append(text("a"));
  const auto error = failure_of([&] { file->append(text("b")); });
  CHECK(error.code() == std::errc::io_error);
  CHECK(error.path() == "/a");
  CHECK_THROWS_AS(file->sync(), io_error);
  CHECK(files.count(operation::append) == 2);
  CHECK(files.count(operation::sync) == 0);
  files.create("/b", 0)->append(text("c"));
  CHECK(files.read("/b") == text("c"));
}

TEST_CASE("after a crash only what was synced is certain", "[writing][memory][crash]") {
  memory_file_system files;
  const auto file = files.create("/a", 0);
  file->append(text("ab"));
  CHECK(outcomes(files, "/a") == std::set<std::string>{"-", "", "a", "00", "ab"});
  file->sync();
  CHECK(outcomes(files, "/a") == std::set<std::string>{"-", "ab"});
  files.sync_directory("/");
  CHECK(outcomes(files, "/a") == std::set<std::string>{"ab"});
  file->append(text("cd"));
  CHECK(outcomes(files, "/a") == std::set<std::string>{"ab", "abc", "ab00", "abcd"});
  file->sync();
  files.remove("/a");
  CHECK(outcomes(files, "/a") == std::set<std::string>{"-", "abcd"});
}

TEST_CASE("a renaming happens whole or not at all", "[writing][memory][crash]") {
  memory_file_system files;
  files.place("/new", file_kind::regular, text("new"));
  files.place("/old", file_kind::regular, text("old"));
  files.rename("/new", "/old");
  CHECK(outcomes(files, "/old") == std::set<std::string>{"old", "new"});
  files.for_each_crash_state(
      [&](memory_file_system& state) { CHECK(state.read("/new").has_value() == (state.read("/old") == text("old"))); });
}

TEST_CASE("too many crash states are sampled, with both extremes", "[writing][memory][crash]") {
  memory_file_system files;
  for (int number = 0; number < 20; ++number) files.create("/" + std::to_string(number), 0);
  std::set<std::size_t> sizes;
  const auto visited =
      files.for_each_crash_state([&](memory_file_system& state) { sizes.insert(state.list("/").size()); }, 100, 1);
  CHECK(visited == 100);
  CHECK(*sizes.begin() == 0);
  CHECK(*sizes.rbegin() == 20);
}

}  // namespace writing_memory_file_system_test

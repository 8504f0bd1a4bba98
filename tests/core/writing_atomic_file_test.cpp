#include "rondo/writing/atomic_file.hpp"

#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <filesystem>
#include <string>

#include "rondo/writing/memory_file_system.hpp"
#include "rondo/writing/temporary_name.hpp"
#include "support/temporary_directory.hpp"
#include "support/writing.hpp"

namespace writing_atomic_file_test {

using namespace rondo;
using namespace rondo::testing;
using writing::file_kind;
using writing::memory_file_system;
using writing::operation;

namespace {

class user_error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

std::size_t count_names(memory_file_system& files, const writing::path& directory) {
  return files.list(directory).size();
}

}  // namespace

TEST_CASE("an atomic write makes and replaces a file", "[writing][atomic]") {
  const temporary_directory scratch;
  auto& files = *writing::posix_file_system();
  const auto target = scratch.path() / "new" / "directory" / "target";
  for (const std::size_t size : {0, 1, 4096, 100'000, 9'000'000}) {
    const auto content = pattern(size, size);
    const auto receipt = save(files, target, content);
    CHECK(receipt.target == target);
    CHECK(receipt.bytes == size);
    CHECK(receipt.write_seconds >= 0);
    CHECK(receipt.sync_seconds >= 0);
    CHECK(receipt.commit_seconds > 0);
    CHECK(read_file(target) == content);
    CHECK(names_in(target.parent_path()) == std::vector<std::string>{"target"});
  }
}

TEST_CASE("while a file is produced the old one is in place and the new one beside it", "[writing][atomic]") {
  memory_file_system files;
  const auto old = pattern(10, 1);
  const auto fresh = pattern(20, 2);
  files.place("/target", file_kind::regular, old);
  writing::write_atomically(files, "/target", fresh.size(), [&](const writing::append_function& append) {
    append(fresh);
    CHECK(files.read("/target") == old);
    CHECK(count_names(files, "/") == 2);
    CHECK(writing::remove_stale_temporaries(files, "/").empty());
  });
  CHECK(files.read("/target") == fresh);
  CHECK(count_names(files, "/") == 1);
}

TEST_CASE("only regular files are replaced", "[writing][atomic]") {
  const temporary_directory scratch;
  auto& files = *writing::posix_file_system();
  const auto at = [&](const char* name) { return scratch.path() / name; };
  write_text(at("victim"), "precious");
  std::filesystem::create_symlink("victim", at("link"));
  std::filesystem::create_symlink("nowhere", at("dangling"));
  std::filesystem::create_directory(at("directory"));
  REQUIRE(::mkfifo(at("fifo").c_str(), 0600) == 0);
  const auto before = names_in(scratch.path());
  for (const auto* name : {"link", "dangling", "directory", "fifo"}) {
    INFO(name);
    const auto error = failure_of([&] { save(files, at(name), pattern(10, 1)); });
    CHECK(error.path() == at(name));
    CHECK_THROWS_AS(
        writing::write_atomically_by_path(files, at(name), [](const writing::path& file) { write_text(file, "x"); }),
        io_error);
  }
  CHECK(failure_of([&] { save(files, scratch.path() / "", pattern(1, 1)); }).code() == std::errc::invalid_argument);
  CHECK(names_in(scratch.path()) == before);
  CHECK(std::filesystem::file_size(at("victim")) == 8);
}

TEST_CASE("a wrong size is an error and changes nothing", "[writing][atomic]") {
  memory_file_system files;
  const auto old = pattern(10, 1);
  files.place("/target", file_kind::regular, old);
  const auto content = pattern(10, 2);
  for (const std::size_t announced : {0, 9, 11}) {
    const auto error =
        failure_of([&] { writing::write_atomically(files, "/target", announced, in_pieces(content, 3)); });
    CHECK(mentions(error, fmt::format("{} bytes were announced", announced)));
    CHECK(files.read("/target") == old);
    CHECK(count_names(files, "/") == 1);
  }
}

TEST_CASE("stable and other bytes reach the file in order, and count alike", "[writing][atomic]") {
  const temporary_directory scratch;
  const auto posix = writing::posix_file_system();
  memory_file_system memory;
  const auto content = pattern((20 << 20) + 7, 1);
  const auto half = content.size() / 2;
  const writing::producer produce = [&](const writing::append_function& append) {
    append(std::span(content).first(half));
    append.stable(std::span(content).subspan(half));
  };
  writing::write_atomically(*posix, scratch / "file", content.size(), produce);
  CHECK(read_file(scratch / "file") == content);
  writing::write_atomically(memory, "/file", content.size(), produce);
  CHECK(memory.read("/file") == content);
  CHECK_THROWS_AS(writing::write_atomically(memory, "/file", content.size() - 1, produce), io_error);
  // A function of the caller's own makes no difference.
  bytes gathered;
  produce([&](std::span<const std::byte> part) { gathered.insert(gathered.end(), part.begin(), part.end()); });
  CHECK(gathered == content);
}

TEST_CASE("what the producer throws passes, and a producer cannot hide a failed append", "[writing][atomic]") {
  memory_file_system files;
  CHECK_THROWS_AS(writing::write_atomically(files, "/target", 1, [](const auto&) { throw user_error("mine"); }),
                  user_error);
  CHECK(count_names(files, "/") == 0);
  files.fail(operation::append, 1, ENOSPC);
  const auto error = failure_of([&] {
    writing::write_atomically(files, "/target", 1, [](const writing::append_function& append) {
      try {
        append(bytes(1));
      } catch (const io_error&) {
      }
    });
  });
  CHECK(error.code() == std::errc::no_space_on_device);
  CHECK(count_names(files, "/") == 0);
}

TEST_CASE("every operation may fail: typed error, old file intact, nothing left behind", "[writing][atomic][faults]") {
  const auto old = pattern(10'000, 1);
  const auto fresh = pattern(20'000, 2);
  std::size_t faults = 0;
  for (const auto kind : {operation::create, operation::append, operation::sync, operation::close, operation::rename,
                          operation::inspect, operation::sync_directory}) {
    for (const int code : {ENOSPC, EIO}) {
      for (std::size_t nth = 1;; ++nth) {
        memory_file_system files;
        files.create_directory("/d");
        files.place("/d/target", file_kind::regular, old);
        files.fail(kind, nth, code);
        try {
          save(files, "/d/target", fresh);
          REQUIRE(files.count(kind) < nth);
          break;
        } catch (const io_error& error) {
          ++faults;
          INFO("operation " << static_cast<int>(kind) << ", number " << nth << ": " << error.what());
          CHECK(error.code().value() == code);
          CHECK(error.path().string().rfind("/d", 0) == 0);
          const bool in_place = kind == operation::sync_directory;
          CHECK(files.read("/d/target") == (in_place ? fresh : old));
          CHECK(mentions(error, "might not survive a power loss") == in_place);
          CHECK(count_names(files, "/d") == 1);
        }
      }
    }
  }
  CHECK(faults == 2 * (1 + 5 + 1 + 1 + 1 + 2 + 1));
}

TEST_CASE("the first error is the one that is reported", "[writing][atomic][faults]") {
  memory_file_system files;
  files.fail(operation::sync, 1, EIO);
  files.fail(operation::remove, 1, EACCES);
  CHECK(failure_of([&] { save(files, "/target", pattern(10, 1)); }).code() == std::errc::io_error);
  REQUIRE(count_names(files, "/") == 1);
  CHECK(writing::remove_stale_temporaries(files, "/").size() == 1);
  CHECK(count_names(files, "/") == 0);
}

TEST_CASE("a serializer that writes by itself", "[writing][atomic][by_path]") {
  const temporary_directory scratch;
  auto& files = *writing::posix_file_system();
  const auto target = scratch.path() / "target";
  write_text(target, "old");
  SECTION("its file is committed") {
    const auto receipt = writing::write_atomically_by_path(files, target, [&](const writing::path& file) {
      CHECK(file.parent_path() == scratch.path());
      CHECK_FALSE(std::filesystem::exists(file));
      write_text(file, "fresh");
    });
    CHECK(receipt.bytes == 5);
    CHECK(std::filesystem::file_size(target) == 5);
  }
  SECTION("it wrote nothing") {
    const auto error = failure_of([&] { writing::write_atomically_by_path(files, target, [](const auto&) {}); });
    CHECK(mentions(error, "wrote no file"));
  }
  SECTION("it left a link") {
    CHECK_THROWS_AS(writing::write_atomically_by_path(
                        files, target, [](const auto& file) { std::filesystem::create_symlink("elsewhere", file); }),
                    io_error);
  }
  SECTION("it throws") {
    CHECK_THROWS_AS(writing::write_atomically_by_path(files, target,
                                                      [](const auto& file) {
                                                        write_text(file, "half");
                                                        throw user_error("mine");
                                                      }),
                    user_error);
  }
  CHECK(names_in(scratch.path()) == std::vector<std::string>{"target"});
}

namespace {

/// The same name, as a process of another host would make it.
std::string elsewhere(std::string name) {
  auto& digit = name[name.size() - 16];
  digit = digit == '0' ? '1' : '0';
  return name;
}

/// Ended, and not waited for.
class zombie {
 public:
  zombie() : process_(::fork()) {
    if (process_ == 0) ::_exit(0);
    siginfo_t about;
    ::waitid(P_PID, static_cast<id_t>(process_), &about, WEXITED | WNOWAIT);
  }
  zombie(const zombie&) = delete;
  zombie& operator=(const zombie&) = delete;
  ~zombie() { ::waitpid(process_, nullptr, 0); }
  [[nodiscard]] pid_t id() const { return process_; }

 private:
  pid_t process_;
};

void make_old(const std::filesystem::path& file) {
  std::filesystem::last_write_time(file, std::filesystem::file_time_type::clock::now() - std::chrono::hours(1));
}

}  // namespace

TEST_CASE("a zombie writes nothing any more, and a number that was given again is another process",
          "[writing][atomic][stale]") {
  const temporary_directory scratch;
  auto& files = *writing::posix_file_system();
  const zombie ended;
  const auto of_zombie = writing::temporary_name("x", ended.id());
  auto of_another = writing::temporary_name("y", ::getppid());
  auto& digit = of_another[of_another.size() - 6];  // of when it started
  digit = digit == '0' ? '1' : '0';
  write_text(scratch.path() / of_zombie, "");
  write_text(scratch.path() / of_another, "");
  CHECK(writing::live_temporaries(files, scratch.path()).empty());
  CHECK(writing::remove_stale_temporaries(files, scratch.path()).size() == 2);
}

TEST_CASE("what another host is writing stays: while it is locked, and while it changes", "[writing][atomic][stale]") {
  const temporary_directory scratch;
  auto& files = *writing::posix_file_system();
  const auto name = elsewhere(writing::temporary_name("x", ::getppid()));
  const auto file = scratch.path() / name;
  auto written = files.create(file, 0);
  make_old(file);
  CHECK(writing::remove_stale_temporaries(files, scratch.path()).empty());
  REQUIRE(writing::live_temporaries(files, scratch.path()).size() == 1);
  CHECK(writing::live_temporaries(files, scratch.path()).front().file == file);

  written->close();
  CHECK(writing::live_temporaries(files, scratch.path()).empty());
  CHECK(writing::remove_stale_temporaries(files, scratch.path()).size() == 1);

  write_text(file, "changed just now");
  CHECK(writing::remove_stale_temporaries(files, scratch.path()).empty());
  CHECK(writing::live_temporaries(files, scratch.path()).empty());  // it is not waited for
  make_old(file);
  CHECK(writing::remove_stale_temporaries(files, scratch.path()).size() == 1);
}

TEST_CASE("names of temporaries tell their owners", "[writing][atomic][stale]") {
  using state = writing::temporary_owner::state;
  const auto mine = writing::temporary_name("dir/snapshot", ::getpid());
  CHECK(mine.starts_with(fmt::format(".snapshot.tmp-{}-", ::getpid())));
  CHECK(mine != writing::temporary_name("dir/snapshot", ::getpid()));
  CHECK(writing::owner_of(mine)->what == state::here);
  CHECK(writing::owner_of(writing::temporary_name("x", ::getppid()))->what == state::running);
  CHECK(writing::owner_of(writing::temporary_name("x", dead_process()))->what == state::gone);
  CHECK(writing::owner_of(elsewhere(mine))->what == state::elsewhere);
  CHECK_FALSE(writing::owner_of("snapshot").has_value());
}

TEST_CASE("only temporaries of dead processes are removed", "[writing][atomic][stale]") {
  const temporary_directory scratch;
  auto& files = *writing::posix_file_system();
  const auto temporary = [](const std::string& name, pid_t process) { return writing::temporary_name(name, process); };
  const auto dead = dead_process();
  const std::vector<std::string> stale = {temporary("snapshot_iter_7", dead), temporary("a.tmp-b", dead),
                                          temporary("ours", ::getpid())};
  std::vector<std::string> kept = {
      temporary("alive", ::getppid()),
      temporary("", dead),
      temporary("x", dead).substr(1),
      temporary("x", dead) + "0",
      temporary("x", dead) + ".bak",
      fmt::format(".x.tmp-{}-0123456789ABCDEF", dead),
      fmt::format(".x.tmp--{}-0123456789abcdef", dead),
      ".x.tmp-0-0123456789abcdef",
      ".x.tmp-99999999999999999999-0123456789abcdef",
      ".x.tmp-",
      elsewhere(temporary("of_another_host", dead)),
      "tmp_snapshot_iter_7",
      "snapshot_iter_7",
      ".rondo.lock",
  };
  for (const auto& name : stale) write_text(scratch.path() / name, "stale");
  for (const auto& name : kept) write_text(scratch.path() / name, "kept");
  kept.push_back(temporary("directory", dead));
  std::filesystem::create_directory(scratch.path() / kept.back());
  kept.push_back(temporary("link", dead));
  std::filesystem::create_symlink("snapshot_iter_7", scratch.path() / kept.back());

  auto removed = writing::remove_stale_temporaries(files, scratch.path());
  std::vector<std::string> names;
  for (const auto& file : removed) names.push_back(file.filename().string());
  CHECK_THAT(names, Catch::Matchers::UnorderedEquals(stale));
  CHECK_THAT(names_in(scratch.path()), Catch::Matchers::UnorderedEquals(kept));
  CHECK(writing::remove_stale_temporaries(files, scratch.path()).empty());
}

}  // namespace writing_atomic_file_test

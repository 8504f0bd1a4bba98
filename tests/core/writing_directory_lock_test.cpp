#include "rondo/writing/directory_lock.hpp"

#include <signal.h>
#include <sys/stat.h>

#include <array>
#include <optional>

#include "support/temporary_directory.hpp"
#include "support/writing.hpp"

namespace writing_directory_lock_test {

using namespace rondo;
using namespace rondo::testing;
using writing::directory_lock;
using writing::lock_error;

namespace {

std::string this_host() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

std::optional<lock_error> refusal(const std::filesystem::path& directory) {
  try {
    const directory_lock lock(directory);
  } catch (const lock_error& error) {
    return error;
  }
  return std::nullopt;
}

// A child that holds the lock until it is killed.
class holder {
 public:
  explicit holder(const std::filesystem::path& directory) {
    REQUIRE(::pipe(ready_.data()) == 0);
    process_ = start_child([&] {
      const directory_lock lock(directory);
      if (::write(ready_[1], "x", 1) != 1) return 1;
      while (true) ::pause();
    });
    ::close(ready_[1]);
    char byte = 0;
    REQUIRE(::read(ready_[0], &byte, 1) == 1);
  }
  ~holder() {
    kill();
    ::close(ready_[0]);
  }
  void kill() {
    if (process_ == 0) return;
    ::kill(process_, SIGKILL);
    wait_for(process_);
    process_ = 0;
  }
  [[nodiscard]] pid_t process() const { return process_; }

 private:
  std::array<int, 2> ready_{};
  pid_t process_ = 0;
};

}  // namespace

TEST_CASE("a second trainer in the same process is refused until the first is gone", "[writing][lock]") {
  const temporary_directory scratch;
  {
    const directory_lock first(scratch.path());
    const auto error = refusal(scratch.path());
    REQUIRE(error);
    CHECK(error->process() == ::getpid());
    CHECK(error->host() == this_host());
    CHECK(error->directory() == scratch.path());
    CHECK(mentions(*error, "process " + std::to_string(::getpid())));
    CHECK(refusal(scratch.path()));
  }
  CHECK_FALSE(refusal(scratch.path()));
}

TEST_CASE("a second process is refused, and takes over when the first was killed", "[writing][lock]") {
  const temporary_directory scratch;
  holder first(scratch.path());
  const auto error = refusal(scratch.path());
  REQUIRE(error);
  CHECK(error->process() == first.process());
  first.kill();
  CHECK_FALSE(refusal(scratch.path()));
}

TEST_CASE("the lock moves with its owner", "[writing][lock]") {
  const temporary_directory scratch;
  std::optional<directory_lock> lock(std::in_place, scratch.path());
  directory_lock moved = std::move(*lock);
  lock.reset();
  CHECK(refusal(scratch.path()));
  const temporary_directory other;
  moved = directory_lock(other.path());
  CHECK_FALSE(refusal(scratch.path()));
  CHECK(refusal(other.path()));
}

TEST_CASE("a holder that has not written its name yet still refuses", "[writing][lock]") {
  const temporary_directory scratch;
  const directory_lock first(scratch.path());
  std::filesystem::resize_file(scratch.path() / ".rondo.lock", 0);
  const auto error = refusal(scratch.path());
  REQUIRE(error);
  CHECK(error->process() == 0);
  CHECK(error->host().empty());
  write_text(scratch.path() / ".rondo.lock", "process rubbish\nhost\n");
  CHECK(refusal(scratch.path()));
}

TEST_CASE("what is left in the lock file does not matter", "[writing][lock]") {
  const temporary_directory scratch;
  write_text(scratch.path() / ".rondo.lock", "process 1\nhost elsewhere\n" + std::string(10'000, 'x'));
  const directory_lock lock(scratch.path());
  const auto error = refusal(scratch.path());
  REQUIRE(error);
  CHECK(error->process() == ::getpid());
  CHECK(std::filesystem::file_size(scratch.path() / ".rondo.lock") < 400);
}

TEST_CASE("only a regular lock file is taken", "[writing][lock]") {
  const temporary_directory scratch;
  const auto file = scratch.path() / ".rondo.lock";
  SECTION("a link is not followed") {
    write_text(scratch.path() / "victim", "precious");
    std::filesystem::create_symlink("victim", file);
    CHECK(mentions(failure_of([&] { directory_lock lock(scratch.path()); }), "symbolic link"));
    CHECK(std::filesystem::file_size(scratch.path() / "victim") == 8);
  }
  SECTION("a FIFO is refused without waiting") {
    REQUIRE(::mkfifo(file.c_str(), 0600) == 0);
    CHECK_THROWS_AS(directory_lock(scratch.path()), io_error);
  }
  SECTION("a directory") {
    std::filesystem::create_directory(file);
    CHECK_THROWS_AS(directory_lock(scratch.path()), io_error);
  }
  SECTION("no directory to lock") {
    CHECK(failure_of([&] { directory_lock lock(scratch.path() / "none"); }).code() ==
          std::errc::no_such_file_or_directory);
  }
}

}  // namespace writing_directory_lock_test

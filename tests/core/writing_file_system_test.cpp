#include "rondo/writing/file_system.hpp"

#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <iterator>
#include <memory>

#include "rondo/writing/memory_block.hpp"
#include "rondo/writing/memory_file_system.hpp"
#include "support/temporary_directory.hpp"
#include "support/writing.hpp"

namespace writing_file_system_test {

using namespace rondo;
using namespace rondo::testing;
using writing::file_kind;

namespace {

void write_plainly(const std::filesystem::path& file, const bytes& content, std::size_t piece, std::size_t expected) {
  const auto output = writing::posix_file_system()->create(file, expected);
  in_pieces(content, piece)([&](std::span<const std::byte> part) { output->append(part); });
  output->sync();
  output->close();
}

mode_t permissions_under(mode_t mask, const std::filesystem::path& file) {
  const auto before = ::umask(mask);
  write_plainly(file, pattern(10, 1), 10, 10);
  ::umask(before);
  struct stat about {};
  REQUIRE(::stat(file.c_str(), &about) == 0);
  return about.st_mode & 0777;
}

// A small file system of its own, when this process may mount one.
class small_disk {
 public:
  explicit small_disk(const std::filesystem::path& at) : at_(at) {
    mounted_ = ::mount("tmpfs", at_.c_str(), "tmpfs", 0, "size=1m") == 0;
  }
  ~small_disk() {
    if (mounted_) ::umount(at_.c_str());
  }
  [[nodiscard]] bool mounted() const { return mounted_; }

 private:
  std::filesystem::path at_;
  bool mounted_ = false;
};

}  // namespace

TEST_CASE("what is appended is what is in the file", "[writing][posix]") {
  const temporary_directory scratch;
  const std::size_t chunk = 8 << 20;
  const std::size_t sizes[] = {0,    1,         4095,  4096,      4097,         8191,          8192,
                               8193, chunk - 1, chunk, chunk + 1, chunk + 4096, 2 * chunk - 1, 2 * chunk + 4097};
  for (const auto size : sizes) {
    const auto content = pattern(size, size);
    for (const std::size_t piece : {std::size_t{4097}, std::size_t{1} << 20, 3 * chunk}) {
      const auto file = scratch.path() / "file";
      write_plainly(file, content, piece, size);
      INFO(size << " bytes in pieces of " << piece);
      REQUIRE(read_file(file) == content);
      std::filesystem::remove(file);
    }
  }
}

TEST_CASE("aligned memory is written without being damaged by what follows it", "[writing][posix]") {
  const temporary_directory scratch;
  const auto content = pattern((9 << 20) + 123, 5);
  struct release {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  const std::unique_ptr<std::byte, release> aligned(static_cast<std::byte*>(std::aligned_alloc(4096, 10 << 20)));
  std::copy(content.begin(), content.end(), aligned.get());
  const std::span<const std::byte> all(aligned.get(), content.size());
  const auto output = writing::posix_file_system()->create(scratch.path() / "file", content.size());
  output->append(all.first(4096));
  output->append(all.subspan(4096, 1 << 20));
  output->append(all.subspan(4096 + (1 << 20), 10));
  output->append(all.subspan(4106 + (1 << 20)));
  output->close();
  CHECK(read_file(scratch.path() / "file") == content);
}

TEST_CASE("what is written behind is in order, whatever is stable and aligned", "[writing][posix][behind]") {
  const temporary_directory scratch;
  const writing::memory_block memory(40 << 20);
  const std::size_t misaligned = GENERATE(0, 64);
  const auto all = memory.bytes().subspan(misaligned, (36 << 20) + 123);
  std::uint32_t state = 1;
  for (auto& byte : all) byte = static_cast<std::byte>((state = state * 1664525U + 1013904223U) >> 24U);
  const std::size_t expected = GENERATE(0, (36 << 20) + 123, 64 << 20);
  const auto output = writing::posix_file_system()->create(scratch / "file", expected);
  const std::size_t sizes[] = {4096, 100, (8 << 20) - 4196, 9 << 20, 3, 5 << 20, 1 << 20, 4093, 2 << 20};
  bytes changing;
  std::size_t at = 0;
  for (std::size_t i = 0; at < all.size(); ++i) {
    const auto piece = all.subspan(at, std::min(sizes[i % std::size(sizes)], all.size() - at));
    if (i % 3 == 1) {
      changing.assign(piece.begin(), piece.end());
      output->append(changing);
      std::fill(changing.begin(), changing.end(), std::byte{0});
    } else {
      output->append_stable(piece);
    }
    at += piece.size();
    if (i == 4) {
      output->sync();
      std::fill(all.begin(), all.begin() + 4096, std::byte{0});
    }
  }
  if (misaligned == 0) output->sync();
  output->close();
  auto written = read_file(scratch / "file");
  REQUIRE(written.size() == all.size());
  CHECK(written.front() != std::byte{0});
  std::fill(written.begin(), written.begin() + 4096, std::byte{0});
  CHECK(std::equal(written.begin(), written.end(), all.begin()));
}

TEST_CASE("a large file that is given up half-way is no longer written when it is gone", "[writing][posix][behind]") {
  const temporary_directory scratch;
  auto output = writing::posix_file_system()->create(scratch / "file", 64 << 20);
  const writing::memory_block memory(48 << 20);
  std::fill(memory.bytes().begin(), memory.bytes().end(), std::byte{1});
  output->append_stable(memory.bytes());
  output.reset();
  std::fill(memory.bytes().begin(), memory.bytes().end(), std::byte{2});
  const auto written = read_file(scratch / "file");
  CHECK(std::count(written.begin(), written.end(), std::byte{2}) == 0);
}

TEST_CASE("a file can be synced between appends and the expected size may be wrong", "[writing][posix]") {
  const temporary_directory scratch;
  const auto content = pattern(100'000, 7);
  for (const std::size_t expected : {0, 1, 50'000, 10'000'000}) {
    const auto file = scratch.path() / std::to_string(expected);
    const auto output = writing::posix_file_system()->create(file, expected);
    output->append(std::span(content).first(33'333));
    output->sync();
    output->append(std::span(content).subspan(33'333));
    output->close();
    CHECK(read_file(file) == content);
  }
}

TEST_CASE("create is exclusive and follows no link", "[writing][posix]") {
  const temporary_directory scratch;
  auto& files = *writing::posix_file_system();
  write_text(scratch.path() / "victim", "precious");
  std::filesystem::create_symlink("victim", scratch.path() / "link");
  std::filesystem::create_symlink("nowhere", scratch.path() / "dangling");
  for (const auto* name : {"victim", "link", "dangling"}) {
    const auto error = failure_of([&] { (void)files.create(scratch.path() / name, 1); });
    CHECK(error.code() == std::errc::file_exists);
    CHECK(error.path() == scratch.path() / name);
    CHECK(error.operation() == "create");
  }
  CHECK(std::filesystem::file_size(scratch.path() / "victim") == 8);
  CHECK_FALSE(std::filesystem::exists(scratch.path() / "nowhere"));
}

TEST_CASE("permissions follow the umask", "[writing][posix]") {
  const temporary_directory scratch;
  CHECK(permissions_under(000, scratch.path() / "a") == 0666);
  CHECK(permissions_under(022, scratch.path() / "b") == 0644);
  CHECK(permissions_under(077, scratch.path() / "c") == 0600);
}

TEST_CASE("a closed file says so", "[writing][posix]") {
  const temporary_directory scratch;
  const auto output = writing::posix_file_system()->create(scratch.path() / "file", 0);
  output->close();
  CHECK(failure_of([&] { output->append(pattern(1, 1)); }).code() == std::errc::bad_file_descriptor);
  CHECK(failure_of([&] { output->sync(); }).code() == std::errc::bad_file_descriptor);
  CHECK(failure_of([&] { output->close(); }).code() == std::errc::bad_file_descriptor);
}

TEST_CASE("list tells files, directories, links and the rest apart", "[writing][posix]") {
  const temporary_directory scratch;
  auto& files = *writing::posix_file_system();
  write_text(scratch.path() / "a", "12345");
  std::filesystem::create_directory(scratch.path() / "b");
  std::filesystem::create_symlink("a", scratch.path() / "c");
  REQUIRE(::mkfifo((scratch.path() / "d").c_str(), 0600) == 0);
  const auto entries = files.list(scratch.path());
  REQUIRE(entries.size() == 4);
  CHECK((entries[0].name == "a" && entries[0].kind == file_kind::regular && entries[0].size == 5));
  CHECK((entries[1].name == "b" && entries[1].kind == file_kind::directory && entries[1].size == 0));
  CHECK((entries[2].name == "c" && entries[2].kind == file_kind::symlink));
  CHECK((entries[3].name == "d" && entries[3].kind == file_kind::other));
  CHECK(files.kind(scratch.path() / "c") == file_kind::symlink);
  CHECK(files.kind(scratch.path() / "e") == file_kind::none);
  CHECK(failure_of([&] { (void)files.list(scratch.path() / "e"); }).code() == std::errc::no_such_file_or_directory);
  CHECK(failure_of([&] { (void)files.kind(scratch.path() / "a" / "x"); }).code() == std::errc::not_a_directory);
}

TEST_CASE("rename replaces, remove removes files only", "[writing][posix]") {
  const temporary_directory scratch;
  auto& files = *writing::posix_file_system();
  write_text(scratch.path() / "new", "new");
  write_text(scratch.path() / "old", "old!");
  files.rename(scratch.path() / "new", scratch.path() / "old");
  CHECK(names_in(scratch.path()) == std::vector<std::string>{"old"});
  CHECK(std::filesystem::file_size(scratch.path() / "old") == 3);
  CHECK(files.remove(scratch.path() / "old"));
  CHECK_FALSE(files.remove(scratch.path() / "old"));
  std::filesystem::create_directory(scratch.path() / "directory");
  CHECK_THROWS_AS(files.remove(scratch.path() / "directory"), io_error);
  const auto error = failure_of([&] { files.rename(scratch.path() / "none", scratch.path() / "old"); });
  CHECK(error.code() == std::errc::no_such_file_or_directory);
}

TEST_CASE("sync_file takes regular files only and does not hang", "[writing][posix]") {
  const temporary_directory scratch;
  auto& files = *writing::posix_file_system();
  write_text(scratch.path() / "file", "1234");
  CHECK(files.sync_file(scratch.path() / "file") == 4);
  REQUIRE(::mkfifo((scratch.path() / "fifo").c_str(), 0600) == 0);
  std::filesystem::create_symlink("file", scratch.path() / "link");
  CHECK_THROWS_AS(files.sync_file(scratch.path() / "fifo"), io_error);
  CHECK_THROWS_AS(files.sync_file(scratch.path() / "link"), io_error);
  CHECK_THROWS_AS(files.sync_file(scratch.path() / "none"), io_error);
  CHECK_THROWS_AS(files.sync_directory(scratch.path() / "none"), io_error);
  CHECK_THROWS_AS(files.sync_directory(scratch.path() / "file"), io_error);
}

TEST_CASE("create_directories makes what is missing and accepts what is there", "[writing][posix]") {
  const temporary_directory scratch;
  auto& files = *writing::posix_file_system();
  writing::create_directories(files, scratch.path() / "a" / "b" / "c/");
  CHECK(std::filesystem::is_directory(scratch.path() / "a" / "b" / "c"));
  writing::create_directories(files, scratch.path() / "a" / "b" / "c");
  std::filesystem::create_directory_symlink("a", scratch.path() / "link");
  writing::create_directories(files, scratch.path() / "link");
  writing::create_directories(files, scratch.path() / "link" / "d");
  CHECK(std::filesystem::is_directory(scratch.path() / "a" / "d"));
  write_text(scratch.path() / "file", "");
  CHECK(failure_of([&] { writing::create_directories(files, scratch.path() / "file"); }).code() ==
        std::errc::not_a_directory);
}

TEST_CASE("new directories survive a power loss, also those of a killed run", "[writing][directories]") {
  writing::memory_file_system files;
  SECTION("all are new") { writing::create_directories(files, "/a/b/c"); }
  SECTION("a killed run left one undurable") {
    files.create_directory("/a");
    writing::create_directories(files, "/a/b/c");
  }
  SECTION("a killed run left the last one undurable") {
    writing::create_directories(files, "/a/b");
    files.create_directory("/a/b/c");
    writing::create_directories(files, "/a/b/c");
  }
  files.for_each_crash_state(
      [](writing::memory_file_system& state) { CHECK(state.kind("/a/b/c") == file_kind::directory); });
}

TEST_CASE("a full disk is an error that says how much was needed", "[writing][posix][full]") {
  const temporary_directory scratch;
  const small_disk disk(scratch.path());
  if (!disk.mounted()) {
    WARN("skipped: mounting a small file system is not allowed here");
    return;
  }
  auto& files = *writing::posix_file_system();
  SECTION("before anything is written, when the size is known") {
    const auto error = failure_of([&] { (void)files.create(scratch.path() / "file", 3 << 20); });
    CHECK(error.code() == std::errc::no_space_on_device);
    CHECK(mentions(error, "3145728 bytes needed"));
    CHECK(mentions(error, "1048576 available"));
    CHECK(names_in(scratch.path()).empty());
  }
  SECTION("while writing, and the file is given up") {
    const auto output = files.create(scratch.path() / "file", 0);
    const auto content = pattern(3 << 20, 1);
    const auto error = failure_of([&] {
      output->append(content);
      output->sync();
    });
    CHECK(error.code() == std::errc::no_space_on_device);
    std::filesystem::remove(scratch.path() / "file");
    CHECK(failure_of([&] { output->append(std::span(content).first(1)); }).code() == std::errc::no_space_on_device);
    CHECK(failure_of([&] { output->sync(); }).code() == std::errc::no_space_on_device);
    CHECK(failure_of([&] { output->close(); }).code() == std::errc::no_space_on_device);
  }
  SECTION("an atomic write keeps the old file and leaves nothing behind") {
    const auto old = pattern(400 << 10, 2);
    save(files, scratch.path() / "target", old);
    const auto fresh = pattern(800 << 10, 3);
    CHECK(failure_of([&] { save(files, scratch.path() / "target", fresh); }).code() == std::errc::no_space_on_device);
    CHECK(names_in(scratch.path()) == std::vector<std::string>{"target"});
    CHECK(read_file(scratch.path() / "target") == old);
  }
}

TEST_CASE("the limit on file sizes is an error, not a death", "[writing][posix][full]") {
  const temporary_directory scratch;
  const auto file = scratch.path() / "file";
  const auto with_limit = [&](std::size_t expected) {
    return wait_for(start_child([&] {
      ::signal(SIGXFSZ, SIG_IGN);
      const rlimit limit{100'000, 100'000};
      ::setrlimit(RLIMIT_FSIZE, &limit);
      try {
        const auto output = writing::posix_file_system()->create(file, expected);
        output->append(bytes(200'000, std::byte{1}));
        output->close();
      } catch (const io_error& error) {
        return error.code() == std::errc::file_too_large && mentions(error, "ulimit") ? 1 : 2;
      }
      return 0;
    }));
  };
  CHECK(with_limit(200'000) == 1);
  CHECK_FALSE(std::filesystem::exists(file));
  CHECK(with_limit(0) == 1);
  // What fits was written: the write that hit the limit was short first, and then completed into the error.
  CHECK(std::filesystem::file_size(file) <= 100'000);
}

TEST_CASE("what fails behind those who append is an error of the next call",
          "[writing][posix][behind][full]" THREADS_AFTER_FORK) {
  const temporary_directory scratch;
  const auto result = wait_for(start_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{20 << 20, 20 << 20};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const auto output = writing::posix_file_system()->create(scratch / "file", 0);
    const bytes piece(1 << 20, std::byte{1});
    const auto fails = [&](const auto& action, const char* text) {
      try {
        action();
      } catch (const io_error& error) {
        return error.code() == std::errc::file_too_large && mentions(error, text);
      }
      return false;
    };
    const auto append = [&] {
      for (int i = 0; i < 100; ++i) output->append(piece);
    };
    if (!fails(append, "ulimit")) return 1;
    if (!fails([&] { output->append(piece); }, "given up after an earlier failure")) return 2;
    if (!fails([&] { output->sync(); }, "given up after an earlier failure")) return 3;
    if (!fails([&] { output->close(); }, "given up after an earlier failure")) return 4;
    return 0;
  }));
  CHECK(result == 0);
}

TEST_CASE("the last chunk's failure is an error of sync and of close",
          "[writing][posix][behind][full]" THREADS_AFTER_FORK) {
  const temporary_directory scratch;
  const bool by_sync = GENERATE(true, false);
  const auto result = wait_for(start_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{20 << 20, 20 << 20};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const auto output = writing::posix_file_system()->create(scratch / "file", 0);
    // Two chunks fit, the third is not handed over before the end.
    for (int i = 0; i < 23; ++i) output->append(bytes(1 << 20, std::byte{1}));
    try {
      by_sync ? output->sync() : output->close();
    } catch (const io_error& error) {
      return error.code() == std::errc::file_too_large && error.operation() == "write" ? 0 : 1;
    }
    return 2;
  }));
  CHECK(result == 0);
}

}  // namespace writing_file_system_test

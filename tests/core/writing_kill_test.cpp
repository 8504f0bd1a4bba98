// Real processes killed while they save: afterwards the old file or the new one is there, whole.
#include <signal.h>

#include <array>
#include <chrono>
#include <cstring>
#include <thread>

#include "rondo/writing/atomic_file.hpp"
#include "support/temporary_directory.hpp"
#include "support/writing.hpp"

namespace writing_kill_test {

using namespace rondo;
using namespace rondo::testing;

namespace {

constexpr std::size_t file_size = 64 << 10;

bytes content_of(std::uint64_t number) {
  bytes content(file_size);
  for (std::size_t at = 0; at < file_size; at += sizeof number) std::memcpy(&content[at], &number, sizeof number);
  return content;
}

// The number of the save that a file comes from; fails when it is not whole. 0 when there is none.
std::uint64_t whole_save_in(const std::filesystem::path& file) {
  if (!std::filesystem::exists(file)) return 0;
  const auto content = read_file(file);
  std::uint64_t number = 0;
  REQUIRE(content.size() == file_size);
  std::memcpy(&number, content.data(), sizeof number);
  REQUIRE(content == content_of(number));
  return number;
}

// Kills the own process before the nth operation.
class deadly_file_system final : public writing::file_system {
 public:
  explicit deadly_file_system(std::size_t left) : left_(left) {}

  std::unique_ptr<writing::output_file> create(const writing::path& file, std::uint64_t size) override {
    step();
    return std::make_unique<deadly_file>(*this, under_->create(file, size));
  }
  std::uint64_t sync_file(const writing::path& file) override { return step(), under_->sync_file(file); }
  void rename(const writing::path& from, const writing::path& to) override { step(), under_->rename(from, to); }
  bool remove(const writing::path& file) override { return step(), under_->remove(file); }
  writing::file_kind kind(const writing::path& name) override { return step(), under_->kind(name); }
  std::vector<writing::directory_entry> list(const writing::path& name) override { return step(), under_->list(name); }
  writing::file_use use_of(const writing::path& file) override { return step(), under_->use_of(file); }
  void sync_directory(const writing::path& name) override { step(), under_->sync_directory(name); }
  bool create_directory(const writing::path& name) override { return step(), under_->create_directory(name); }

 private:
  class deadly_file final : public writing::output_file {
   public:
    deadly_file(deadly_file_system& owner, std::unique_ptr<writing::output_file> under)
        : owner_(owner), under_(std::move(under)) {}
    void append(std::span<const std::byte> part) override { owner_.step(), under_->append(part); }
    void sync() override { owner_.step(), under_->sync(); }
    void close() override { owner_.step(), under_->close(); }

   private:
    deadly_file_system& owner_;
    std::unique_ptr<writing::output_file> under_;
  };

  void step() {
    if (--left_ == 0) ::raise(SIGKILL);
  }

  std::shared_ptr<writing::file_system> under_ = writing::posix_file_system();
  std::size_t left_;
};

// A child that saves again and again, and reports each finished save through a pipe.
class saving_child {
 public:
  saving_child(const std::filesystem::path& target, std::uint64_t first) {
    REQUIRE(::pipe(reports_.data()) == 0);
    process_ = start_child([&] {
      for (auto number = first;; ++number) {
        save(*writing::posix_file_system(), target, content_of(number));
        if (::write(reports_[1], &number, sizeof number) != sizeof number) return 1;
      }
    });
    ::close(reports_[1]);
  }
  saving_child(const saving_child&) = delete;
  saving_child& operator=(const saving_child&) = delete;

  // Blocks until a save is finished.
  void await_save() { REQUIRE(::read(reports_[0], &last_, sizeof last_) == sizeof last_); }

  // Kills the child and returns the last save that it reported, or 0.
  std::uint64_t kill() {
    ::kill(process_, SIGKILL);
    REQUIRE(wait_for(process_) == -SIGKILL);
    std::uint64_t number = 0;
    while (::read(reports_[0], &number, sizeof number) == sizeof number) last_ = number;
    ::close(reports_[0]);
    return last_;
  }

 private:
  std::array<int, 2> reports_{};
  pid_t process_ = 0;
  std::uint64_t last_ = 0;
};

}  // namespace

TEST_CASE("killed before any operation of a save", "[writing][kill]") {
  const temporary_directory scratch;
  auto& files = *writing::posix_file_system();
  const auto target = scratch.path() / "target";
  save(files, target, content_of(1));
  std::uint64_t expected = 1;
  std::size_t kills = 0;
  for (std::size_t nth = 1;; ++nth) {
    const auto result = wait_for(start_child([&] {
      deadly_file_system deadly(nth);
      save(deadly, target, content_of(expected + 1));
      return 0;
    }));
    const auto found = whole_save_in(target);
    if (result == 0) {
      CHECK(found == expected + 1);
      break;
    }
    REQUIRE(result == -SIGKILL);
    ++kills;
    REQUIRE((found == expected || found == expected + 1));
    expected = found;
    writing::remove_stale_temporaries(files, scratch.path());
    REQUIRE(names_in(scratch.path()) == std::vector<std::string>{"target"});
  }
  // inspect the directory and the target, create, 16 appends, sync, close, rename, sync the directory
  CHECK(kills == 23);
}

TEST_CASE("killed at random moments", "[writing][kill]") {
  const temporary_directory scratch;
  const auto target = scratch.path() / "target";
  std::mt19937_64 random(3);
  std::uint64_t last = 0;
  std::size_t stale = 0;
  for (int round = 0; round < 300; ++round) {
    saving_child child(target, last + 1);
    // However slow the machine is, some children get through to a save, and are killed in a later one.
    if (round % 3 == 0) child.await_save();
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 4000));
    const auto acknowledged = std::max(child.kill(), last);
    const auto found = whole_save_in(target);
    REQUIRE(found >= acknowledged);
    REQUIRE(found <= acknowledged + 1);
    last = found;
    stale += writing::remove_stale_temporaries(*writing::posix_file_system(), scratch.path()).size();
    REQUIRE(names_in(scratch.path()).size() <= 1);
  }
  CHECK(last > 0);
  CHECK(stale > 0);
}

}  // namespace writing_kill_test

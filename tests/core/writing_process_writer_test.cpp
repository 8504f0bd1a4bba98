// Files written by helper processes: what is in them, what becomes of them when somebody dies, and what is left behind.
#include "rondo/writing/process_writer.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <optional>
#include <sstream>
#include <thread>

#include "rondo/async/scope.hpp"
#include "rondo/writing/helper/process.hpp"
#include "rondo/writing/helper/protocol.hpp"
#include "rondo/writing/simple_writer.hpp"
#include "support/abandon.hpp"
#include "support/messages.hpp"
#include "support/run_task.hpp"
#include "support/temporary_directory.hpp"
#include "support/writing.hpp"

namespace writing_process_writer_test {

using namespace rondo;
using namespace rondo::testing;
namespace fs = std::filesystem;

namespace {

using writer_pointer = std::shared_ptr<writing::writer>;

// ---- processes ----

// State and parent of a process as the system tells them; 'X' and 0 when there is none.
struct process_status {
  char state = 'X';
  pid_t parent = 0;
};

process_status status_of(pid_t process) {
  std::ifstream stream("/proc/" + std::to_string(process) + "/stat");
  std::string line;
  std::getline(stream, line);
  process_status status;
  if (line.empty()) return status;
  std::istringstream rest(line.substr(line.rfind(')') + 1));
  rest >> status.state >> status.parent;
  return status;
}

std::vector<pid_t> child_processes() {
  std::vector<pid_t> found;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const auto process = static_cast<pid_t>(std::atoi(entry.path().filename().c_str()));
    if (process > 0 && status_of(process).parent == ::getpid()) found.push_back(process);
  }
  return found;
}

template <class Condition>
bool eventually(Condition condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

bool ended(pid_t process) {
  return eventually([&] {
    const char state = status_of(process).state;
    return state == 'X' || state == 'Z';
  });
}

pid_t only_child() {
  const auto found = child_processes();
  REQUIRE(found.size() == 1);
  return found.front();
}

void stop(pid_t process) {
  REQUIRE(::kill(process, SIGSTOP) == 0);
  REQUIRE(eventually([&] { return status_of(process).state == 'T'; }));
}

std::size_t open_descriptors() {
  const fs::directory_iterator entries("/proc/self/fd");
  return static_cast<std::size_t>(std::distance(begin(entries), end(entries)));
}

// ---- writing ----

bool holds(const fs::path& file, const bytes& content) { return read_file(file) == content; }

// How many calls of write there were.
int handed_over = 0;

task<> write_image(writer_pointer writer, fs::path target, bytes content) {
  auto slot = co_await writer->memory()->acquire(writing::file_image::memory_for(content.size(), 0));
  REQUIRE(slot);
  writing::file_image image(std::move(slot), content.size(), 0);
  std::copy(content.begin(), content.end(), image.bytes().begin());
  writing::write_request request(target, std::move(image));
  ++handed_over;
  const writing::write_receipt receipt = co_await writer->write(std::move(request));
  REQUIRE(receipt.bytes == content.size());
  REQUIRE(receipt.target == target);
}

task<> close_writer(writer_pointer writer) { co_await writer->close(); }

void write_now(const writer_pointer& writer, const fs::path& target, const bytes& content) {
  run_task([&] { return write_image(writer, target, content); });
}

void close_now(const writer_pointer& writer) {
  run_task([&] { return close_writer(writer); });
}

// A queue whose helper has been stopped before it got any work.
class stopped_queue {
 public:
  explicit stopped_queue(const fs::path& directory, writers::process_options options = {})
      : writer_(writers::process_queue(options)) {
    write_now(writer_, directory / "first", pattern(100, 1));
    helper_ = only_child();
    stop(helper_);
  }
  stopped_queue(const stopped_queue&) = delete;
  stopped_queue& operator=(const stopped_queue&) = delete;
  ~stopped_queue() { go_on(); }

  [[nodiscard]] const writer_pointer& writer() const noexcept { return writer_; }
  [[nodiscard]] pid_t helper() const noexcept { return helper_; }
  void release() { writer_.reset(); }
  void go_on() const { ::kill(helper_, SIGCONT); }

 private:
  writer_pointer writer_;
  pid_t helper_ = 0;
};

// A coroutine that was started and has not finished.
class in_flight {
 public:
  template <class F>
  explicit in_flight(F body) : body_(std::move(body)) {
    root_.emplace(world_, body_);
    world_.loop.poll();
  }
  void finish() {
    world_.loop.run();
    root_->rethrow();
  }
  void poll() { world_.loop.poll(); }
  void cancel() { root_->cancel(); }
  [[nodiscard]] bool finished() const { return root_->finished(); }

 private:
  std::function<task<>()> body_;
  // Outlives the event loop, whose handlers refer to it.
  std::optional<support::started> root_;
  support::world world_;
};

writers::process_options with_timeout(std::chrono::milliseconds limit) {
  writers::process_options options;
  options.timeout = limit;
  return options;
}

struct kind {
  const char* name;
  writer_pointer (*make)(writers::process_options);
};
constexpr kind kinds[] = {{"process", &writers::process}, {"process_queue", &writers::process_queue}};

}  // namespace

TEST_CASE("helper processes write what was handed over", "[writing][process_writer]") {
  for (const auto& each : kinds) {
    INFO(each.name);
    const temporary_directory scratch;
    const auto writer = each.make({});
    CHECK(writer->name() == each.name);
    REQUIRE(writer->memory() != nullptr);
    for (const std::size_t size : {1, 4095, 4096, 70'001, 9'000'000, 40'000'000}) {
      const auto content = pattern(size, size);
      const auto number = std::to_string(size);
      save(*writing::posix_file_system(), scratch / ("simple" + number), content);
      write_now(writer, scratch / ("process" + number), content);
      CHECK(holds(scratch / ("process" + number), read_file(scratch / ("simple" + number))));
    }
    close_now(writer);
    CHECK(child_processes().empty());
    CHECK(names_in(scratch.path()).size() == 12);
  }
}

TEST_CASE("the helper computes the checksums", "[writing][process_writer]") {
  const temporary_directory scratch;
  const auto writer = writers::process();
  auto expected = pattern(20'000'000, 1);
  const std::vector<checkpoint::checksum_spot> spots{{100, 9'000'000, 9'000'100, 19'000'000, 19'500'000},
                                                     {9'000'200, 1'000, 9'001'300, 19'000'100, 0}};
  const auto original = expected;
  auto body = [&]() -> task<> {
    auto slot = co_await writer->memory()->acquire(writing::file_image::memory_for(original.size(), spots.size()));
    writing::file_image image(std::move(slot), original.size(), spots.size());
    std::copy(original.begin(), original.end(), image.bytes().begin());
    std::copy(spots.begin(), spots.end(), image.spots().begin());
    writing::write_request request(scratch / "file", std::move(image));
    co_await writer->write(std::move(request));
  };
  run_task([&] { return body(); });
  checkpoint::seal(expected, spots, [](std::span<const std::byte>) {});
  CHECK(expected != original);
  CHECK(holds(scratch / "file", expected));
}

TEST_CASE("an image with spots that lie outside is a format error from the helper", "[writing][process_writer]") {
  const temporary_directory scratch;
  const auto writer = writers::process_queue();
  auto body = [&]() -> task<> {
    auto slot = co_await writer->memory()->acquire(writing::file_image::memory_for(100, 1));
    writing::file_image image(std::move(slot), 100, 1);
    image.spots()[0] = {0, 1000, 0, 0, 0};
    writing::write_request request(scratch / "file", std::move(image));
    co_await writer->write(std::move(request));
  };
  const auto message = message_of<format_error>([&] { run_task([&] { return body(); }); });
  CHECK(contains(message, "file image"));
  CHECK(names_in(scratch.path()).empty());
  write_now(writer, scratch / "file", pattern(10, 1));
}

TEST_CASE("process writers take requests without an image", "[writing][process_writer]") {
  for (const auto& each : kinds) {
    INFO(each.name);
    const temporary_directory scratch;
    const auto writer = each.make({});
    const auto content = pattern(300'000, 5);
    auto produce = [&]() -> task<> {
      writing::write_request request(scratch / "produced", content.size(), in_pieces(content, 999));
      const auto receipt = co_await writer->write(std::move(request));
      CHECK(receipt.bytes == content.size());
    };
    run_task([&] { return produce(); });
    CHECK(holds(scratch / "produced", content));
    auto too_little = [&]() -> task<> {
      writing::write_request request(scratch / "wrong", content.size() + 1, in_pieces(content, 999));
      co_await writer->write(std::move(request));
    };
    CHECK(failure_of([&] { run_task([&] { return too_little(); }); }).code() == std::errc::invalid_argument);
    CHECK(names_in(scratch.path()) == std::vector<std::string>{"produced"});
  }
}

TEST_CASE("process writers refuse options that make no sense", "[writing][process_writer]") {
  writers::process_options none;
  none.capacity = 0;
  CHECK_THROWS_AS(writers::process(none), option_error);
  CHECK_THROWS_AS(writers::process_queue(with_timeout(std::chrono::milliseconds(0))), option_error);
}

TEST_CASE("relative paths are those of the trainer", "[writing][process_writer]") {
  const temporary_directory scratch;
  const auto before = fs::current_path();
  const auto writer = writers::process_queue();
  fs::current_path(scratch.path());
  write_now(writer, "file", pattern(10, 1));
  fs::create_directory("other");
  fs::current_path("other");
  write_now(writer, "file", pattern(20, 2));
  fs::current_path(before);
  CHECK(holds(scratch / "file", pattern(10, 1)));
  CHECK(holds(scratch / "other/file", pattern(20, 2)));
}

TEST_CASE("a helper's files have the permissions that the trainer's umask says", "[writing][process_writer]") {
  for (const auto& [mask, mode] : {std::pair<mode_t, mode_t>{022, 0644}, {077, 0600}, {0, 0666}}) {
    for (const auto& each : kinds) {
      const temporary_directory scratch;
      const auto before = ::umask(mask);
      const auto writer = each.make({});
      write_now(writer, scratch / "file", pattern(10, 1));
      close_now(writer);
      ::umask(before);
      struct stat about {};
      REQUIRE(::stat((scratch / "file").c_str(), &about) == 0);
      CHECK((about.st_mode & 0777) == mode);
    }
  }
}

TEST_CASE("many files leave no descriptors, processes or temporaries", "[writing][process_writer]") {
  for (const auto& each : kinds) {
    INFO(each.name);
    const temporary_directory scratch;
    const auto writer = each.make({});
    const auto content = pattern(5000, 1);
    write_now(writer, scratch / "file", content);
    write_now(writer, scratch / "file", content);
    close_now(writer);
    const auto before = open_descriptors();
    for (int i = 0; i < 100; ++i) write_now(writer, scratch / "file", content);
    close_now(writer);
    close_now(writer);
    CHECK(open_descriptors() == before);
    CHECK(child_processes().empty());
    CHECK(names_in(scratch.path()) == std::vector<std::string>{"file"});
  }
}

TEST_CASE("a queue has one helper until it is closed", "[writing][process_writer]") {
  const temporary_directory scratch;
  auto writer = writers::process_queue();
  CHECK(child_processes().empty());
  write_now(writer, scratch / "a", pattern(10, 1));
  const auto helper = only_child();
  write_now(writer, scratch / "b", pattern(10, 1));
  CHECK(only_child() == helper);
  close_now(writer);
  CHECK(child_processes().empty());
  write_now(writer, scratch / "c", pattern(10, 1));
  CHECK(only_child() != helper);
  writer.reset();
  CHECK(child_processes().empty());
}

TEST_CASE("a helper has nothing of the trainer but what it was given", "[writing][process_writer]") {
  const temporary_directory scratch;
  const int inherited = ::open("/dev/zero", O_RDONLY);
  REQUIRE(inherited > 0);
  const auto writer = writers::process_queue();
  write_now(writer, scratch / "a", pattern(10, 1));
  const auto helper = only_child();
  ::close(inherited);
  for (const auto& entry : fs::directory_iterator("/proc/" + std::to_string(helper) + "/fd")) {
    const auto what = fs::read_symlink(entry.path()).string();
    INFO(what);
    const bool expected = what == "/dev/null" || contains(what, "socket:") || contains(what, "pidfd");
    CHECK(expected);
  }
  CHECK(::getsid(helper) == helper);
  CHECK(fs::read_symlink("/proc/" + std::to_string(helper) + "/cwd") == "/");
}

TEST_CASE("helpers are started where the standard descriptors are closed", "[writing][process_writer]") {
  const temporary_directory scratch;
  const auto child = start_child([&] {
    for (int number = 0; number < 20; ++number) ::close(number);
    for (const auto& each : kinds) {
      const auto writer = each.make({});
      write_now(writer, scratch / each.name, pattern(10, 1));
      close_now(writer);
    }
    return 0;
  });
  CHECK(wait_for(child) == 0);
  CHECK(names_in(scratch.path()) == std::vector<std::string>{"process", "process_queue"});
}

TEST_CASE("signals to everybody do not end a helper", "[writing][process_writer]") {
  const temporary_directory scratch;
  const stopped_queue queue(scratch.path());
  in_flight writing([&] { return write_image(queue.writer(), scratch / "file", pattern(1000, 1)); });
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGPIPE}) ::kill(queue.helper(), number);
  queue.go_on();
  writing.finish();
  CHECK(holds(scratch / "file", pattern(1000, 1)));
  CHECK(only_child() == queue.helper());
}

TEST_CASE("the training thread goes on while a helper writes", "[writing][process_writer]") {
  const temporary_directory scratch;
  const stopped_queue queue(scratch.path());
  in_flight writing([&] { return write_image(queue.writer(), scratch / "file", pattern(1000, 1)); });
  CHECK_FALSE(writing.finished());
  writing.poll();
  CHECK_FALSE(writing.finished());
  queue.go_on();
  writing.finish();
}

TEST_CASE("errors of the helper are those of the trainer", "[writing][process_writer]") {
  for (const auto& each : kinds) {
    INFO(each.name);
    const temporary_directory scratch;
    const auto writer = each.make({});
    fs::create_directory(scratch / "directory");
    const auto simple = failure_of([&] { save(*writing::posix_file_system(), scratch / "directory", pattern(10, 1)); });
    const auto found = failure_of([&] { write_now(writer, scratch / "directory", pattern(10, 1)); });
    CHECK(std::string(found.what()) == simple.what());
    CHECK(found.code() == simple.code());
    CHECK(found.operation() == simple.operation());
    CHECK(found.path() == simple.path());
    const auto no_advice = failure_of([&] { write_now(writer, scratch / std::string(255, 'x'), pattern(10, 1)); });
    CHECK(no_advice.code() == std::errc::filename_too_long);
    const auto too_long = failure_of([&] { write_now(writer, scratch / std::string(5000, 'x'), pattern(10, 1)); });
    CHECK(too_long.code() == std::errc::filename_too_long);
    write_now(writer, scratch / "file", pattern(10, 1));
    CHECK(names_in(scratch.path()) == std::vector<std::string>{"directory", "file"});
  }
}

TEST_CASE("a full disk is the error that it is for the trainer", "[writing][process_writer]") {
  const temporary_directory scratch;
  if (::mount("tmpfs", scratch.path().c_str(), "tmpfs", 0, "size=2m") != 0) {
    WARN("not allowed to mount a small file system: not tested");
    return;
  }
  for (const auto& each : kinds) {
    INFO(each.name);
    const auto writer = each.make({});
    const auto found = failure_of([&] { write_now(writer, scratch / "file", pattern(3 << 20, 1)); });
    CHECK(found.code() == std::errc::no_space_on_device);
    CHECK(mentions(found, "3145728 bytes needed"));
    CHECK(names_in(scratch.path()).empty());
    write_now(writer, scratch / "file", pattern(1000, 1));
    fs::remove(scratch / "file");
    close_now(writer);
  }
  CHECK(::umount(scratch.path().c_str()) == 0);
}

TEST_CASE("the limit on file sizes is an error and no signal", "[writing][process_writer]" THREADS_AFTER_FORK) {
  const temporary_directory scratch;
  const auto child = start_child([&] {
    const auto writer = writers::process_queue();
    const auto content = pattern(3'000'000, 1);
    write_now(writer, scratch / "before", content);
    close_now(writer);
    const rlimit limit{100'000, 100'000};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return 2;
    try {
      write_now(writer, scratch / "file", content);
    } catch (const io_error& error) {
      return error.code() == std::errc::file_too_large ? 0 : 3;
    }
    return 4;
  });
  CHECK(wait_for(child) == 0);
  CHECK(names_in(scratch.path()) == std::vector<std::string>{"before"});
}

TEST_CASE("a helper that is killed is an error at once", "[writing][process_writer]") {
  const temporary_directory scratch;
  write_text(scratch / "file", "old");
  const stopped_queue queue(scratch.path());
  in_flight first([&] { return write_image(queue.writer(), scratch / "file", pattern(1000, 1)); });
  in_flight second([&] { return write_image(queue.writer(), scratch / "second", pattern(1000, 2)); });
  CHECK(names_in(scratch.path()).size() == 4);
  ::kill(queue.helper(), SIGKILL);
  const auto found = failure_of([&] { first.finish(); });
  CHECK(found.code() == std::errc::broken_pipe);
  CHECK(found.path() == scratch / "file");
  CHECK(mentions(found, "helper process " + std::to_string(queue.helper()) + " was killed by signal 9"));
  CHECK(status_of(queue.helper()).state == 'X');
  CHECK(read_file(scratch / "file").size() == 3);
  second.finish();
  CHECK(names_in(scratch.path()) == std::vector<std::string>{"file", "first", "second"});
}

TEST_CASE("what waited behind a killed helper goes to another one", "[writing][process_writer]") {
  const temporary_directory scratch;
  const stopped_queue queue(scratch.path());
  bool failed = false;
  auto first = [&]() -> task<> {
    try {
      co_await write_image(queue.writer(), scratch / "a", pattern(1000, 1));
    } catch (const io_error&) {
      failed = true;
    }
  };
  auto second = [&]() -> task<> { co_await write_image(queue.writer(), scratch / "b", pattern(1000, 2)); };
  in_flight writing([&]() -> task<> {
    auto both = [&](scope& children) -> task<> {
      children.spawn([&] { return first(); });
      children.spawn([&] { return second(); });
      co_return;
    };
    co_await with_scope(both);
  });
  ::kill(queue.helper(), SIGKILL);
  writing.finish();
  CHECK(failed);
  CHECK(names_in(scratch.path()) == std::vector<std::string>{"b", "first"});
  CHECK(holds(scratch / "b", pattern(1000, 2)));
  CHECK(only_child() != queue.helper());
}

TEST_CASE("a helper that dies between two files is replaced", "[writing][process_writer]") {
  const temporary_directory scratch;
  const auto writer = writers::process_queue();
  write_now(writer, scratch / "a", pattern(10, 1));
  const auto helper = only_child();
  ::kill(helper, SIGKILL);
  REQUIRE(ended(helper));
  write_now(writer, scratch / "b", pattern(10, 1));
  CHECK(names_in(scratch.path()) == std::vector<std::string>{"a", "b"});
  CHECK(only_child() != helper);
}

TEST_CASE("helpers killed at any moment leave the old file or the new one", "[writing][process_writer]") {
  const temporary_directory scratch;
  const auto target = scratch / "file";
  const auto content = pattern(3'000'000, 1);
  const auto writer = writers::process();
  std::mt19937_64 random(5);
  int failures = 0;
  for (int round = 0; round < 60; ++round) {
    fs::remove(target);
    in_flight writing([&] { return write_image(writer, target, content); });
    const auto helpers = child_processes();
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 8000));
    for (const auto helper : helpers) ::kill(helper, SIGKILL);
    try {
      writing.finish();
      REQUIRE(holds(target, content));
    } catch (const io_error& error) {
      ++failures;
      REQUIRE(error.code() == std::errc::broken_pipe);
      if (fs::exists(target)) REQUIRE(holds(target, content));
    }
    REQUIRE(child_processes().empty());
    fs::remove(target);
    REQUIRE(names_in(scratch.path()).empty());
  }
  CHECK(failures > 0);
}

TEST_CASE("a helper that takes too long is killed", "[writing][process_writer]") {
  const temporary_directory scratch;
  write_text(scratch / "file", "old");
  const stopped_queue queue(scratch.path(), with_timeout(std::chrono::milliseconds(30'000)));
  const auto quick = writers::process_queue(with_timeout(std::chrono::milliseconds(50)));
  SECTION("a helper that does not do anything") {
    // Within 50 ms an honest helper may not be done either, therefore until one was.
    const auto wrote = [&] {
      try {
        write_now(quick, scratch / "file", pattern(10, 1));
        return true;
      } catch (const io_error&) {
        return false;
      }
    };
    REQUIRE(eventually(wrote));
    auto processes = child_processes();
    processes.erase(std::remove(processes.begin(), processes.end(), queue.helper()), processes.end());
    REQUIRE(processes.size() == 1);
    stop(processes.front());
    const auto found = failure_of([&] { write_now(quick, scratch / "slow", pattern(1000, 1)); });
    CHECK(found.code() == std::errc::timed_out);
    CHECK(mentions(found, "50 ms"));
    CHECK(mentions(found, std::to_string(processes.front())));
    CHECK(status_of(processes.front()).state == 'X');
    CHECK(names_in(scratch.path()) == std::vector<std::string>{"file", "first"});
    REQUIRE(eventually(wrote));
  }
  SECTION("a helper that is quick enough is not") {
    in_flight writing([&] { return write_image(queue.writer(), scratch / "file", pattern(1000, 1)); });
    queue.go_on();
    writing.finish();
    CHECK(holds(scratch / "file", pattern(1000, 1)));
  }
}

TEST_CASE("files are written in the order of the calls", "[writing][process_writer]") {
  for (const auto& each : kinds) {
    INFO(each.name);
    const temporary_directory scratch;
    writers::process_options options;
    options.capacity = 20;
    const auto writer = each.make(options);
    std::vector<int> order;
    auto all = [&](scope& children) -> task<> {
      for (int i = 0; i < 20; ++i) {
        children.spawn([&, i]() -> task<> {
          const auto content = pattern(1000 + (i == 0) * 900'000U, static_cast<unsigned>(i));
          co_await write_image(writer, scratch / "file", content);
          order.push_back(i);
        });
      }
      co_return;
    };
    run_task([&] { return with_scope(all); });
    CHECK(order.size() == 20);
    CHECK(std::is_sorted(order.begin(), order.end()));
    CHECK(holds(scratch / "file", pattern(1000, 19)));
    close_now(writer);
    CHECK(child_processes().empty());
  }
}

TEST_CASE("a full process writer does as it is told", "[writing][process_writer]") {
  const temporary_directory scratch;
  writers::process_options options;
  SECTION("skip") {
    options.full = writing::when_full::skip;
    const stopped_queue queue(scratch.path(), options);
    in_flight first([&] { return write_image(queue.writer(), scratch / "a", pattern(10, 1)); });
    in_flight second([&] { return write_image(queue.writer(), scratch / "b", pattern(10, 2)); });
    auto body = [&]() -> task<bool> {
      const auto slot = co_await queue.writer()->memory()->acquire(10);
      co_return slot != nullptr;
    };
    CHECK_FALSE(run_task([&] { return body(); }));
    queue.go_on();
    first.finish();
    second.finish();
    CHECK(names_in(scratch.path()) == std::vector<std::string>{"a", "b", "first"});
  }
  SECTION("replace") {
    options.full = writing::when_full::replace;
    const stopped_queue queue(scratch.path(), options);
    std::string superseded;
    auto write = [&](const char* name) -> task<> {
      const std::string target(name);
      try {
        co_await write_image(queue.writer(), scratch / target, pattern(10, 1));
      } catch (const writing::write_superseded& e) {
        superseded += e.what();
      }
    };
    auto all = [&](scope& children) -> task<> {
      for (const char* name : {"a", "b", "c"}) children.spawn([&write, name] { return write(name); });
      co_return;
    };
    in_flight writing([&]() -> task<> { co_await with_scope(all); });
    queue.go_on();
    writing.finish();
    CHECK(names_in(scratch.path()) == std::vector<std::string>{"a", "c", "first"});
    CHECK(contains(superseded, "/b'"));
  }
  SECTION("wait") {
    const stopped_queue queue(scratch.path(), options);
    auto all = [&](scope& children) -> task<> {
      for (const char* name : {"a", "b", "c", "d"}) {
        children.spawn([&, name]() -> task<> {
          const std::string target(name);
          co_await write_image(queue.writer(), scratch / target, pattern(10, 1));
        });
      }
      co_return;
    };
    in_flight writing([&]() -> task<> { co_await with_scope(all); });
    CHECK_FALSE(writing.finished());
    queue.go_on();
    writing.finish();
    CHECK(names_in(scratch.path()) == std::vector<std::string>{"a", "b", "c", "d", "first"});
  }
}

TEST_CASE("closing waits for everything that was handed over", "[writing][process_writer]") {
  for (const auto full : {writing::when_full::wait, writing::when_full::replace}) {
    for (const auto& each : kinds) {
      INFO(each.name);
      const temporary_directory scratch;
      writers::process_options options;
      options.full = full;
      const auto writer = each.make(options);
      std::vector<std::string> after;
      auto body = [&](scope& children) -> task<> {
        children.spawn([&]() -> task<> { co_await write_image(writer, scratch / "a", pattern(900'000, 1)); });
        children.spawn([&]() -> task<> { co_await write_image(writer, scratch / "b", pattern(900'000, 2)); });
        children.spawn([&]() -> task<> {
          co_await writer->close();
          after = names_in(scratch.path());
        });
        co_return;
      };
      run_task([&] { return with_scope(body); });
      CHECK(after == std::vector<std::string>{"a", "b"});
      CHECK(child_processes().empty());
    }
  }
}

TEST_CASE("cancelling a write that was handed over changes nothing", "[writing][process_writer]") {
  const temporary_directory scratch;
  const stopped_queue queue(scratch.path());
  bool written = false;
  in_flight writing([&]() -> task<> {
    co_await write_image(queue.writer(), scratch / "file", pattern(1000, 1));
    written = true;
  });
  writing.cancel();
  writing.poll();
  CHECK_FALSE(writing.finished());
  queue.go_on();
  writing.finish();
  CHECK(written);
  CHECK(holds(scratch / "file", pattern(1000, 1)));
}

TEST_CASE("an event loop destroyed while a helper writes", "[writing][process_writer]") {
  const temporary_directory scratch;
  SECTION("leaves the file to the helper, and the next use waits") {
    const stopped_queue queue(scratch.path());
    {
      in_flight writing([&] { return write_image(queue.writer(), scratch / "file", pattern(100'000, 1)); });
      CHECK_FALSE(writing.finished());
    }
    CHECK(names_in(scratch.path()).size() == 2);
    queue.go_on();
    REQUIRE(queue.writer()->memory() != nullptr);
    CHECK(holds(scratch / "file", pattern(100'000, 1)));
    write_now(queue.writer(), scratch / "next", pattern(10, 1));
    CHECK(names_in(scratch.path()) == std::vector<std::string>{"file", "first", "next"});
  }
  SECTION("also if the writer is destroyed before") {
    stopped_queue queue(scratch.path());
    {
      in_flight writing([writer = queue.writer(), target = scratch / "file"]() mutable {
        return write_image(std::exchange(writer, nullptr), target, pattern(100'000, 1));
      });
      queue.release();
      CHECK_FALSE(writing.finished());
    }
    queue.go_on();
    CHECK(ended(queue.helper()));
    CHECK(holds(scratch / "file", pattern(100'000, 1)));
    CHECK(wait_for(queue.helper()) == 0);
  }
  SECTION("at any moment") {
    for (const auto& each : kinds) {
      const auto writer = each.make({});
      unsigned seed = 0;
      const auto points = support::abandon_everywhere([&](support::world&) -> task<> {
        const support::tracked here;
        co_await write_image(writer, scratch / "file", pattern(1000, ++seed));
        co_await write_image(writer, scratch / "file", pattern(1000, ++seed));
        co_await writer->close();
      });
      CHECK(points > 5);
      CHECK(holds(scratch / "file", pattern(1000, seed)));
      CHECK(names_in(scratch.path()) == std::vector<std::string>{"file"});
      CHECK(child_processes().empty());
    }
  }
}

namespace {

// A trainer that hands files over and is killed then. Returns its helpers.
template <class Prepare>
std::vector<pid_t> killed_trainer(const kind& each, const fs::path& directory, std::size_t size, Prepare prepare) {
  std::array<int, 2> report{};
  REQUIRE(::pipe(report.data()) == 0);
  const auto child = start_child([&] {
    const auto writer = each.make({});
    prepare(writer);
    handed_over = 0;
    auto both = [&](scope& children) -> task<> {
      children.spawn([&]() -> task<> { co_await write_image(writer, directory / "a", pattern(size, 1)); });
      children.spawn([&]() -> task<> { co_await write_image(writer, directory / "b", pattern(size, 2)); });
      children.spawn([&]() -> task<> {
        while (handed_over < 2) co_await support::turn();
        for (const auto helper : child_processes()) {
          if (::write(report[1], &helper, sizeof helper) != sizeof helper) ::_exit(3);
        }
        ::raise(SIGKILL);
      });
      co_return;
    };
    run_task([&] { return with_scope(both); });
    return 1;
  });
  ::close(report[1]);
  REQUIRE(wait_for(child) == -SIGKILL);
  std::vector<pid_t> helpers;
  pid_t helper = 0;
  while (::read(report[0], &helper, sizeof helper) == sizeof helper) helpers.push_back(helper);
  ::close(report[0]);
  return helpers;
}

}  // namespace

TEST_CASE("files that were handed over are written when the trainer is killed",
          "[writing][process_writer][kill]" THREADS_AFTER_FORK) {
  for (const auto& each : kinds) {
    for (const std::size_t size : {1'000, 17'000'000}) {
      INFO(each.name << " " << size);
      const temporary_directory scratch;
      const auto helpers = killed_trainer(each, scratch.path(), size, [](const writer_pointer&) {});
      CHECK(helpers.size() >= 1);
      auto& files = *writing::posix_file_system();
      CHECK(writing::wait_for_live_temporaries(files, scratch.path(), std::chrono::seconds(60)).empty());
      CHECK(writing::remove_stale_temporaries(files, scratch.path()).empty());
      CHECK(names_in(scratch.path()) == std::vector<std::string>{"a", "b"});
      CHECK(holds(scratch / "a", pattern(size, 1)));
      CHECK(holds(scratch / "b", pattern(size, 2)));
      for (const auto helper : helpers) CHECK(ended(helper));
    }
  }
}

TEST_CASE("a new trainer sees what the helper of a killed one still has to write", "[writing][process_writer][kill]") {
  const temporary_directory scratch;
  const temporary_directory elsewhere;
  const auto helpers = killed_trainer(kinds[1], scratch.path(), 1000, [&](const writer_pointer& writer) {
    write_now(writer, elsewhere / "first", pattern(10, 1));
    stop(only_child());
  });
  REQUIRE(helpers.size() == 1);
  auto& files = *writing::posix_file_system();
  const auto live = writing::live_temporaries(files, scratch.path());
  REQUIRE(live.size() == 2);
  for (const auto& each : live) CHECK(each.process == helpers.front());
  CHECK(writing::remove_stale_temporaries(files, scratch.path()).empty());
  CHECK(writing::wait_for_live_temporaries(files, scratch.path(), std::chrono::milliseconds(20)).size() == 2);
  ::kill(helpers.front(), SIGCONT);
  CHECK(writing::wait_for_live_temporaries(files, scratch.path(), std::chrono::seconds(60)).empty());
  CHECK(names_in(scratch.path()) == std::vector<std::string>{"a", "b"});
}

TEST_CASE("a helper whose trainer and file are gone is no live temporary", "[writing][process_writer][kill]") {
  const temporary_directory scratch;
  const temporary_directory elsewhere;
  const auto helpers = killed_trainer(kinds[1], scratch.path(), 1000, [&](const writer_pointer& writer) {
    write_now(writer, elsewhere / "first", pattern(10, 1));
    stop(only_child());
  });
  REQUIRE(helpers.size() == 1);
  ::kill(helpers.front(), SIGKILL);
  REQUIRE(ended(helpers.front()));
  auto& files = *writing::posix_file_system();
  // A zombie that nobody collects still has its number.
  if (status_of(helpers.front()).state == 'X') {
    CHECK(writing::live_temporaries(files, scratch.path()).empty());
    CHECK(writing::remove_stale_temporaries(files, scratch.path()).size() == 2);
    CHECK(names_in(scratch.path()).empty());
  }
}

TEST_CASE("programs that wait for all children themselves can use helpers", "[writing][process_writer]") {
  const temporary_directory scratch;
  const auto child = start_child([&] {
    ::signal(SIGCHLD, SIG_IGN);
    for (const auto& each : kinds) {
      const auto writer = each.make({});
      for (int i = 0; i < 5; ++i) write_now(writer, scratch / each.name, pattern(10, 1));
      close_now(writer);
    }
    const stopped_queue queue(scratch.path());
    ::kill(queue.helper(), SIGKILL);
    try {
      write_now(queue.writer(), scratch / "file", pattern(10, 1));
    } catch (const io_error& e) {
      return e.code() == std::errc::broken_pipe ? 0 : 2;
    }
    return 0;
  });
  CHECK(wait_for(child) == 0);
}

TEST_CASE("where memory may not be executed the helper starts from a file", "[writing][process_writer]") {
  const temporary_directory scratch;
  const char* const before = std::getenv("TMPDIR");
  const std::string restored = before == nullptr ? "" : before;
  ::setenv("TMPDIR", scratch.path().c_str(), 1);
  writing::helper::program program(writing::helper::program::place::file);
  {
    const auto helper = writing::helper::process::start(program, scratch / "file");
    CHECK(names_in(scratch.path()).empty());
    CHECK_FALSE(helper->ending());
    helper->finish();
    REQUIRE(eventually([&] { return helper->ending().has_value(); }));
    CHECK(*helper->ending() == "exited with code 0");
  }
  if (before == nullptr) {
    ::unsetenv("TMPDIR");
  } else {
    ::setenv("TMPDIR", restored.c_str(), 1);
  }
  CHECK(child_processes().empty());
}

TEST_CASE("a helper that cannot be started is an error", "[writing][process_writer]") {
  const temporary_directory scratch;
  const auto child = start_child([&] {
    const auto writer = writers::process();
    write_now(writer, scratch / "before", pattern(10, 1));
    int result = 1;
    auto body = [&]() -> task<> {
      const rlimit limit{open_descriptors() - 1, open_descriptors() - 1};
      ::setrlimit(RLIMIT_NOFILE, &limit);
      try {
        co_await write_image(writer, scratch / "file", pattern(10, 1));
      } catch (const io_error& e) {
        result = e.code() == std::errc::too_many_files_open && e.path() == scratch / "file" ? 0 : 2;
      }
    };
    run_task([&] { return body(); });
    return result;
  });
  CHECK(wait_for(child) == 0);
}

TEST_CASE("messages between trainer and helper", "[writing][process_writer]") {
  namespace helper = writing::helper;
  helper::job_message job;
  job.number = 7;
  job.size = 100;
  job.spots = 3;
  job.spots_offset = 104;
  job.target = "/a/b";
  job.announcement = "/a/.b";
  const auto packed = helper::pack(job);
  const auto unpacked = helper::unpack_job(packed);
  REQUIRE(unpacked.has_value());
  CHECK(unpacked->number == 7);
  CHECK(unpacked->spots_offset == 104);
  CHECK(unpacked->target == "/a/b");
  CHECK(unpacked->announcement == "/a/.b");
  for (std::size_t size = 0; size < packed.size(); ++size) {
    CHECK_FALSE(helper::unpack_job(std::span(packed).first(size)).has_value());
  }
  auto longer = packed;
  longer.push_back(std::byte{0});
  CHECK_FALSE(helper::unpack_job(longer).has_value());
  auto other_version = packed;
  other_version[0] = std::byte{99};
  CHECK_FALSE(helper::unpack_job(other_version).has_value());

  const auto returned = [](const std::exception_ptr& failure) {
    helper::reply_message reply;
    helper::put_failure(reply, "/target", failure);
    const auto arrived = helper::unpack_reply(helper::pack(reply));
    REQUIRE(arrived.has_value());
    return helper::failure_in(*arrived);
  };
  const io_error full("write", "/a", std::make_error_code(std::errc::no_space_on_device), "free some; or more");
  CHECK(failure_of([&] { std::rethrow_exception(returned(std::make_exception_ptr(full))); }).what() ==
        std::string(full.what()));
  const format_error odd("image", 17, "it is odd");
  CHECK(message_of<format_error>([&] { std::rethrow_exception(returned(std::make_exception_ptr(odd))); }) ==
        odd.what());
  const auto memory = failure_of([&] { std::rethrow_exception(returned(std::make_exception_ptr(std::bad_alloc()))); });
  CHECK(memory.code() == std::errc::not_enough_memory);
  CHECK(memory.path() == "/target");
  CHECK(contains(message_of<error>(
                     [&] { std::rethrow_exception(returned(std::make_exception_ptr(std::runtime_error("strange")))); }),
                 "strange"));
  helper::reply_message reply;
  const auto good = helper::pack(reply);
  for (std::size_t size = 0; size < good.size(); ++size) {
    CHECK_FALSE(helper::unpack_reply(std::span(good).first(size)).has_value());
  }
}

}  // namespace writing_process_writer_test

#include "rondo/writing/thread_writer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "rondo/async/scope.hpp"
#include "rondo/checkpoint/crc32.hpp"
#include "rondo/error.hpp"
#include "rondo/writing/memory_file_system.hpp"
#include "rondo/writing/staged_writer.hpp"
#include "support/abandon.hpp"
#include "support/gate.hpp"
#include "support/temporary_directory.hpp"
#include "support/writing.hpp"

namespace writing_thread_writer_test {

using namespace rondo;
using namespace rondo::testing;
using namespace std::chrono_literals;
using support::tracked;
using support::turn;
using support::world;
using writing::file_image;
using writing::memory_file_system;
using writing::operation;
using writing::when_full;
using writing::write_receipt;
using writing::write_request;

namespace {

using writer_pointer = std::shared_ptr<writing::writer>;
using limit = std::optional<std::chrono::steady_clock::duration>;

// Both kinds of writers with a thread.
writer_pointer make(const std::string& kind, std::shared_ptr<writing::file_system> files, std::size_t capacity = 2,
                    when_full full = when_full::wait, limit timeout = std::nullopt) {
  if (kind == "thread") {
    return writers::thread({.capacity = capacity, .full = full, .timeout = timeout, .files = std::move(files)});
  }
  return writers::thread_queue({.capacity = capacity, .full = full, .timeout = timeout, .files = std::move(files)});
}

template <class Body>
void run(Body body) {
  world w;
  auto started = [&]() -> task<> { return body(w); };
  support::run(w, started);
}

// Takes `content` into the writer's memory, as a snapshot does.
task<file_image> staged(writing::writer& writer, const bytes& content) {
  auto slot = co_await writer.memory()->acquire(file_image::memory_for(content.size(), 0));
  if (slot == nullptr) throw std::logic_error("skipped");
  file_image image(std::move(slot), content.size(), 0);
  std::copy(content.begin(), content.end(), image.bytes().begin());
  co_return image;
}

task<write_receipt> save_image(writing::writer& writer, writing::path target, const bytes& content) {
  file_image image = co_await staged(writer, content);
  write_request request(std::move(target), std::move(image));
  write_receipt receipt = co_await writer.write(std::move(request));
  co_return receipt;
}

template <class Error>
task<std::string> message(task<write_receipt> write) {
  std::string text;
  try {
    co_await std::move(write);
  } catch (const Error& error) {
    text = error.what();
  }
  co_return text;
}

}  // namespace

TEST_CASE("writers with threads write images elsewhere", "[writing][thread_writer]") {
  const std::string kind = GENERATE("thread", "thread_queue");
  const auto files = std::make_shared<memory_file_system>();
  std::vector<std::thread::id> threads;
  files->observe([&](operation what, const auto&) {
    if (what == operation::create) threads.push_back(std::this_thread::get_id());
  });
  const auto writer = make(kind, files);
  CHECK(writer->name() == kind);
  REQUIRE(writer->memory() != nullptr);
  run([&](world&) -> task<> {
    for (int i = 0; i < 3; ++i) {
      const auto content = pattern(10'000, static_cast<std::uint64_t>(i));
      const auto receipt = co_await save_image(*writer, "/" + std::to_string(i), content);
      CHECK(receipt.bytes == content.size());
      CHECK(receipt.target == "/" + std::to_string(i));
      CHECK(files->read(receipt.target) == content);
    }
  });
  REQUIRE(threads.size() == 3);
  CHECK(std::count(threads.begin(), threads.end(), std::this_thread::get_id()) == 0);
  if (kind == "thread_queue") CHECK(std::count(threads.begin(), threads.end(), threads.front()) == 3);
}

TEST_CASE("an image is sealed before it is written", "[writing][thread_writer]") {
  const temporary_directory scratch;
  const auto writer = make(GENERATE("thread", "thread_queue"), writing::posix_file_system());
  const std::size_t part = (20 << 20) + 17;
  const auto content = pattern(part + 24, 1);
  run([&](world&) -> task<> {
    auto slot = co_await writer->memory()->acquire(file_image::memory_for(content.size(), 1));
    file_image image(std::move(slot), content.size(), 1);
    std::copy(content.begin(), content.end(), image.bytes().begin());
    const checkpoint::checksum_spot spot{0, part, part, part + 4, part + 8};
    image.spots()[0] = spot;
    write_request request(scratch / "file", std::move(image));
    co_await writer->write(std::move(request));
  });
  auto expected = content;
  const auto checksum = checkpoint::crc32(std::span(content).first(part));
  for (std::size_t i = 0; i < 4; ++i) {
    expected[part + i] = expected[part + 4 + i] = static_cast<std::byte>(checksum >> (8 * i) & 0xff);
  }
  const auto digits = fmt::format("{:08x}", checksum);
  std::transform(digits.begin(), digits.end(), expected.begin() + static_cast<std::ptrdiff_t>(part + 8),
                 [](char digit) { return static_cast<std::byte>(digit); });
  CHECK(read_file(scratch / "file") == expected);
}

TEST_CASE("files are written one at a time in the order of the calls", "[writing][thread_writer]") {
  const auto files = std::make_shared<memory_file_system>();
  std::vector<std::string> order;
  files->observe([&](operation what, const writing::path& name) {
    if (what == operation::rename) order.push_back(name.filename());
  });
  const auto writer = make(GENERATE("thread", "thread_queue"), files, 3);
  const auto content = pattern(100, 1);
  run([&](world& w) -> task<> {
    scope children(w.home());
    for (int i = 0; i < 9; ++i) {
      children.spawn([&, i]() -> task<> { co_await save_image(*writer, "/" + std::to_string(i), content); });
    }
    co_await children.join();
  });
  CHECK(order == std::vector<std::string>{"0", "1", "2", "3", "4", "5", "6", "7", "8"});
  CHECK(writer->memory()->peak_bytes() <= 3 * 4096);
}

TEST_CASE("training goes on while a sync takes long, and what is full does as it was told",
          "[writing][thread_writer][reliability]") {
  const std::string kind = GENERATE("thread", "thread_queue");
  const auto full = GENERATE(when_full::wait, when_full::skip, when_full::replace);
  const auto files = std::make_shared<memory_file_system>();
  gate disk;
  files->observe([&](operation what, const auto&) {
    if (what == operation::sync) disk.pass();
  });
  const auto writer = make(kind, files, 2, full);
  run([&](world& w) -> task<> {
    const auto content = pattern(100, 1);
    std::vector<std::string> ends(4);
    scope snapshots(w.home());
    const auto snapshot = [&](std::size_t number) {
      snapshots.spawn([&, number]() -> task<> {
        try {
          co_await save_image(*writer, "/" + std::to_string(number), content);
          ends[number] = "written";
        } catch (const writing::write_superseded& error) {
          ends[number] = "replaced";
          CHECK(mentions(error, "'/1' was not written"));
        } catch (const std::logic_error&) {
          ends[number] = "skipped";
        }
      });
    };
    snapshot(0);
    snapshot(1);
    for (int i = 0; i < 10; ++i) co_await turn();
    disk.await_arrival();
    // The first is at the disk, the second in the queue.
    snapshot(2);
    int iterations = 0;
    for (; iterations < 1000; ++iterations) co_await turn();
    CHECK(ends[0].empty());
    disk.open();
    co_await snapshots.join();
    CHECK(ends[0] == "written");
    CHECK(ends[1] == (full == when_full::replace ? "replaced" : "written"));
    CHECK(ends[2] == (full == when_full::skip ? "skipped" : "written"));
    CHECK(files->read("/1").has_value() == (full != when_full::replace));
    CHECK(files->read("/2").has_value() == (full != when_full::skip));
  });
  CHECK(writer->memory()->peak_bytes() == 2 * 4096);
}

TEST_CASE("a failure is known at once, and the next file is a new attempt", "[writing][thread_writer][faults]") {
  const std::string kind = GENERATE("thread", "thread_queue");
  for (const auto what : {operation::create, operation::append, operation::sync, operation::close, operation::rename}) {
    const auto files = std::make_shared<memory_file_system>();
    const auto writer = make(kind, files);
    const auto content = pattern(10'000, 1);
    run([&](world&) -> task<> {
      files->fail(what, 1, ENOSPC);
      const auto text = co_await message<io_error>(save_image(*writer, "/file", content));
      CHECK(text.find("No space left on device") != std::string::npos);
      CHECK(files->list("/").empty());
      const auto receipt = co_await save_image(*writer, "/file", content);
      CHECK(receipt.bytes == content.size());
    });
    CHECK(files->read("/file") == content);
    CHECK(writer->memory()->peak_bytes() <= 2 * writing::file_image::memory_for(10'000, 0) + 8192);
  }
}

TEST_CASE("a write that takes too long fails, and what it holds is given up", "[writing][thread_writer][timeout]") {
  const std::string kind = GENERATE("thread", "thread_queue");
  const auto files = std::make_shared<memory_file_system>();
  const auto disk = std::make_shared<gate>();
  const auto hung = std::make_shared<std::atomic<bool>>(false);
  files->observe([disk, hung](operation what, const auto&) {
    if (what == operation::sync && !hung->exchange(true)) disk->pass();
  });
  const auto content = pattern(100, 1);
  {
    const auto writer = make(kind, files, 2, when_full::wait, 1s);
    auto& staging = *writer->memory();
    run([&](world&) -> task<> {
      std::string text;
      const std::byte* lost = nullptr;
      {
        file_image image = co_await staged(*writer, content);
        lost = image.bytes().data();
        write_request request("/late", std::move(image));
        try {
          co_await writer->write(std::move(request));
        } catch (const io_error& error) {
          text = error.what();
          CHECK(error.code() == std::errc::timed_out);
          CHECK(error.path() == "/late");
          CHECK(error.operation() == "sync");
        }
      }
      CHECK(text.find("after 1 s") != std::string::npos);
      CHECK(text.find("will not get its name") != std::string::npos);
      co_await writer->close();

      // A new thread, and other memory than that which the lost one may still read.
      for (int i = 0; i < 3; ++i) {
        file_image image = co_await staged(*writer, content);
        CHECK(image.bytes().data() != lost);
        write_request request("/next", std::move(image));
        co_await writer->write(std::move(request));
      }
      CHECK(files->read("/next") == content);
      CHECK_FALSE(files->read("/late").has_value());

      // It comes back: its memory is free again, its file is not committed.
      disk->open();
      const auto one = co_await staging.acquire(1);
      const auto two = co_await staging.acquire(1);
      CHECK((one->memory().data() == lost || two->memory().data() == lost));
    });
    CHECK_FALSE(files->read("/late").has_value());
    CHECK(files->count(operation::rename) == 3);
    CHECK(staging.peak_bytes() == 2 * 4096);
  }
}

TEST_CASE("when all memory is lost the next file is an error and not a wait", "[writing][thread_writer][timeout]") {
  const auto files = std::make_shared<memory_file_system>();
  const auto disk = std::make_shared<gate>();
  files->observe([disk](operation what, const auto&) {
    if (what == operation::create) disk->pass();
  });
  const auto writer = make(GENERATE("thread", "thread_queue"), files, 1, when_full::wait, 20ms);
  const auto content = pattern(100, 1);
  run([&](world&) -> task<> {
    const auto first = co_await message<io_error>(save_image(*writer, "/file", content));
    CHECK(first.find("cannot create '/file'") != std::string::npos);
    const auto second = co_await message<io_error>(save_image(*writer, "/file", content));
    CHECK(second.find("all of its 1 blocks") != std::string::npos);
    co_await writer->close();
    disk->open();
    // The lost thread finds that it was given up, cleans up and lets go.
    std::string third = "not yet";
    while (!third.empty()) third = co_await message<io_error>(save_image(*writer, "/file", content));
  });
  CHECK(files->read("/file") == content);
}

TEST_CASE("a write that is done in time knows nothing of its limit", "[writing][thread_writer][timeout]") {
  const temporary_directory scratch;
  const auto writer = make(GENERATE("thread", "thread_queue"), writing::posix_file_system(), 2, when_full::wait, 1h);
  const auto content = pattern((17 << 20) + 5, 1);
  run([&](world&) -> task<> {
    co_await save_image(*writer, scratch.path() / "new" / "file", content);
    co_await save_image(*writer, scratch.path() / "new" / "file", content);
    co_await writer->close();
  });
  CHECK(read_file(scratch.path() / "new" / "file") == content);
  CHECK(names_in(scratch.path() / "new") == std::vector<std::string>{"file"});
}

TEST_CASE("impossible options of writers with threads are refused", "[writing][thread_writer]") {
  CHECK_THROWS_AS(writers::thread({.capacity = 0}), option_error);
  CHECK_THROWS_AS(writers::thread_queue({.capacity = 0}), option_error);
  CHECK_THROWS_AS(writers::thread({.timeout = 0s}), option_error);
  CHECK_THROWS_AS(writers::thread_queue({.timeout = -1s}), option_error);
}

TEST_CASE("an event loop that is destroyed leaves its file to the writer", "[writing][thread_writer][abandon]") {
  const std::string kind = GENERATE("thread", "thread_queue");
  const auto files = std::make_shared<memory_file_system>();
  gate disk;
  files->observe([&](operation what, const auto&) {
    if (what == operation::sync) disk.pass();
  });
  auto writer = make(kind, files);
  const auto content = pattern(100, 1);
  {
    world w;
    auto body = [&]() -> task<> {
      const tracked here;
      co_await save_image(*writer, "/first", content);
      FAIL("the event loop came back");
    };
    support::started root(w, body);
    w.loop.poll();
    disk.await_arrival();
  }
  CHECK(tracked::live == 0);
  CHECK_FALSE(files->read("/first").has_value());
  disk.open();
  SECTION("its destruction waits for that") { writer.reset(); }
  SECTION("so does closing it") {
    run([&](world&) -> task<> { return writer->close(); });
  }
  SECTION("the next file comes after it") {
    run([&](world&) -> task<> {
      co_await save_image(*writer, "/second", content);
      CHECK(files->read("/first") == content);
    });
  }
  CHECK(files->read("/first") == content);
}

TEST_CASE("abandoning writers with threads", "[writing][thread_writer][abandon]") {
  const auto files = std::make_shared<memory_file_system>();
  const auto full = GENERATE(when_full::wait, when_full::replace);
  const auto writer = make(GENERATE("thread", "thread_queue"), files, 2, full);
  const auto content = pattern(100, 1);
  const int places = support::abandon_everywhere([&](world& w) -> task<> {
    const tracked here;
    scope children(w.home());
    for (int i = 0; i < 4; ++i) {
      children.spawn([&, i]() -> task<> {
        const tracked child;
        try {
          co_await save_image(*writer, "/" + std::to_string(i), content);
        } catch (const writing::write_superseded&) {
        }
      });
    }
    co_await children.join();
    co_await writer->close();
  });
  CHECK(places > 10);
  run([&](world&) -> task<> { return writer->close(); });
  for (const auto& entry : files->list("/")) CHECK(entry.name.size() == 1);
  CHECK(writer->memory()->peak_bytes() <= 2 * 4096);
}

TEST_CASE("closing waits for all that was handed over, and is not the end", "[writing][thread_writer]") {
  const auto files = std::make_shared<memory_file_system>();
  const auto writer = make(GENERATE("thread", "thread_queue"), files, 3);
  const auto content = pattern(100, 1);
  run([&](world& w) -> task<> {
    co_await writer->close();
    scope children(w.home());
    for (int i = 0; i < 3; ++i) {
      children.spawn([&, i]() -> task<> { co_await save_image(*writer, "/" + std::to_string(i), content); });
    }
    co_await turn();
    co_await turn();
    co_await writer->close();
    CHECK(files->list("/").size() == 3);
    co_await children.join();
    co_await writer->close();
    co_await save_image(*writer, "/again", content);
    CHECK(files->read("/again") == content);
  });
}

TEST_CASE("a request without an image is staged while training waits", "[writing][thread_writer]") {
  const temporary_directory scratch;
  const auto writer = make(GENERATE("thread", "thread_queue"), writing::posix_file_system(), 1, when_full::skip);
  const auto content = pattern(100'000, 1);
  std::thread::id producing;
  run([&](world&) -> task<> {
    write_request live(scratch / "live", content.size(), [&](const writing::append_function& append) {
      producing = std::this_thread::get_id();
      append(std::span(content).first(3));
      append.stable(std::span(content).subspan(3));
    });
    const auto receipt = co_await writer->write(std::move(live));
    CHECK(receipt.bytes == content.size());
    for (const std::size_t announced : {content.size() - 1, content.size() + 1}) {
      write_request wrong(scratch / "wrong", announced, in_pieces(content, 1000));
      const auto text = co_await message<io_error>(writer->write(std::move(wrong)));
      CHECK(text.find("bytes were announced") != std::string::npos);
    }
  });
  CHECK(producing == std::this_thread::get_id());
  CHECK(read_file(scratch / "live") == content);
  CHECK(names_in(scratch.path()) == std::vector<std::string>{"live"});
}

TEST_CASE("a write that is cancelled in the queue is withdrawn", "[writing][thread_writer]") {
  const auto files = std::make_shared<memory_file_system>();
  gate disk;
  files->observe([&](operation what, const auto&) {
    if (what == operation::sync) disk.pass();
  });
  const auto writer = make(GENERATE("thread", "thread_queue"), files);
  const auto content = pattern(100, 1);
  world w;
  auto first = [&]() -> task<> { co_await save_image(*writer, "/first", content); };
  auto second = [&]() -> task<> { co_await save_image(*writer, "/second", content); };
  support::started begun(w, first);
  support::started queued(w, second);
  w.loop.poll();
  disk.await_arrival();
  begun.cancel();
  queued.cancel();
  w.loop.poll();
  CHECK(queued.finished());
  CHECK_FALSE(begun.finished());
  disk.open();
  w.loop.run();
  CHECK(files->read("/first") == content);
  CHECK_FALSE(files->read("/second").has_value());
}

}  // namespace writing_thread_writer_test

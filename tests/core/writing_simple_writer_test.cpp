#include "rondo/writing/simple_writer.hpp"

#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>
#include <asio/use_future.hpp>
#include <cerrno>
#include <thread>

#include "rondo/writing/memory_file_system.hpp"
#include "support/temporary_directory.hpp"
#include "support/writing.hpp"

namespace writing_simple_writer_test {

using namespace rondo;
using namespace rondo::testing;

namespace {

template <class T>
T run(task<T> work) {
  asio::io_context context(1);
  auto result = asio::co_spawn(context, std::move(work), asio::use_future);
  context.run();
  return result.get();
}

}  // namespace

TEST_CASE("the simple writer writes on the calling thread", "[writing][simple_writer]") {
  const temporary_directory scratch;
  const auto writer = writers::simple();
  CHECK(writer->name() == "simple");
  const auto content = pattern(10'000, 1);
  std::thread::id producing;
  const auto receipt = run(writer->write({scratch.path() / "file", content.size(), [&](const auto& append) {
                                            producing = std::this_thread::get_id();
                                            append(content);
                                          }}));
  CHECK(producing == std::this_thread::get_id());
  CHECK(receipt.bytes == content.size());
  CHECK(receipt.target == scratch.path() / "file");
  CHECK(read_file(scratch.path() / "file") == content);
}

TEST_CASE("the simple writer takes a serializer of the user's own", "[writing][simple_writer]") {
  const temporary_directory scratch;
  const auto receipt = run(writers::simple()->write(
      {scratch.path() / "file", [](const writing::path& temporary) { write_text(temporary, "mine"); }}));
  CHECK(receipt.bytes == 4);
  CHECK(names_in(scratch.path()) == std::vector<std::string>{"file"});
}

TEST_CASE("the simple writer reports errors and goes on", "[writing][simple_writer]") {
  const auto files = std::make_shared<writing::memory_file_system>();
  const auto writer = writers::simple({.files = files});
  const auto content = pattern(100, 1);
  const writing::write_request request("/file", content.size(), in_pieces(content, 10));
  files->fail(writing::operation::sync, 1, EIO);
  CHECK(failure_of([&] { run(writer->write(request)); }).code() == std::errc::io_error);
  CHECK_FALSE(files->read("/file").has_value());
  run(writer->write(request));
  CHECK(files->read("/file") == content);
}

TEST_CASE("the simple writer can be closed twice and used again", "[writing][simple_writer]") {
  const auto files = std::make_shared<writing::memory_file_system>();
  const auto writer = writers::simple({.files = files});
  const auto content = pattern(100, 1);
  run(writer->close());
  run(writer->close());
  run(writer->write({"/file", content.size(), in_pieces(content, 10)}));
  run(writer->close());
  CHECK(files->read("/file") == content);
}

}  // namespace writing_simple_writer_test

// Saves snapshots with a writer, one after the other, as often as it is told to: for judges that look at it from
// outside, or kill it. The state is that of tests/support/counting_arrays.hpp.
//
//   rondo_snapshot_program WRITER DIRECTORY FIRST BYTES [FORMAT]
//
// FORMAT is the description of one of Rondo's formats, such as '{"libtorch":{}}'.
// Snapshot FIRST is taken at once, the next one for each line on stdin. When one is durable, "durable N" is printed.
// Ends with status 0 at the end of the input, and with 3 after an io_error, whose message goes to stderr.

#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "rondo/checkpoint/file_format.hpp"
#include "rondo/error.hpp"
#include "rondo/writing/directory_lock.hpp"
#include "rondo/writing/process_writer.hpp"
#include "rondo/writing/save_encoded.hpp"
#include "rondo/writing/simple_writer.hpp"
#include "rondo/writing/thread_writer.hpp"
#include "support/counting_arrays.hpp"

using namespace rondo;
using namespace rondo::testing;

namespace {

constexpr std::size_t arrays = 8;

using format_pointer = std::shared_ptr<const checkpoint::file_format>;

std::shared_ptr<writing::writer> make_writer(const std::string& name, const format_pointer& format) {
  const auto savefun = writing::savefun().in_format(format);
  if (name == "simple") return writers::simple({.savefun = savefun});
  if (name == "thread") return writers::thread({.savefun = savefun});
  if (name == "thread_queue") return writers::thread_queue({.savefun = savefun});
  if (name == "process") return writers::process({.savefun = savefun});
  if (name == "process_queue") return writers::process_queue({.savefun = savefun});
  throw option_error("WRITER", name, "the name of a writer");
}

task<> save_live(writing::writer& writer, const counting_arrays& state, std::filesystem::path target,
                 format_pointer format) {
  if (format) {
    writing::write_request live(std::move(target), [&](const writing::path& temporary) {
      writing::save_encoded(temporary, format->encode(state.tree(), state.storages(), state.info()));
    });
    co_await writer.write(std::move(live));
    co_return;
  }
  const auto file = state.file();
  writing::write_request live(std::move(target), file.size(),
                              [&](const writing::append_function& append) { file.write(append); });
  co_await writer.write(std::move(live));
}

task<> save(writing::writer& writer, const counting_arrays& state, std::filesystem::path target,
            format_pointer format) {
  if (writer.memory() == nullptr) {
    co_await save_live(writer, state, std::move(target), std::move(format));
    co_return;
  }
  const auto file = state.file();
  auto slot = co_await writer.memory()->acquire(counting_arrays::memory_for(file));
  auto image = counting_arrays::frame(file, std::move(slot));
  state.copy_to(image, file);
  writing::write_request staged(std::move(target), std::move(image));
  if (format) {
    staged.save_image = [format](const writing::path& goal, const writing::path& temporary,
                                 std::span<const std::byte> content) {
      writing::save_image(*format, goal, temporary, content);
    };
  }
  co_await writer.write(std::move(staged));
}

void run(asio::io_context& events, task<> work) {
  std::exception_ptr failure;
  asio::co_spawn(events, std::move(work), [&](std::exception_ptr e) { failure = std::move(e); });
  events.restart();
  events.run();
  if (failure) std::rethrow_exception(failure);
}

// By another system call than those that write files, so that who counts them, or lets them fail, does not meet this
// one.
void say(int where, std::string text) {
  const iovec part{text.data(), text.size()};
  if (::writev(where, &part, 1) != static_cast<ssize_t>(text.size())) std::_Exit(EXIT_FAILURE);
}

// What a trainer does before its first snapshot.
void tidy(const std::filesystem::path& directory) {
  auto& files = *writing::posix_file_system();
  const auto left = writing::wait_for_live_temporaries(files, directory, std::chrono::seconds(20));
  if (!left.empty()) throw std::runtime_error(left.front().file.string() + " is still being written");
  writing::remove_stale_temporaries(files, directory);
}

void save_as_told(const std::vector<std::string>& arguments) {
  const std::filesystem::path directory = arguments.at(1);
  const auto first = std::stoll(arguments.at(2));
  const auto bytes = std::stoull(arguments.at(3));
  const writing::directory_lock alone(directory);
  tidy(directory);
  const auto format = arguments.size() > 4 ? checkpoint::described_format(arguments[4]) : nullptr;
  const auto writer = make_writer(arguments.at(0), format);
  counting_arrays state(arrays, bytes / arrays / sizeof(std::int32_t));
  asio::io_context events(1);
  std::string line;
  for (auto number = first; number == first || std::getline(std::cin, line); ++number) {
    state.update_to(number);
    run(events, save(*writer, state, directory / fmt::format("snapshot_iter_{}", number), format));
    say(STDOUT_FILENO, fmt::format("durable {}\n", number));
  }
  run(events, writer->close());
}

}  // namespace

int main(int argc, char** argv) {
  // Whoever judges it need not be its parent.
  ::prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
  try {
    save_as_told({argv + 1, argv + argc});
  } catch (const io_error& error) {
    say(STDERR_FILENO, fmt::format("io_error: {}\n", error.what()));
    return 3;
  } catch (const std::exception& error) {
    say(STDERR_FILENO, fmt::format("error: {}\n", error.what()));
    return EXIT_FAILURE;
  }
}

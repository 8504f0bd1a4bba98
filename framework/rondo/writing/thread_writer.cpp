#include "rondo/writing/thread_writer.hpp"

#include <fmt/format.h>

#include <atomic>
#include <exception>
#include <span>
#include <string>
#include <system_error>
#include <utility>

#include "rondo/async/trace.hpp"
#include "rondo/async/worker.hpp"
#include "rondo/checkpoint/image.hpp"
#include "rondo/error.hpp"
#include "rondo/writing/staged_writer.hpp"

namespace rondo::writers {

namespace {

using namespace rondo::writing;
using duration = std::chrono::steady_clock::duration;

enum class lifetime { one_file, many_files };

// What the training thread and the thread that writes know of one attempt. Whoever comes first decides whether the file
// gets its name: a write that was given up must not replace a file that is newer than it.
class attempt {
 public:
  void begin(const char* step) {
    if (end_.load() == given_up) {
      throw io_error(step, "a file that was given up", std::make_error_code(std::errc::operation_canceled));
    }
    step_ = step;
  }
  void begin_commit() {
    auto expected = open;
    if (!end_.compare_exchange_strong(expected, committing)) begin("rename");
    step_ = "rename";
  }
  /// False: the file is getting its name already.
  bool give_up() noexcept {
    auto expected = open;
    return end_.compare_exchange_strong(expected, given_up);
  }
  [[nodiscard]] const char* step() const noexcept { return step_; }

 private:
  enum state { open, committing, given_up };
  std::atomic<state> end_ = open;
  std::atomic<const char*> step_ = "begin to write";
};

class watched_file final : public output_file {
 public:
  watched_file(std::unique_ptr<output_file> under, std::shared_ptr<attempt> watch)
      : under_(std::move(under)), watch_(std::move(watch)) {}

  void append(std::span<const std::byte> bytes) override {
    watch_->begin("write");
    under_->append(bytes);
  }
  void append_stable(std::span<const std::byte> bytes) override {
    watch_->begin("write");
    under_->append_stable(bytes);
  }
  void sync() override {
    watch_->begin("sync");
    under_->sync();
  }
  void close() override {
    watch_->begin("close");
    under_->close();
  }

 private:
  std::unique_ptr<output_file> under_;
  std::shared_ptr<attempt> watch_;
};

// Says where a write is, and stops one that was given up before it gives the file its name.
class watched_file_system final : public file_system {
 public:
  watched_file_system(std::shared_ptr<file_system> under, std::shared_ptr<attempt> watch)
      : under_(std::move(under)), watch_(std::move(watch)) {}

  std::unique_ptr<output_file> create(const path& file, std::uint64_t expected_size) override {
    watch_->begin("create");
    return std::make_unique<watched_file>(under_->create(file, expected_size), watch_);
  }
  std::uint64_t sync_file(const path& file) override {
    watch_->begin("sync");
    return under_->sync_file(file);
  }
  void rename(const path& from, const path& to) override {
    watch_->begin_commit();
    under_->rename(from, to);
  }
  bool remove(const path& file) override { return under_->remove(file); }
  [[nodiscard]] file_kind kind(const path& name) override {
    watch_->begin("inspect");
    return under_->kind(name);
  }
  [[nodiscard]] std::vector<directory_entry> list(const path& directory) override { return under_->list(directory); }
  [[nodiscard]] file_use use_of(const path& file) override { return under_->use_of(file); }
  void sync_directory(const path& directory) override {
    watch_->begin("sync the directory of");
    under_->sync_directory(directory);
  }
  bool create_directory(const path& directory) override {
    watch_->begin("create the directory of");
    return under_->create_directory(directory);
  }

 private:
  std::shared_ptr<file_system> under_;
  std::shared_ptr<attempt> watch_;
};

write_receipt seal_and_write(file_system& files, const file_image& image, const path& target,
                             const image_savefun& save) {
  trace::name_this_thread("writer");
  if (save)
    return write_atomically_by_path(files, target,
                                    [&](const path& temporary) { save(target, temporary, image.bytes()); });
  return write_atomically(files, target, image.size(), [&](const append_function& append) {
    checkpoint::seal(image.bytes(), image.spots(), [&](std::span<const std::byte> bytes) { append.stable(bytes); });
  });
}

class thread_engine final : public image_engine {
 public:
  thread_engine(lifetime thread_lives, std::optional<duration> timeout, std::shared_ptr<file_system> files)
      : lifetime_(thread_lives), timeout_(timeout), files_(std::move(files)) {
    if (timeout_ && *timeout_ <= duration::zero())
      throw option_error("timeout", in_seconds(*timeout_), "more than 0 s");
  }

  task<write_receipt> write(file_image image, path target, image_savefun save) override {
    write_receipt receipt;
    std::exception_ptr failure;
    try {
      write_receipt written = co_await write_on_thread(image, target, save);
      receipt = std::move(written);
    } catch (...) {
      failure = std::current_exception();
    }
    // Not idle: it is finishing what an event loop that was destroyed has left behind.
    if (lifetime_ == lifetime::one_file && thread_ && thread_->idle()) thread_.reset();
    if (failure) std::rethrow_exception(failure);
    co_return receipt;
  }

  task<> close() override {
    if (!thread_) co_return;
    // An event loop that was destroyed may have left a file behind that is still being written.
    auto nothing = [] {};
    if (timeout_) {
      co_await thread_->run_within(*timeout_, nothing);
    } else {
      co_await thread_->run(nothing);
    }
    thread_.reset();
  }

 private:
  task<write_receipt> write_on_thread(const file_image& image, const path& target, const image_savefun& save) {
    if (!thread_) thread_ = std::make_unique<worker>();
    if (!timeout_) {
      auto job = [files = files_, image, target, save] { return seal_and_write(*files, image, target, save); };
      write_receipt receipt = co_await thread_->run(job);
      co_return receipt;
    }
    const auto watch = std::make_shared<attempt>();
    auto job = [files = files_, watch, image, target, save] {
      watched_file_system watched(files, watch);
      return seal_and_write(watched, image, target, save);
    };
    std::optional<write_receipt> receipt = co_await thread_->run_within(*timeout_, job);
    if (!receipt) give_up(*watch, image, target);
    co_return std::move(*receipt);
  }

  [[noreturn]] void give_up(attempt& watch, const file_image& image, const path& target) {
    const bool nameless = watch.give_up();
    image.slot().give_up();
    thread_.reset();
    throw io_error(watch.step(), target, std::make_error_code(std::errc::timed_out),
                   fmt::format("after {} the file was not durable, and its thread was given up together with {} bytes "
                               "of staging memory; {}; check the disk, or allow more time",
                               in_seconds(*timeout_), image.size(),
                               nameless ? "it will not get its name any more" : "it may be in place all the same"));
  }

  static std::string in_seconds(duration time) {
    return fmt::format("{} s", std::chrono::duration<double>(time).count());
  }

  lifetime lifetime_;
  std::optional<duration> timeout_;
  std::shared_ptr<file_system> files_;
  std::unique_ptr<worker> thread_;
};

template <class Options>
std::shared_ptr<writer> make_writer(const char* name, lifetime thread_lives, Options options) {
  auto engine = std::make_unique<thread_engine>(thread_lives, options.timeout, options.files);
  const staging_options memory{options.capacity, options.full, false};
  return make_staged_writer(name, std::move(engine), memory, std::move(options.savefun));
}

}  // namespace

std::shared_ptr<writing::writer> thread(thread_options options) {
  return make_writer("thread", lifetime::one_file, std::move(options));
}

std::shared_ptr<writing::writer> thread_queue(queue_options options) {
  return make_writer("thread_queue", lifetime::many_files, std::move(options));
}

}  // namespace rondo::writers

// A snapshot is one instant: writers with a thread, below the loop, so that a sanitizer of threads can look on.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "rondo/async/scope.hpp"
#include "rondo/async/wait_group.hpp"
#include "rondo/writing/memory_file_system.hpp"
#include "rondo/writing/thread_writer.hpp"
#include "support/abandon.hpp"
#include "support/catch.hpp"
#include "support/counting_arrays.hpp"

namespace writing_instant_test {

using namespace rondo;
using namespace rondo::testing;
using support::turn;
using support::world;
using writing::file_image;
using writing::memory_file_system;
using writing::when_full;
using writing::write_request;

namespace {

using writer_pointer = std::shared_ptr<writing::writer>;

writer_pointer make(const std::string& kind, std::shared_ptr<writing::file_system> files, when_full full) {
  if (kind == "thread") return writers::thread({.capacity = 2, .full = full, .files = std::move(files)});
  return writers::thread_queue({.capacity = 2, .full = full, .files = std::move(files)});
}

/// How many files of each kind of writer, with all policies together: few by default, as many
/// as the environment says for a long run.
std::int64_t how_many() {
  const char* text = std::getenv("RONDO_TEST_SNAPSHOTS");
  return text != nullptr ? std::atoll(text) : 100;
}

// Makes the disk as slow, compared with the training, as a policy needs to have something to do.
class pace {
 public:
  explicit pace(when_full policy) : lead_(policy == when_full::wait ? 2 : 3) {}

  /// The training is about to take another snapshot.
  void attempt() { advance(1); }
  /// It takes no more.
  void end() { advance(1'000'000'000); }

  /// On the thread that writes the file of the nth attempt: holds every fourth one up until the training has got so far
  /// ahead that there was no room for a snapshot.
  void begin_file(std::int64_t nth) {
    std::unique_lock lock(mutex_);
    if (nth % 4 == 0) changed_.wait(lock, [&] { return attempts_ >= nth + lead_; });
  }

 private:
  void advance(std::int64_t attempts) {
    const std::lock_guard lock(mutex_);
    attempts_ += attempts;
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::int64_t attempts_ = 0;
  std::int64_t lead_;
};

// Temporary files are named after the file that they will be.
std::int64_t iteration_of(const writing::path& file) {
  const auto name = file.filename().string();
  return std::stoll(name.substr(name.find('_') + 1));
}

// Updates arrays again and again, and takes a snapshot after every second update as the extension does: the arrays are
// copied in the background, and the next update waits for the copy.
class training {
 public:
  training(writing::writer& writer, memory_file_system& files, pace& speed)
      : writer_(writer), files_(files), pace_(speed) {}

  /// Until so many files have been written.
  task<> run(world& w, std::int64_t snapshots) {
    scope background(w.home());
    while (written_ < snapshots) {
      announce_update();
      co_await readers_.empty();
      state_.update();
      const bool due = state_.iteration() % 2 == 0;
      if (due) co_await take(background);
      // Where nothing has to be waited for, the others get their turn here.
      co_await turn();
    }
    pace_.end();
    announce_update();
    co_await background.join();
    co_await writer_.close();
  }

  [[nodiscard]] std::int64_t written() const noexcept { return written_; }
  [[nodiscard]] std::int64_t torn() const noexcept { return torn_; }
  [[nodiscard]] std::int64_t skipped() const noexcept { return skipped_; }
  [[nodiscard]] std::int64_t superseded() const noexcept { return superseded_; }
  [[nodiscard]] std::int64_t iteration() const noexcept { return state_.iteration(); }
  /// How often a copy was still under way when the next update was due.
  [[nodiscard]] std::int64_t waits() const noexcept { return waits_; }

 private:
  task<> take(scope& background) {
    const auto file = std::make_shared<const checkpoint::encoder>(state_.file());
    pace_.attempt();
    auto slot = co_await writer_.memory()->acquire(counting_arrays::memory_for(*file));
    if (!slot) {
      ++skipped_;
      co_return;
    }
    const auto image = std::make_shared<file_image>(counting_arrays::frame(*file, std::move(slot)));
    const auto reading = std::make_shared<wait_group::member>(readers_.join());
    const auto target = "/snapshot_" + std::to_string(state_.iteration());
    // Every other copy begins when the next update is due, the others at once.
    const bool late = state_.iteration() % 4 == 0;
    const auto due = updates_due_.load();
    background.spawn([this, file, image, reading, target, late, due]() -> task<> {
      auto copy = [&] {
        if (late) updates_due_.wait(due);
        state_.copy_to(*image, *file);
      };
      co_await writer_.memory()->copier().run(copy);
      if (reading->leave() > 0) ++waits_;
      write_request request(target, std::move(*image));
      co_await bring_to_disk(std::move(request));
    });
  }

  void announce_update() {
    ++updates_due_;
    updates_due_.notify_all();
  }

  task<> bring_to_disk(write_request request) {
    const auto target = request.target;
    try {
      co_await writer_.write(std::move(request));
    } catch (const writing::write_superseded&) {
      ++superseded_;
      co_return;
    }
    ++written_;
    const auto file = checkpoint::reader::from_bytes(files_.read(target).value(), target);
    if (target != "/snapshot_" + std::to_string(the_count_in(file))) ++torn_;
    files_.remove(target);
  }

  writing::writer& writer_;
  memory_file_system& files_;
  pace& pace_;
  counting_arrays state_{64, 1024};
  wait_group readers_;
  std::atomic<std::int64_t> updates_due_ = 0;
  std::int64_t written_ = 0;
  std::int64_t torn_ = 0;
  std::int64_t skipped_ = 0;
  std::int64_t superseded_ = 0;
  std::int64_t waits_ = 0;
};

}  // namespace

TEST_CASE("no writer with a thread tears a snapshot", "[writing][instant]") {
  const std::string kind = GENERATE("thread", "thread_queue");
  const auto policy = GENERATE(when_full::wait, when_full::skip, when_full::replace);
  const auto files = std::make_shared<memory_file_system>();
  const auto writer = make(kind, files, policy);
  const auto snapshots = how_many() / 3 + 1;
  pace speed(policy);
  files->observe([&](writing::operation what, const writing::path& name) {
    if (what == writing::operation::create) speed.begin_file(iteration_of(name) / 2);
  });
  training run(*writer, *files, speed);
  world w;
  auto body = [&]() -> task<> { return run.run(w, snapshots); };
  const auto start = std::chrono::steady_clock::now();
  support::run(w, body);
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
  INFO(kind << ", policy " << static_cast<int>(policy));
  CHECK(run.written() >= snapshots);
  CHECK(run.torn() == 0);
  CHECK(run.waits() > 0);
  CHECK(run.iteration() / 2 == run.written() + run.skipped() + run.superseded());
  CHECK((run.skipped() > 0) == (policy == when_full::skip));
  CHECK((run.superseded() > 0) == (policy == when_full::replace));
  if (std::getenv("RONDO_TEST_SNAPSHOTS") != nullptr) {
    WARN(kind << ", policy " << static_cast<int>(policy) << ": " << run.written() << " written, " << run.torn()
              << " torn, " << run.skipped() << " skipped, " << run.superseded() << " replaced, " << run.waits()
              << " updates waited, " << time.count() << " s");
  }
}

}  // namespace writing_instant_test

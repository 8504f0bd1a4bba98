#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "rondo/async/detail/homecoming.hpp"
#include "rondo/async/task.hpp"

/// What `prefetch` is built on, whatever the elements are.
namespace rondo::data::detail {

/// While it lives, LibTorch works on this thread alone and records no gradients, so that an element has the same bits
/// on whatever thread it is made: sums and products are split among the threads of an operation, and round accordingly.
/// Other threads are not concerned.
class lone_thread {
 public:
  lone_thread();
  ~lone_thread();
  lone_thread(const lone_thread&) = delete;
  lone_thread& operator=(const lone_thread&) = delete;

 private:
  int threads_;
  bool gradients_;
};

/// Makes elements; each worker has one of its own.
class element_maker {
 public:
  element_maker() = default;
  element_maker(const element_maker&) = delete;
  element_maker& operator=(const element_maker&) = delete;
  virtual ~element_maker() = default;

  /// Makes element `index` and puts it where the reader will look for it. False when the range ends before it. Called
  /// with ascending indices.
  virtual bool make(std::int64_t index) = 0;
};

/// Says who makes which element when, and tells the reader: elements are begun in order, at most `depth` of them are
/// being made or wait to be read, and what went wrong with one is kept until its turn.
///
/// `start`, `stop` and all that concerns the reader belong to the reader's thread. While elements are there it takes no
/// lock, so that it never waits for a worker that holds one and has lost its processor.
class prefetch_queue {
 public:
  using makers = std::vector<std::unique_ptr<element_maker>>;

  /// The elements from `first` on, up to `end` unless the range ends before.
  prefetch_queue(std::int64_t depth, std::int64_t first, std::int64_t end, std::int64_t epoch);
  prefetch_queue(const prefetch_queue&) = delete;
  prefetch_queue& operator=(const prefetch_queue&) = delete;
  ~prefetch_queue();

  /// Begins to make elements: on one thread for each maker, or, without `in_background`, by the first maker whenever
  /// the reader asks for an element. Throws std::system_error when there can be no thread.
  void start(makers makers, bool in_background);

  /// Waits for the elements that are being made, then destroys the makers. Whoever awaits an arrival goes on.
  void stop() noexcept;

  /// Whether `find` would not wait for others.
  [[nodiscard]] bool arrived(std::int64_t index);

  /// Waits until element `index` has been made, or making it has failed: true; or until there is none: false. To be
  /// asked for one element after the other, and for none after one that failed.
  [[nodiscard]] bool find(std::int64_t index);

  /// Throws what making the element that was found has thrown, if it has.
  void check(std::int64_t index);

  /// The element that was found has been taken away, and its place may be used again.
  void release(std::int64_t index);

  /// Completes when `arrived(index)`, or when the queue is stopped. Cancellation throws `operation_aborted` at once and
  /// changes nothing.
  [[nodiscard]] static task<> arrival(std::shared_ptr<prefetch_queue> queue, std::int64_t index);

 private:
  using waiting = std::vector<std::shared_ptr<rondo::detail::homecoming>>;
  class visit;
  enum state : int { missing, made, failed, ended };
  struct slot {
    std::atomic<int> found{missing};
    std::exception_ptr failure;
  };

  void work(element_maker& maker);
  [[nodiscard]] std::optional<std::int64_t> claim();
  void make(element_maker& maker, std::int64_t index) noexcept;
  void publish(std::int64_t index, state found) noexcept;
  [[nodiscard]] waiting take_waiting();
  void wake_workers() noexcept;
  [[nodiscard]] slot& slot_of(std::int64_t index);
  [[nodiscard]] bool has_arrived(std::int64_t index);

  const std::int64_t depth_;
  const std::int64_t epoch_;
  const std::int64_t size_;
  makers makers_;
  std::vector<std::thread> threads_;

  std::vector<slot> slots_;
  std::atomic<std::int64_t> next_;      // the first element that nobody has begun
  std::atomic<std::int64_t> released_;  // the first element that has not been read
  std::atomic<std::int64_t> end_;       // the first element that is not to be begun
  std::atomic<int> news_{0};            // for workers that sleep: changes when there is something to do
  std::atomic<bool> stopping_{false};

  std::mutex mutex_;  // coroutines that wait
  std::int64_t awaited_;
  waiting waiting_;
  std::atomic<bool> somebody_waits_{false};
};

}  // namespace rondo::data::detail

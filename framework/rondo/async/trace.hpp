#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

/// Named spans of time, recorded where the work is done and read by whoever collects them: `profile_report`,
/// `timeline_trace`, or a `collector` of your own.
///
///     rondo::trace::span here("tokenize");   // from here to the end of the block
///
/// As long as nobody collects, a span costs one relaxed atomic load. While somebody does, it costs two readings of the
/// clock and a few stores into a ring of the thread's own: no lock is taken, nobody is waited for, and what has not
/// been read when the ring comes round is lost (and counted).
namespace rondo::trace {

/// What a span is called. Made by `intern`, kept for the rest of the program.
struct label {
  std::string name;      ///< "iteration", "log_report"
  std::string category;  ///< "loop", "event", "extension", "snapshot", "writer", "data", "user"
  std::string detail;    ///< what about it: of an extension's handler, the event; may be empty
  std::string argument;  ///< what the number given to a span means: "iteration"; empty for none
  std::uint32_t id = 0;  ///< counts the labels from 0
};

/// The label of these words, the same one every time. Takes a lock: where a span is opened often, keep the label. There
/// may be 65,536 different ones, so names should not contain numbers that count; those beyond are one called
/// "(too many names)". Any thread.
[[nodiscard]] const label& intern(std::string_view name, std::string_view category = "user",
                                  std::string_view detail = {}, std::string_view argument = {});

/// Says what this thread is called in a trace. Default: its name in the operating system. `name` must live for the rest
/// of the program. Costs next to nothing.
void name_this_thread(const char* name) noexcept;

namespace detail {

// How many collectors are at work.
inline std::atomic<int> collecting{0};

struct open_span {
  const label* what = nullptr;
  std::int64_t begin = 0;
  std::int64_t argument = 0;
  std::uint64_t number = 0;  // on its thread, from 1; 0: apart
};

[[nodiscard]] open_span open(const label& what, std::int64_t argument) noexcept;
[[nodiscard]] open_span open(std::string_view name, std::string_view category) noexcept;
[[nodiscard]] open_span open_apart(const label& what, std::int64_t argument) noexcept;
void close(const open_span& span) noexcept;

class ring;
struct reading;

}  // namespace detail

/// Whether anybody collects spans now. Any thread.
[[nodiscard]] inline bool on() noexcept { return detail::collecting.load(std::memory_order_relaxed) > 0; }

/// No number.
inline constexpr std::int64_t no_argument = std::numeric_limits<std::int64_t>::min();

/// From its construction to its end, something goes on. To be ended on the thread where it began; it may live across a
/// `co_await`. Nothing is recorded unless somebody collects at its beginning. Does not throw: without memory, nothing
/// is recorded.
class span {
 public:
  /// Nothing.
  span() noexcept = default;
  explicit span(const label& what, std::int64_t argument = no_argument) noexcept {
    if (on()) [[unlikely]]
      open_ = detail::open(what, argument);
  }
  explicit span(std::string_view name, std::string_view category = "user") noexcept {
    if (on()) [[unlikely]]
      open_ = detail::open(name, category);
  }
  span(span&& other) noexcept : open_(std::exchange(other.open_, {})) {}
  span& operator=(span&& other) noexcept {
    end();
    open_ = std::exchange(other.open_, {});
    return *this;
  }
  ~span() { end(); }

  /// A span that is never `nested`: for what goes on beside the work of this thread, such as waiting for another one.
  [[nodiscard]] static span apart(const label& what, std::int64_t argument = no_argument) noexcept {
    span made;
    if (on()) [[unlikely]]
      made.open_ = detail::open_apart(what, argument);
    return made;
  }

  /// Ends it, and begins another one.
  void next(const label& what, std::int64_t argument = no_argument) noexcept {
    end();
    if (on()) [[unlikely]]
      open_ = detail::open(what, argument);
  }
  /// Ends it early. A second call does nothing.
  void end() noexcept {
    if (open_.what == nullptr) [[likely]]
      return;
    detail::close(std::exchange(open_, {}));
  }

 private:
  detail::open_span open_;
};

/// A span that has ended.
struct record {
  const label* what = nullptr;
  std::int64_t begin = 0;  ///< nanoseconds of std::chrono::steady_clock
  std::int64_t end = 0;
  std::int64_t argument = no_argument;
  std::uint32_t thread = 0;  ///< see `collector::threads`
  /// Whether it lies, together with all nested spans of its thread, as brackets do: each inside of another or apart
  /// from it. Others belong to coroutines between which the thread has changed.
  bool nested = true;
};

/// How many spans this thread has recorded so far: tells cheaply whether it is time to `drain`. A ring holds
/// `ring_capacity` of them.
[[nodiscard]] std::uint64_t recorded_by_this_thread() noexcept;
inline constexpr std::size_t ring_capacity = 16384;
/// Who drains when a thread has recorded so many loses nothing.
inline constexpr std::uint64_t spans_between_drains = ring_capacity / 4;

/// Collects the spans of all threads from its construction on. Several collectors do not disturb each other: each gets
/// everything. Any thread, but one at a time.
class collector {
 public:
  /// With `running` = false nothing is collected before `resume`.
  explicit collector(bool running = true);
  collector(const collector&) = delete;
  collector& operator=(const collector&) = delete;
  ~collector();

  /// What ends from now on is not collected. What has been, and was not drained, is dropped.
  void pause();
  /// Collects what begins from now on.
  void resume();
  [[nodiscard]] bool running() const noexcept { return running_; }

  /// Adds to `to` what has ended since the last call, thread by thread, in the order of the ends. Gives the number of
  /// spans that were lost because a thread had recorded more than `ring_capacity` meanwhile. A span that ends in this
  /// very moment on another thread is left for the next call.
  std::uint64_t drain(std::vector<record>& to);

  struct thread {
    std::uint32_t id;  ///< counts the threads that have recorded anything, from 1
    std::string name;
  };
  /// The threads that this collector has got spans of, by their ids.
  [[nodiscard]] const std::vector<thread>& threads() const noexcept { return threads_; }

 private:
  std::unique_ptr<detail::reading> reading_;
  std::vector<thread> threads_;
  bool running_ = false;
};

}  // namespace rondo::trace

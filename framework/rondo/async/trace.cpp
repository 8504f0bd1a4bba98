#include "rondo/async/trace.hpp"

#include <pthread.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <map>
#include <mutex>
#include <new>
#include <tuple>

namespace rondo::trace {

namespace {

constexpr std::size_t most_labels = 65536;

std::int64_t now() noexcept {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

/// All labels. Never destroyed: threads may record when the program ends.
class label_table {
 public:
  const label& find(std::string_view name, std::string_view category, std::string_view detail,
                    std::string_view argument) {
    const std::lock_guard lock(mutex_);
    const auto found = by_words_.find(words(name, category, detail, argument));
    if (found != by_words_.end()) return *found->second;
    if (labels_.size() >= most_labels) return one_too_many();
    return add(name, category, detail, argument);
  }

 private:
  using words = std::tuple<std::string_view, std::string_view, std::string_view, std::string_view>;

  const label& add(std::string_view name, std::string_view category, std::string_view detail,
                   std::string_view argument) {
    const auto& added = labels_.emplace_back(label{std::string(name), std::string(category), std::string(detail),
                                                   std::string(argument), static_cast<std::uint32_t>(labels_.size())});
    by_words_.emplace(words(added.name, added.category, added.detail, added.argument), &added);
    return added;
  }
  const label& one_too_many() {
    if (rest_ == nullptr) rest_ = &add("(too many names)", "user", "", "");
    return *rest_;
  }

  std::mutex mutex_;
  std::deque<label> labels_;
  std::map<words, const label*> by_words_;
  const label* rest_ = nullptr;
};

label_table& labels() {
  static auto& table = *new label_table;
  return table;
}

}  // namespace

namespace detail {

/// The spans of one thread, which alone writes. Readers look at what they have not seen, and find out afterwards
/// whether it was being overwritten meanwhile:
///
///     places   … | n-3 | n-2 | n-1 | being written | oldest | …
///                              ▲ head_ = n
///
/// A place is written after `head_` has said so of the one before. Its parts are stored with release and loaded with
/// acquire, so that a reader that has seen a part of span n sees a `head_` of n or more, and knows that place for lost.
class ring {
 public:
  ring(std::uint32_t id, std::string name)
      : id_(id), name_(std::move(name)), places_(static_cast<place*>(std::calloc(ring_capacity, sizeof(place)))) {
    if (places_ == nullptr) throw std::bad_alloc();
  }
  ring(const ring&) = delete;
  ring& operator=(const ring&) = delete;
  ~ring() { std::free(places_); }

  [[nodiscard]] std::uint32_t id() const noexcept { return id_; }
  [[nodiscard]] std::string name() const {
    const char* const given = given_name_.load();
    return given != nullptr ? given : name_;
  }
  void rename(const char* name) noexcept { given_name_ = name; }
  [[nodiscard]] std::uint64_t head() const noexcept { return head_.load(std::memory_order_acquire); }

  void push(const open_span& span, std::int64_t end, bool nested) noexcept {
    const auto index = head_.load(std::memory_order_relaxed);
    auto& parts = places_[index % ring_capacity];
    const auto put = [](std::int64_t& part, std::int64_t value) {
      std::atomic_ref(part).store(value, std::memory_order_release);
    };
    put(parts[0], reinterpret_cast<std::int64_t>(span.what));
    put(parts[1], span.begin);
    put(parts[2], end - span.begin);
    put(parts[3], span.argument);
    put(parts[4], nested ? 1 : 0);
    head_.store(index + 1, std::memory_order_release);
  }

  /// Adds the spans from `from` on, and moves it on. Gives how many of them were lost.
  std::uint64_t read(std::uint64_t& from, std::vector<record>& to) const {
    const auto end = head();
    const auto first = std::max(from, end > ring_capacity ? end - ring_capacity : 0);
    const auto size_before = to.size();
    for (auto i = first; i < end; ++i) to.push_back(at(i));
    const auto overtaken_by = head();
    // The place of span `overtaken_by` may be in the middle of being written.
    const auto sound = overtaken_by >= ring_capacity ? overtaken_by - ring_capacity + 1 : 0;
    const auto damaged = std::min(sound > first ? sound - first : 0, end - first);
    const auto begin = to.begin() + static_cast<std::ptrdiff_t>(size_before);
    to.erase(begin, begin + static_cast<std::ptrdiff_t>(damaged));
    const auto lost = (first - from) + damaged;
    from = end;
    return lost;
  }

 private:
  using place = std::array<std::int64_t, 5>;

  [[nodiscard]] record at(std::uint64_t index) const {
    auto& parts = places_[index % ring_capacity];
    const auto get = [](std::int64_t& part) { return std::atomic_ref(part).load(std::memory_order_acquire); };
    record r;
    r.what = reinterpret_cast<const label*>(get(parts[0]));
    r.begin = get(parts[1]);
    r.end = r.begin + get(parts[2]);
    r.argument = get(parts[3]);
    r.nested = get(parts[4]) != 0;
    r.thread = id_;
    return r;
  }

  const std::uint32_t id_;
  const std::string name_;
  std::atomic<const char*> given_name_{nullptr};
  place* const places_;  // zeroed pages, backed when they are first written
  std::atomic<std::uint64_t> head_{0};
};

/// What a collector has still to read.
struct reading {
  struct one {
    std::shared_ptr<ring> from;
    std::uint64_t next = 0;
    bool thread_has_ended = false;
    bool known = false;  // to the collector's list of threads
  };
  std::vector<one> rings;
  std::int64_t since = 0;  // spans that began earlier do not count
};

namespace {

/// Who writes and who reads. Never destroyed, as the labels.
class registry {
 public:
  std::shared_ptr<ring> add_thread(const char* name) {
    const std::lock_guard lock(mutex_);
    auto made = std::make_shared<ring>(++last_id_, name);
    rings_.push_back(made);
    for (auto* reader : readers_) reader->rings.push_back({made});
    return made;
  }
  void remove_thread(const std::shared_ptr<ring>& gone) {
    const std::lock_guard lock(mutex_);
    std::erase(rings_, gone);
    for (auto* reader : readers_)
      for (auto& one : reader->rings)
        if (one.from == gone) one.thread_has_ended = true;
  }

  void begin(reading& reader) {
    const std::lock_guard lock(mutex_);
    for (const auto& each : rings_) reader.rings.push_back({each, each->head()});
    reader.since = now();
    readers_.push_back(&reader);
    ++collecting;
  }
  void end(reading& reader) {
    const std::lock_guard lock(mutex_);
    --collecting;
    std::erase(readers_, &reader);
    reader.rings.clear();
  }
  /// While the result lives, no ring comes or goes.
  [[nodiscard]] std::unique_lock<std::mutex> hold() { return std::unique_lock(mutex_); }

 private:
  std::mutex mutex_;
  std::uint32_t last_id_ = 0;
  std::vector<std::shared_ptr<ring>> rings_;
  std::vector<reading*> readers_;
};

registry& everybody() {
  static auto& all = *new registry;
  return all;
}

thread_local const char* name_of_thread = nullptr;

/// What a thread needs in order to record.
class recorder {
 public:
  recorder() {
    std::array<char, 16> name{};
    ::pthread_getname_np(::pthread_self(), name.data(), name.size());
    ring_ = everybody().add_thread(name.data());
    rename(name_of_thread);
    open_.reserve(64);
  }
  recorder(const recorder&) = delete;
  recorder& operator=(const recorder&) = delete;
  ~recorder() { everybody().remove_thread(ring_); }

  void rename(const char* name) noexcept { ring_->rename(name); }
  void begin_apart(open_span& span) noexcept { span.begin = now(); }
  void begin(open_span& span) {
    open_.push_back(last_ + 1);
    span.number = ++last_;
    span.begin = now();
  }
  /// What began after it on this thread and is still open makes it one that does not nest.
  void end(const open_span& span) noexcept {
    const auto time = now();
    const bool nested = !open_.empty() && open_.back() == span.number;
    if (nested)
      open_.pop_back();
    else if (span.number != 0)
      std::erase(open_, span.number);
    ring_->push(span, time, nested);
  }
  [[nodiscard]] std::uint64_t recorded() const noexcept { return ring_->head(); }

 private:
  std::shared_ptr<ring> ring_;
  std::vector<std::uint64_t> open_;  // numbers of spans, by their beginnings
  std::uint64_t last_ = 0;
};

/// Made when the thread first records. A thread that ends has none any more, but may still destroy spans.
class recorder_of_thread {
 public:
  ~recorder_of_thread() {
    delete here;
    here = nullptr;
    gone = true;
  }
  static recorder* get() {
    if (here != nullptr) return here;
    if (gone) return nullptr;
    thread_local const recorder_of_thread owner;
    return here = new recorder;
  }
  [[nodiscard]] static recorder* existing() noexcept { return here; }

 private:
  recorder_of_thread() = default;
  inline static thread_local recorder* here = nullptr;
  inline static thread_local bool gone = false;
};

}  // namespace

open_span open(const label& what, std::int64_t argument) noexcept {
  try {
    auto* const here = recorder_of_thread::get();
    if (here == nullptr) return {};
    open_span made{&what, 0, argument, 0};
    here->begin(made);
    return made;
  } catch (...) {  // no memory: nothing is recorded
    return {};
  }
}

open_span open_apart(const label& what, std::int64_t argument) noexcept {
  try {
    auto* const here = recorder_of_thread::get();
    if (here == nullptr) return {};
    open_span made{&what, 0, argument, 0};
    here->begin_apart(made);
    return made;
  } catch (...) {
    return {};
  }
}

open_span open(std::string_view name, std::string_view category) noexcept {
  try {
    return open(intern(name, category), no_argument);
  } catch (...) {
    return {};
  }
}

void close(const open_span& span) noexcept {
  if (auto* const here = recorder_of_thread::existing()) here->end(span);
}

}  // namespace detail

const label& intern(std::string_view name, std::string_view category, std::string_view detail,
                    std::string_view argument) {
  return labels().find(name, category, detail, argument);
}

void name_this_thread(const char* name) noexcept {
  detail::name_of_thread = name;
  if (auto* const here = detail::recorder_of_thread::existing()) here->rename(name);
}

std::uint64_t recorded_by_this_thread() noexcept {
  const auto* const here = detail::recorder_of_thread::existing();
  return here != nullptr ? here->recorded() : 0;
}

collector::collector(bool running) : reading_(std::make_unique<detail::reading>()) {
  if (running) resume();
}

collector::~collector() { pause(); }

void collector::pause() {
  if (std::exchange(running_, false)) detail::everybody().end(*reading_);
}

void collector::resume() {
  if (!std::exchange(running_, true)) detail::everybody().begin(*reading_);
}

std::uint64_t collector::drain(std::vector<record>& to) {
  const auto lock = detail::everybody().hold();
  const auto before = to.size();
  std::uint64_t lost = 0;
  for (auto& one : reading_->rings) {
    const auto had = to.size();
    lost += one.from->read(one.next, to);
    if (to.size() == had || std::exchange(one.known, true)) continue;
    const auto same = [&](const thread& t) { return t.id == one.from->id(); };
    if (std::none_of(threads_.begin(), threads_.end(), same)) threads_.push_back({one.from->id(), one.from->name()});
  }
  std::erase_if(reading_->rings, [](const auto& one) { return one.thread_has_ended; });
  const auto early = [&](const record& r) { return r.begin < reading_->since; };
  to.erase(std::remove_if(to.begin() + static_cast<std::ptrdiff_t>(before), to.end(), early), to.end());
  return lost;
}

}  // namespace rondo::trace

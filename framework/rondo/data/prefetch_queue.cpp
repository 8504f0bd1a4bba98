#include "rondo/data/prefetch_queue.hpp"

#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>

#include <asio/this_coro.hpp>
#include <cstddef>
#include <string>
#include <utility>

#include "rondo/async/detail/parked.hpp"
#include "rondo/async/detail/quiet_thread.hpp"
#include "rondo/async/park.hpp"
#include "rondo/async/trace.hpp"
#include "rondo/data/sample_error.hpp"

namespace rondo::data::detail {

namespace {

const trace::label& make_span = trace::intern("make", "data", "", "index");

/// Sets the number of threads that LibTorch uses when it is called on this thread. `at::set_num_threads` would set it
/// for the whole program; OpenMP, where LibTorch uses it, has one number for each thread.
void set_threads_of_this_thread(int threads) {
  using function = void (*)(int);
  static const auto set = reinterpret_cast<function>(::dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
  if (set != nullptr) set(threads);
}

/// A thread that wakes up takes the processor away from the one that woke it, which is here the training thread.
/// Threads of this class wait until a processor is free, or until it is their turn.
void wait_for_a_free_processor() {
  int policy = SCHED_OTHER;
  sched_param unused{};
  if (::pthread_getschedparam(::pthread_self(), &policy, &unused) == 0 && policy == SCHED_OTHER)
    ::pthread_setschedparam(::pthread_self(), SCHED_BATCH, &unused);
}

/// What is being handled, as a sample_error.
std::exception_ptr failure_of(std::int64_t epoch, std::int64_t index) noexcept {
  try {
    try {
      throw;
    } catch (const sample_error&) {
      throw;
    } catch (...) {
      throw_sample_error(epoch, index);
    }
  } catch (...) {
    return std::current_exception();
  }
}

}  // namespace

// Asking for the number first also makes LibTorch take over the program's setting, which it does once on each thread.
lone_thread::lone_thread() : threads_(at::get_num_threads()), gradients_(c10::GradMode::is_enabled()) {
  set_threads_of_this_thread(1);
  c10::GradMode::set_enabled(false);
}

lone_thread::~lone_thread() {
  c10::GradMode::set_enabled(gradients_);
  set_threads_of_this_thread(threads_);
}

prefetch_queue::prefetch_queue(std::int64_t depth, std::int64_t first, std::int64_t end, std::int64_t epoch)
    : depth_(depth),
      epoch_(epoch),
      size_(end),
      slots_(static_cast<std::size_t>(depth)),
      next_(first),
      released_(first),
      end_(end),
      awaited_(first) {}

prefetch_queue::~prefetch_queue() { stop(); }

void prefetch_queue::start(makers makers, bool in_background) {
  makers_ = std::move(makers);
  if (!in_background) return;
  threads_.reserve(makers_.size());
  for (std::size_t i = 0; i < makers_.size(); ++i)
    threads_.push_back(rondo::detail::quiet_thread([this, &maker = *makers_[i], i] {
      ::pthread_setname_np(::pthread_self(), ("rondo-data-" + std::to_string(i % 1000)).c_str());
      work(maker);
    }));
}

void prefetch_queue::stop() noexcept {
  stopping_ = true;
  wake_workers();
  for (const auto& way : take_waiting()) way->call();
  for (auto& thread : threads_) thread.join();
  threads_.clear();
  makers_.clear();
}

void prefetch_queue::work(element_maker& maker) {
  wait_for_a_free_processor();
  const lone_thread here;
  while (const auto index = claim()) make(maker, *index);
}

std::optional<std::int64_t> prefetch_queue::claim() {
  for (;;) {
    const int heard = news_;
    auto index = next_.load();
    while (index < end_ && index - released_ < depth_ && !stopping_)
      if (next_.compare_exchange_weak(index, index + 1)) return index;
    if (index >= end_ || stopping_) return std::nullopt;
    news_.wait(heard);
  }
}

void prefetch_queue::make(element_maker& maker, std::int64_t index) noexcept {
  const trace::span making(make_span, index);
  try {
    publish(index, maker.make(index) ? made : ended);
  } catch (...) {
    slot_of(index).failure = failure_of(epoch_, index);
    publish(index, failed);
  }
}

void prefetch_queue::publish(std::int64_t index, state found) noexcept {
  if (found != made) {  // nothing after it is needed; what is before it has been begun already
    for (auto end = end_.load(); index < end && !end_.compare_exchange_weak(end, index);) {
    }
    wake_workers();
  }
  slot& here = slot_of(index);
  here.found = found;
  here.found.notify_one();
  if (!somebody_waits_) return;
  for (const auto& way : take_waiting()) way->call();
}

prefetch_queue::waiting prefetch_queue::take_waiting() {
  waiting taken;
  const std::lock_guard lock(mutex_);
  if (!stopping_ && !has_arrived(awaited_)) return taken;
  taken.swap(waiting_);
  somebody_waits_ = false;
  return taken;
}

void prefetch_queue::wake_workers() noexcept {
  ++news_;
  news_.notify_all();
}

prefetch_queue::slot& prefetch_queue::slot_of(std::int64_t index) {
  return slots_[static_cast<std::size_t>(index % depth_)];
}

bool prefetch_queue::has_arrived(std::int64_t index) { return index >= size_ || slot_of(index).found != missing; }

bool prefetch_queue::arrived(std::int64_t index) { return threads_.empty() || has_arrived(index); }

bool prefetch_queue::find(std::int64_t index) {
  if (index >= size_) return false;
  slot& here = slot_of(index);
  if (threads_.empty() && here.found == missing) {
    const lone_thread alone;
    make(*makers_.front(), index);
  }
  here.found.wait(missing);
  return here.found != ended;
}

void prefetch_queue::check(std::int64_t index) {
  const slot& here = slot_of(index);
  if (here.found == failed) std::rethrow_exception(here.failure);
}

// Waking a thread costs more than all the rest, and may cost the reader its processor. So a sleeping worker is left
// alone until there is work for a while, and another one until the first is not enough. Those that are awake go on at
// once.
void prefetch_queue::release(std::int64_t index) {
  slot_of(index).found = missing;
  released_ = index + 1;
  const auto ahead = next_ - (index + 1);
  if (ahead > depth_ / 2) return;
  ++news_;
  if (ahead == 0)
    news_.notify_all();
  else
    news_.notify_one();
}

// In the frame of the coroutine that waits: who is gone is not called. An event loop that shuts down first tells
// everything that is parked, then empties its queue without a lock; nobody may post to it from then on, whatever frames
// are still there.
class prefetch_queue::visit final : public rondo::detail::parked {
 public:
  visit(prefetch_queue& queue, std::int64_t index, const std::shared_ptr<rondo::detail::homecoming>& way,
        const executor& home)
      : queue_(queue), way_(way) {
    rondo::detail::registry_of(home)->add(*this);
    {
      const std::lock_guard lock(queue_.mutex_);
      queue_.awaited_ = index;
      queue_.waiting_.push_back(way_);
      queue_.somebody_waits_ = true;
    }
    for (const auto& arrived : queue_.take_waiting()) arrived->call();
  }
  ~visit() {
    unlink();
    const std::lock_guard lock(queue_.mutex_);
    std::erase(queue_.waiting_, way_);
    queue_.somebody_waits_ = !queue_.waiting_.empty();
  }

 private:
  void abandon() noexcept override { way_->forget(); }

  prefetch_queue& queue_;
  const std::shared_ptr<rondo::detail::homecoming>& way_;
};

task<> prefetch_queue::arrival(std::shared_ptr<prefetch_queue> queue, std::int64_t index) {
  const executor home = co_await asio::this_coro::executor;
  rondo::detail::absence away(home);
  const visit here(*queue, index, away.way(), home);
  co_await park(away.rest());
}

}  // namespace rondo::data::detail

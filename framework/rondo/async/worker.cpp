#include "rondo/async/worker.hpp"

#include <condition_variable>
#include <mutex>
#include <thread>

#include "rondo/async/detail/quiet_thread.hpp"
#include "rondo/error.hpp"

namespace rondo {
namespace detail {

namespace {

constexpr const char* given_up = "worker: its thread was given up after work that took longer than its time limit";

}  // namespace

class worker_thread : public std::enable_shared_from_this<worker_thread> {
 public:
  using errands = std::list<std::shared_ptr<errand>>;

  void make_ready() {
    const std::lock_guard lock(mutex_);
    if (abandoned_) throw error(given_up);
    if (!thread_.joinable()) thread_ = quiet_thread([self = shared_from_this()] { self->run(); });
  }

  void hand_over(errands& node) noexcept {
    {
      const std::lock_guard lock(mutex_);
      if (!abandoned_) waiting_.splice(waiting_.end(), node);
    }
    changed_.notify_all();
    refuse(node);
  }

  void give_up() noexcept {
    errands left;
    {
      const std::lock_guard lock(mutex_);
      abandoned_ = true;
      left.swap(waiting_);
    }
    changed_.notify_all();
    refuse(left);
  }

  [[nodiscard]] bool abandoned() noexcept {
    const std::lock_guard lock(mutex_);
    return abandoned_;
  }

  [[nodiscard]] bool idle() noexcept {
    const std::lock_guard lock(mutex_);
    return !current_ && waiting_.empty();
  }

  void end() {
    if (!idle_in_time()) give_up();
    close();
    if (!thread_.joinable()) return;
    if (abandoned() || thread_.get_id() == std::this_thread::get_id()) {
      thread_.detach();
    } else {
      thread_.join();
    }
  }

 private:
  static void refuse(const errands& left) noexcept {
    for (const auto& job : left) {
      job->refuse(std::make_exception_ptr(error(given_up)));
      job->come_home();
    }
  }

  void run() {
    while (const auto job = next()) {
      job->perform();
      finished();
      job->come_home();
    }
  }

  void finished() {
    std::shared_ptr<errand> destroyed_unlocked;
    const std::lock_guard lock(mutex_);
    destroyed_unlocked.swap(current_);
    changed_.notify_all();
  }

  std::shared_ptr<errand> next() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !waiting_.empty() || closing_ || abandoned_; });
    if (waiting_.empty()) return nullptr;
    current_ = std::move(waiting_.front());
    waiting_.pop_front();
    changed_.notify_all();  // whoever waits for the end can count the time limit of this work from now on
    return current_;
  }

  void close() {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    changed_.notify_all();
  }

  // True when nothing is left to do, false when the time limit of the present work was over first.
  bool idle_in_time() {
    std::unique_lock lock(mutex_);
    while (!abandoned_ && (current_ || !waiting_.empty())) {
      if (thread_.get_id() == std::this_thread::get_id()) return true;
      if (!current_ || !current_->deadline()) {
        changed_.wait(lock);
        continue;
      }
      const auto waited_for = current_;
      const auto result = changed_.wait_until(lock, *waited_for->deadline());
      if (result == std::cv_status::timeout && current_ == waited_for) return false;
    }
    return true;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  errands waiting_;
  std::shared_ptr<errand> current_;
  bool closing_ = false;
  bool abandoned_ = false;
  std::thread thread_;
};

std::shared_ptr<worker_thread> make_worker_thread() { return std::make_shared<worker_thread>(); }
void make_ready(worker_thread& thread) { thread.make_ready(); }
void hand_over(worker_thread& thread, std::list<std::shared_ptr<errand>>& node) noexcept { thread.hand_over(node); }
void give_up(worker_thread& thread) noexcept { thread.give_up(); }

}  // namespace detail

worker::~worker() { thread_->end(); }

bool worker::abandoned() const noexcept { return thread_->abandoned(); }
bool worker::idle() const noexcept { return thread_->idle(); }

}  // namespace rondo

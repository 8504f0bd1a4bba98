// The main function of every test program. A case that hangs or fails is named at the end of the output.
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using listener_base = Catch::EventListenerBase;
#else
#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>
using listener_base = Catch::TestEventListenerBase;
#endif

#include <pthread.h>

#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace {

// What hangs must end before whoever runs the program loses patience; no machine is so slow that anything else does.
#ifdef NDEBUG
constexpr std::chrono::seconds case_limit(300);
#else
constexpr std::chrono::seconds case_limit(900);
#endif

/// Ends the program when a test case takes too long. Its thread gets no signals, which belong to the tests.
class stopwatch {
 public:
  stopwatch() {
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    thread_ = std::thread([this] { watch(); });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
  ~stopwatch() {
    {
      const std::scoped_lock lock(mutex_);
      over_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  void start(std::string name) {
    const std::scoped_lock lock(mutex_);
    name_ = std::move(name);
    deadline_ = std::chrono::steady_clock::now() + case_limit;
    changed_.notify_all();
  }
  void stop() {
    const std::scoped_lock lock(mutex_);
    name_.clear();
  }

 private:
  void watch() {
    std::unique_lock lock(mutex_);
    while (!over_) {
      if (name_.empty()) {
        changed_.wait(lock);
      } else if (changed_.wait_until(lock, deadline_) == std::cv_status::timeout && !name_.empty() &&
                 std::chrono::steady_clock::now() >= deadline_) {
        std::fprintf(stderr, "hangs after %lld s: %s\n", static_cast<long long>(case_limit.count()), name_.c_str());
        std::abort();
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::string name_;
  std::chrono::steady_clock::time_point deadline_;
  bool over_ = false;
  std::thread thread_;
};

std::vector<std::string> failed_cases;

std::string place_of(const Catch::TestCaseInfo& info) {
  return info.name + " (" + info.lineInfo.file + ":" + std::to_string(info.lineInfo.line) + ")";
}

class watching_listener : public listener_base {
 public:
  using listener_base::listener_base;

  void testCaseStarting(const Catch::TestCaseInfo& info) override {
    place_ = place_of(info);
    watch_.start(place_);
  }
  void testCaseEnded(const Catch::TestCaseStats& stats) override {
    watch_.stop();
    if (stats.totals.assertions.failed > 0) failed_cases.push_back(place_);
  }

 private:
  stopwatch watch_;
  std::string place_;
};

CATCH_REGISTER_LISTENER(watching_listener)

}  // namespace

int main(int argc, char** argv) {
  const int result = Catch::Session().run(argc, argv);
  std::fflush(stdout);
  for (const auto& place : failed_cases) std::fprintf(stderr, "failed: %s\n", place.c_str());
  return result;
}

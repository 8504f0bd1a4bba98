#include "rondo/loop/grace_period.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>
#include <exception>
#include <future>
#include <string>
#include <thread>

#include "rondo/async/detail/quiet_thread.hpp"
#include "rondo/async/signals.hpp"
#include "rondo/async/timer.hpp"
#include "rondo/loop/options.hpp"

namespace rondo::detail {

class grace_period::watch {
 public:
  watch(std::vector<int> signals, std::chrono::nanoseconds limit) : signals_(std::move(signals)), limit_(limit) {
    asio::co_spawn(events_, run(), [this](std::exception_ptr error) {
      if (error && !watching_told_) watching_.set_exception(error);
    });
    auto watching = watching_.get_future();
    thread_ = quiet_thread([this] { events_.run(); });
    try {
      watching.get();
    } catch (...) {
      thread_.join();
      throw;
    }
  }
  watch(const watch&) = delete;
  watch& operator=(const watch&) = delete;
  ~watch() {
    events_.stop();
    thread_.join();
  }

 private:
  task<> run() {
    {
      // Given back after the first signal, so that a second one finds whatever was installed before.
      signal_stream signals(events_.get_executor(), signals_, signal_stream::mode::first);
      watching_told_ = true;
      watching_.set_value();
      static_cast<void>(co_await signals.next());
    }
    co_await sleep_for(limit_);
    end_process();
  }

  [[noreturn]] void end_process() const {
    const auto message = fmt::format(
        "rondo: training has not ended within the grace_period of {:.3g} s after a signal: the process ends now, with "
        "status {}. Snapshots that are complete stay.\n",
        std::chrono::duration<double>(limit_).count(), exit_code_too_late);
    static_cast<void>(!::write(STDERR_FILENO, message.data(), message.size()));
    ::_exit(exit_code_too_late);
  }

  std::vector<int> signals_;
  std::chrono::nanoseconds limit_;
  asio::io_context events_{1};
  std::promise<void> watching_;
  bool watching_told_ = false;
  std::thread thread_;
};

grace_period::grace_period(const std::vector<int>& signals, std::chrono::nanoseconds limit)
    : watch_(std::make_unique<watch>(signals, limit)) {}

grace_period::~grace_period() = default;

}  // namespace rondo::detail

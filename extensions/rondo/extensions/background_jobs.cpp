#include "rondo/extensions/background_jobs.hpp"

#include <exception>
#include <utility>

#include "rondo/loop/context.hpp"

namespace rondo::extensions {

void background_jobs::add(context& ctx, std::function<void()> job) {
  waiting_.push_back(std::move(job));
  if (at_work_) return;
  at_work_.emplace(busy_.join());
  ctx.spawn([this]() -> task<> { return work(); });
}

task<> background_jobs::work() {
  std::exception_ptr error;
  try {
    while (!waiting_.empty()) {
      auto job = std::move(waiting_.front());
      waiting_.pop_front();
      co_await thread_.run(job);
    }
  } catch (...) {
    error = std::current_exception();
  }
  waiting_.clear();
  at_work_.reset();
  if (error) std::rethrow_exception(error);
}

}  // namespace rondo::extensions

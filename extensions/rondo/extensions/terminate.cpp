#include "rondo/extensions/terminate.hpp"

#include <fmt/format.h>

#include <memory>

#include "rondo/error.hpp"
#include "rondo/event/events.hpp"

namespace rondo {

namespace {

class clock_watcher {
 public:
  clock_watcher(double limit, time_limit_options options) : limit_(limit), options_(options) {}

  void attach(context& ctx) {
    ctx.on<event::training_started>([this, &ctx] {
      if (options_.this_run_only) begun_at_ = ctx.elapsed_time();
    });
    ctx.when_due([this, &ctx] {
      if (ctx.elapsed_time() - begun_at_ >= limit_) ctx.stop(fmt::format("time limit of {} s reached", limit_));
    });
  }

 private:
  double limit_;
  time_limit_options options_;
  double begun_at_ = 0.0;
};

}  // namespace

extension time_limit(std::chrono::duration<double> limit, time_limit_options options) {
  if (!(limit.count() > 0.0)) throw option_error("time_limit", fmt::format("{} s", limit.count()), "a positive time");
  return make_extension("time_limit", std::make_shared<clock_watcher>(limit.count(), options));
}

}  // namespace rondo

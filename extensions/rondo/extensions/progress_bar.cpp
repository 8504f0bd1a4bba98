#include "rondo/extensions/progress_bar.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>

#include "rondo/error.hpp"
#include "rondo/event/events.hpp"
#include "rondo/extensions/terminal.hpp"
#include "rondo/loop/context.hpp"

namespace rondo {

namespace {

constexpr double rate_window = 30.0;  // seconds

void require_positive(const char* option, std::chrono::duration<double> time) {
  if (!(time.count() > 0.0) || !std::isfinite(time.count()))
    throw option_error(option, fmt::format("{} s", time.count()), "a positive number of seconds");
}

std::string time_text(double seconds) {
  const auto whole = static_cast<std::int64_t>(std::llround(seconds));
  return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
}

/// How many iterations per second there have been lately.
class rate_meter {
 public:
  void add(double time, std::int64_t iteration) {
    samples_.push_back({time, iteration});
    while (samples_.size() > 2 && time - samples_.front().time > rate_window) samples_.pop_front();
  }
  /// 0 while unknown.
  [[nodiscard]] double rate() const {
    const double seconds = samples_.back().time - samples_.front().time;
    return seconds > 0.0 ? static_cast<double>(samples_.back().iteration - samples_.front().iteration) / seconds : 0.0;
  }

 private:
  struct sample {
    double time;
    std::int64_t iteration;
  };
  std::deque<sample> samples_;
};

/// How much of the training is done, from 0 to 1, if its length is known.
std::optional<double> done_of_total(const context& ctx) {
  const auto& goal = ctx.options();
  double done = 0.0;
  if (goal.max_iterations) done = static_cast<double>(ctx.iteration()) / static_cast<double>(*goal.max_iterations);
  if (goal.max_epochs) done = std::max(done, ctx.epoch_detail() / static_cast<double>(*goal.max_epochs));
  if (!goal.max_iterations && !goal.max_epochs) return std::nullopt;
  return std::min(done, 1.0);
}

/// How many iterations are left, if that is known.
std::optional<double> iterations_left(const context& ctx) {
  const auto& goal = ctx.options();
  std::optional<double> left;
  if (goal.max_iterations) left = static_cast<double>(*goal.max_iterations - ctx.iteration());
  if (goal.max_epochs && ctx.epoch_length()) {
    const double epochs = static_cast<double>(*goal.max_epochs) - ctx.epoch_detail();
    const double of_epochs = epochs * static_cast<double>(*ctx.epoch_length());
    left = left ? std::min(*left, of_epochs) : of_epochs;
  }
  return left;
}

/// "iteration 120 of 1000, epoch 1.20 of 10"
std::string position_text(const context& ctx) {
  const auto& goal = ctx.options();
  std::string text = fmt::format("iteration {}", ctx.iteration());
  if (goal.max_iterations) text += fmt::format(" of {}", *goal.max_iterations);
  text += fmt::format(", epoch {:.{}f}", ctx.epoch_detail(), ctx.epoch_length() ? 2 : 0);
  if (goal.max_epochs) text += fmt::format(" of {}", *goal.max_epochs);
  return text;
}

/// "12.3 iterations/s, 0:01:13 to go"
std::string speed_text(const context& ctx, double rate) {
  std::string text = fmt::format("{:.4g} iterations/s", rate);
  const auto left = iterations_left(ctx);
  if (left && rate > 0.0) text += ", " + time_text(*left / rate) + " to go";
  return text;
}

class progress_display {
 public:
  explicit progress_display(progress_bar_options options)
      : options_(std::move(options)),
        terminal_(options_.terminal.value_or(extensions::is_terminal(*options_.out))),
        interval_(terminal_ ? options_.update_interval.count() : options_.plain_interval.count()) {}

  void attach(context& ctx) {
    ctx.on<event::training_started>([this, &ctx] { begin(ctx); });
    ctx.on<event::iteration_completed>([this, &ctx] {
      const double time = time_of(ctx);
      if (time >= next_) show(ctx, time);
    });
    ctx.on_end<event::training_completed>([this, &ctx](const event::training_completed& end) { conclude(ctx, end); });
  }

 private:
  [[nodiscard]] double time_of(const context& ctx) const {
    return options_.clock ? options_.clock() : ctx.elapsed_time();
  }

  void begin(const context& ctx) {
    begun_at_ = time_of(ctx);
    first_iteration_ = ctx.iteration();
    recent_.add(begun_at_, first_iteration_);
    next_ = begun_at_ + interval_;
  }

  void show(const context& ctx, double time) {
    next_ = time + interval_;
    recent_.add(time, ctx.iteration());
    *options_.out << (terminal_ ? bars(ctx) : line(ctx)) << std::flush;
  }

  std::string bars(const context& ctx) const {
    std::string text(extensions::clear_below);
    int lines = 2;
    const auto add_bar = [&](const char* what, double done) {
      const auto filled = static_cast<std::size_t>(std::floor(done * options_.bar_length));
      const auto empty = static_cast<std::size_t>(options_.bar_length) - filled;
      text += fmt::format("{:>10} [{}{}] {:6.2f}%\n", what, std::string(filled, '#'), std::string(empty, '.'),
                          done * 100.0);
      ++lines;
    };
    if (const auto done = done_of_total(ctx)) add_bar("total", *done);
    if (ctx.epoch_length())
      add_bar("this epoch", std::min(1.0, static_cast<double>(ctx.now().iteration_in_epoch) /
                                              static_cast<double>(*ctx.epoch_length())));
    text += fmt::format("{:>10} {}\n{:>10} {}\n", "", position_text(ctx), "", speed_text(ctx, recent_.rate()));
    return text + fmt::format("\x1b[{}A", lines);
  }

  std::string line(const context& ctx) const {
    std::string text = position_text(ctx);
    if (const auto done = done_of_total(ctx)) text += fmt::format(", {:.1f}%", *done * 100.0);
    return text + ", " + speed_text(ctx, recent_.rate()) + '\n';
  }

  void conclude(const context& ctx, const event::training_completed& end) {
    const double seconds = time_of(ctx) - begun_at_;
    const auto iterations = ctx.iteration() - first_iteration_;
    std::string text(terminal_ ? extensions::clear_below : "");
    text += fmt::format("{}: {} iterations in {}", end.error ? "ended by an error" : end.stop_reason, iterations,
                        time_text(seconds));
    if (seconds > 0.0) text += fmt::format(", {:.4g} iterations/s", static_cast<double>(iterations) / seconds);
    *options_.out << text << '\n' << std::flush;
  }

  progress_bar_options options_;
  bool terminal_;
  double interval_;
  double next_ = 0.0;
  double begun_at_ = 0.0;
  std::int64_t first_iteration_ = 0;
  rate_meter recent_;
};

}  // namespace

extension progress_bar(progress_bar_options options) {
  require_positive("update_interval", options.update_interval);
  require_positive("plain_interval", options.plain_interval);
  if (options.bar_length < 1)
    throw option_error("bar_length", fmt::format("{}", options.bar_length), "1 or more characters");
  if (options.out == nullptr) throw option_error("out", "null", "a stream that outlives the run");
  return make_extension("progress_bar", std::make_shared<progress_display>(std::move(options)));
}

}  // namespace rondo

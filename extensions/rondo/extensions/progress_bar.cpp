#include "rondo/extensions/progress_bar.hpp"

#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "rondo/error.hpp"
#include "rondo/event/events.hpp"
#include "rondo/extensions/progress.hpp"
#include "rondo/extensions/terminal.hpp"
#include "rondo/loop/context.hpp"

namespace rondo {

namespace {

using extensions::done_of_epoch;
using extensions::done_of_total;
using extensions::position_text;
using extensions::rate_meter;
using extensions::speed_text;
using extensions::time_text;

void require_positive(const char* option, std::chrono::duration<double> time) {
  if (!(time.count() > 0.0) || !std::isfinite(time.count()))
    throw option_error(option, fmt::format("{} s", time.count()), "a positive number of seconds");
}

class progress_display {
 public:
  explicit progress_display(progress_bar_options options)
      : options_(std::move(options)),
        terminal_(options_.terminal.value_or(extensions::is_terminal(*options_.out))),
        interval_(terminal_ ? options_.update_interval.count() : options_.plain_interval.count()) {}

  void attach(context& ctx) {
    if (!ctx.is_saver()) return;
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
    if (const auto done = done_of_epoch(ctx)) add_bar("this epoch", *done);
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
  return extension::made_by("progress_bar",
                            [options = std::move(options)] { return std::make_shared<progress_display>(options); });
}

}  // namespace rondo

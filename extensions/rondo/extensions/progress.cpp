#include "rondo/extensions/progress.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace rondo::extensions {

namespace {

constexpr double rate_window = 30.0;  // seconds

}  // namespace

std::string time_text(double seconds) {
  const auto whole = static_cast<std::int64_t>(std::llround(seconds));
  return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
}

void rate_meter::add(double time, std::int64_t iteration) {
  samples_.push_back({time, iteration});
  while (samples_.size() > 2 && time - samples_.front().time > rate_window) samples_.pop_front();
}

double rate_meter::rate() const {
  if (samples_.empty()) return 0.0;
  const double seconds = samples_.back().time - samples_.front().time;
  return seconds > 0.0 ? static_cast<double>(samples_.back().iteration - samples_.front().iteration) / seconds : 0.0;
}

std::optional<double> done_of_total(const context& ctx) {
  const auto& goal = ctx.options();
  double done = 0.0;
  if (goal.max_iterations) done = static_cast<double>(ctx.iteration()) / static_cast<double>(*goal.max_iterations);
  if (goal.max_epochs) done = std::max(done, ctx.epoch_detail() / static_cast<double>(*goal.max_epochs));
  if (!goal.max_iterations && !goal.max_epochs) return std::nullopt;
  return std::min(done, 1.0);
}

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

std::string position_text(const context& ctx) {
  const auto& goal = ctx.options();
  std::string text = fmt::format("iteration {}", ctx.iteration());
  if (goal.max_iterations) text += fmt::format(" of {}", *goal.max_iterations);
  text += fmt::format(", epoch {:.{}f}", ctx.epoch_detail(), ctx.epoch_length() ? 2 : 0);
  if (goal.max_epochs) text += fmt::format(" of {}", *goal.max_epochs);
  return text;
}

std::string speed_text(const context& ctx, double rate) {
  std::string text = fmt::format("{:.4g} iterations/s", rate);
  const auto left = iterations_left(ctx);
  if (left && rate > 0.0) text += ", " + time_text(*left / rate) + " to go";
  return text;
}

std::optional<double> done_of_epoch(const context& ctx) {
  if (!ctx.epoch_length()) return std::nullopt;
  return std::min(1.0, static_cast<double>(ctx.now().iteration_in_epoch) / static_cast<double>(*ctx.epoch_length()));
}

}  // namespace rondo::extensions

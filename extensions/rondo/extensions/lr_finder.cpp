#include "rondo/extensions/lr_finder.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>
#include <utility>

#include "rondo/error.hpp"
#include "rondo/event/events.hpp"
#include "rondo/loop/context.hpp"
#include "rondo/loop/grad_scaler.hpp"
#include "rondo/report/summary.hpp"
#include "rondo/state/module.hpp"
#include "rondo/state/optimizer.hpp"
#include "rondo/state/random.hpp"
#include "rondo/writing/atomic_file.hpp"
#include "rondo/writing/file_system.hpp"

namespace rondo {

namespace {

// The last one that still comes before the decision to stop.
constexpr int after_others = priority::snapshot + 1;

void check(const lr_finder_options& o) {
  const auto require = [](bool fine, const char* option, double found, const char* allowed) {
    if (!fine) throw option_error(option, fmt::format("{}", found), allowed);
  };
  require(o.start_lr > 0.0 && std::isfinite(o.start_lr), "start_lr", o.start_lr, "a positive number");
  require(o.end_lr > o.start_lr && std::isfinite(o.end_lr), "end_lr", o.end_lr, "a number above start_lr");
  require(o.iterations >= 3, "iterations", static_cast<double>(o.iterations), "3 or more");
  require(o.smoothing >= 0.0 && o.smoothing < 1.0, "smoothing", o.smoothing, "a number from 0 to below 1");
  require(!o.stop_factor || *o.stop_factor > 1.0, "stop_factor", o.stop_factor.value_or(0.0), "a number above 1");
  require(o.skip_begin >= 0, "skip_begin", static_cast<double>(o.skip_begin), "0 or more");
  require(o.skip_end >= 0, "skip_end", static_cast<double>(o.skip_end), "0 or more");
  if (o.filename.find('/') != std::string::npos || o.filename == "." || o.filename == "..")
    throw option_error("filename", "'" + o.filename + "'",
                       "the name of a file in the loop's out directory, without '/', or nothing");
}

/// Each group's learning rate as a multiple of the first one's.
std::vector<double> ratios_of(const torch::optim::Optimizer& optimizer) {
  std::vector<double> all;
  for (const auto& group : optimizer.param_groups()) all.push_back(group.options().get_lr());
  const double first = all.empty() ? 0.0 : all.front();
  for (auto& lr : all) lr = first > 0.0 ? lr / first : 1.0;
  return all;
}

void set_rates(torch::optim::Optimizer& optimizer, const std::vector<double>& ratios, double lr) {
  for (std::size_t i = 0; i < ratios.size(); ++i) optimizer.param_groups()[i].options().set_lr(ratios[i] * lr);
}

/// Everything that training changes, as it was.
class saved_state {
 public:
  explicit saved_state(const context& ctx)
      : models_(ctx.models()), optimizers_(ctx.optimizers()), scaler_(ctx.options().scaler) {
    if (scaler_) scaler_state_ = state::clone(scaler_->state_dict());
    for (const auto& m : models_) model_states_.push_back(state::clone(state::module_state(*m.module)));
    for (const auto& o : optimizers_) {
      optimizer_states_.push_back(state::clone(state::optimizer_state(*o.optimizer)));
      for (const auto& group : o.optimizer->param_groups())
        for (const auto& parameter : group.params()) keep_gradient(parameter);
    }
  }

  void restore() {
    for (std::size_t i = 0; i < models_.size(); ++i) state::load_module_state(*models_[i].module, model_states_[i]);
    for (std::size_t i = 0; i < optimizers_.size(); ++i)
      state::load_optimizer_state(*optimizers_[i].optimizer, optimizer_states_[i]);
    for (auto& [parameter, gradient] : gradients_) parameter.mutable_grad() = gradient;
    if (scaler_) scaler_->load_state_dict(scaler_state_);
    state::load_random_state(random_);
  }

 private:
  void keep_gradient(const at::Tensor& parameter) {
    const auto& gradient = parameter.grad();
    gradients_.emplace_back(parameter, gradient.defined() ? gradient.clone() : gradient);
  }

  std::vector<detail::named_model> models_;
  std::vector<detail::named_optimizer> optimizers_;
  std::vector<state::value> model_states_;
  std::vector<state::value> optimizer_states_;
  std::vector<std::pair<at::Tensor, at::Tensor>> gradients_;
  std::shared_ptr<grad_scaler> scaler_;
  state::value scaler_state_;
  state::value random_ = state::random_state();
};

std::string json_lines(const std::vector<lr_curve::point>& points) {
  std::string text;
  for (const auto& p : points)
    text += nlohmann::ordered_json{{"lr", p.lr}, {"loss", p.loss}, {"smoothed", p.smoothed}}.dump() + '\n';
  return text;
}

void write_file(const std::filesystem::path& path, const std::string& text) {
  const auto files = writing::posix_file_system();
  writing::write_atomically(*files, path, text.size(),
                            [&](const writing::append_function& append) { append(std::as_bytes(std::span(text))); });
}

/// Joins the losses of all ranks.
std::string merged(const std::vector<std::string>& parts) {
  summary whole;
  for (const auto& part : parts) whole.merge(summary::unpack(part));
  return whole.pack();
}

class range_test {
 public:
  explicit range_test(lr_finder_options options) : options_(std::move(options)) {}

  void attach(context& ctx) {
    if (ctx.optimizers().empty())
      throw option_error("lr_finder", "a loop without an optimizer", "a loop with one or several");
    // Where nothing is restored, training begins as it stands; else from what the snapshot says.
    ctx.on<event::training_started>([this, &ctx] { begin(ctx); });
    ctx.on<event::iteration_started>([this] { set_rate(); });
    ctx.on<event::update_started>([this] { set_rate(); });
    ctx.on<event::iteration_completed>([this, &ctx] { record(ctx); });
    ctx.on_end<event::training_completed>([this, &ctx](const event::training_completed& end) { conclude(ctx, end); });
  }

  [[nodiscard]] lr_curve take() { return std::move(curve_); }

 private:
  void begin(const context& ctx) {
    saved_.emplace(ctx);
    for (const auto& o : ctx.optimizers()) targets_.emplace_back(o.optimizer.get(), ratios_of(*o.optimizer));
  }

  [[nodiscard]] double rate() const {
    const double part = static_cast<double>(step_) / static_cast<double>(options_.iterations - 1);
    if (options_.exponential) return options_.start_lr * std::pow(options_.end_lr / options_.start_lr, part);
    return options_.start_lr + (options_.end_lr - options_.start_lr) * part;
  }

  void set_rate() {
    for (auto& [optimizer, ratios] : targets_) set_rates(*optimizer, ratios, rate());
  }

  [[nodiscard]] double loss_of(const context& ctx) const {
    const auto& mine = ctx.reported().at(options_.key);
    if (ctx.group().world_size() == 1) return mine.value();
    summary own;
    own.add(mine.value(), mine.weight());
    return summary::unpack(ctx.group().channel(ctx.name()).merge_now(own.pack(), merged)).mean();
  }

  void record(context& ctx) {
    const double loss = loss_of(ctx);
    if (!std::isfinite(loss)) return end(ctx, true);
    add(loss);
    const auto& last = curve_.points.back();
    if (options_.stop_factor && last.smoothed > lowest_ + (*options_.stop_factor - 1.0) * std::abs(lowest_))
      return end(ctx, true);
    lowest_ = std::min(lowest_, last.smoothed);
    if (++step_ == options_.iterations) end(ctx, false);
  }

  void add(double loss) {
    const double past = options_.smoothing;
    average_ = past * average_ + (1.0 - past) * loss;
    weight_ = past * weight_ + (1.0 - past);
    curve_.points.push_back({rate(), loss, average_ / weight_});
  }

  void end(context& ctx, bool diverged) {
    curve_.diverged = diverged;
    ctx.stop(diverged ? "the learning-rate range test has diverged" : "the learning-rate range test is complete");
  }

  void conclude(context& ctx, const event::training_completed& end) {
    if (saved_) saved_->restore();
    saved_.reset();
    if (end.error) return;
    judge();
    if (!options_.filename.empty() && ctx.is_saver())
      write_file(ctx.out() / options_.filename, json_lines(curve_.points));
  }

  void judge() {
    const auto& points = curve_.points;
    if (points.empty()) return;
    curve_.minimum = std::min_element(points.begin(), points.end(), [](const auto& a, const auto& b) {
                       return a.smoothed < b.smoothed;
                     })->lr;
    curve_.suggestion = steepest();
  }

  [[nodiscard]] double place_of(const lr_curve::point& p) const { return options_.exponential ? std::log(p.lr) : p.lr; }

  [[nodiscard]] std::optional<double> steepest() const {
    const auto& points = curve_.points;
    const auto from = static_cast<std::size_t>(options_.skip_begin) + 1;
    const auto behind = static_cast<std::size_t>(options_.skip_end) + 1;
    std::optional<double> best;
    double least = 0.0;
    for (std::size_t i = from; i + behind < points.size(); ++i) {
      const auto &before = points[i - 1], &after = points[i + 1];
      const double slope = (after.smoothed - before.smoothed) / (place_of(after) - place_of(before));
      if (slope >= least) continue;
      least = slope;
      best = points[i].lr;
    }
    return best;
  }

  lr_finder_options options_;
  std::optional<saved_state> saved_;
  std::vector<std::pair<torch::optim::Optimizer*, std::vector<double>>> targets_;
  lr_curve curve_;
  std::int64_t step_ = 0;
  double average_ = 0.0;
  double weight_ = 0.0;
  double lowest_ = std::numeric_limits<double>::infinity();
};

}  // namespace

lr_curve find_lr(loop l, lr_finder_options options) {
  check(options);
  const auto test = std::make_shared<range_test>(std::move(options));
  l.extend(extension("lr_finder", test).at_priority(after_others));
  l.run();
  return test->take();
}

void set_learning_rate(torch::optim::Optimizer& optimizer, double lr) {
  if (!(lr > 0.0) || !std::isfinite(lr)) throw option_error("lr", fmt::format("{}", lr), "a positive number");
  set_rates(optimizer, ratios_of(optimizer), lr);
}

}  // namespace rondo

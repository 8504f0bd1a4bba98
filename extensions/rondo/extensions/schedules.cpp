#include "rondo/extensions/schedules.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "rondo/error.hpp"
#include "rondo/event/interval_mean.hpp"

namespace rondo::schedules {

namespace {

using wide = __int128;  // products of iterations, epochs and denominators

std::int64_t known_length(const progress& p, const std::string& what) {
  if (p.epoch_length) return *p.epoch_length;
  throw option_error("schedule", what,
                     "iterations, or changes at the ends of epochs only, as long as the number of iterations per epoch "
                     "is unknown (give the batches a size)");
}

/// Iterations done, as far as whole epochs of `length` tell.
wide iterations_done(const progress& p, std::int64_t length) {
  return static_cast<wide>(p.epoch) * length + p.iteration_in_epoch;
}

/// The progress in units of `n`, as a fraction of whole numbers.
struct ratio {
  wide numerator;
  wide denominator;

  [[nodiscard]] double number() const { return static_cast<double>(numerator) / static_cast<double>(denominator); }
  [[nodiscard]] std::int64_t whole() const { return static_cast<std::int64_t>(numerator / denominator); }
};

ratio ratio_of(const progress& p, const iterations& n) { return {p.iteration, n.count}; }
ratio ratio_of(const progress& p, const epochs& n) {
  if (p.iteration_in_epoch == 0) return {static_cast<wide>(p.epoch) * n.denominator(), n.numerator()};
  const auto length = known_length(p, n.str() + " epochs");
  return {iterations_done(p, length) * n.denominator(), static_cast<wide>(n.numerator()) * length};
}

bool is_whole_epochs(const period& p) { return std::holds_alternative<epochs>(p) && std::get<epochs>(p).whole(); }

bool reached(const progress& p, const period& n) { return p.times(n) >= 1; }

/// From 0 to 1 in the course of `n`, and 1 after that.
double part_of(const progress& p, const period& n) { return std::min(p.of(n), 1.0); }

double half_cosine(double from, double to, double part) {
  return to + (from - to) * (1.0 + std::cos(std::numbers::pi * part)) / 2.0;
}

void require_positive(const char* option, const period& p) {
  const bool positive =
      std::holds_alternative<iterations>(p) ? std::get<iterations>(p).count > 0 : std::get<epochs>(p).numerator() > 0;
  if (!positive) throw option_error(option, str(p), "more than 0 iterations or epochs");
}

void require(bool holds, const char* option, double found, const char* allowed) {
  if (!holds || !std::isfinite(found)) throw option_error(option, fmt::format("{}", found), allowed);
}

void require_not_negative(const char* option, double found) { require(found >= 0.0, option, found, "a number >= 0"); }

/// For milestones in one unit; others cannot be compared before the length of an epoch is known.
void require_ascending(const char* option, const std::vector<period>& milestones) {
  const auto follows = [](const period& a, const period& b) {
    if (a.index() != b.index()) return true;
    if (const auto* first = std::get_if<iterations>(&a)) return first->count < std::get<iterations>(b).count;
    const auto& first = std::get<epochs>(a);
    const auto& second = std::get<epochs>(b);
    return static_cast<wide>(first.numerator()) * second.denominator() <
           static_cast<wide>(second.numerator()) * first.denominator();
  };
  for (std::size_t i = 1; i < milestones.size(); ++i)
    if (!follows(milestones[i - 1], milestones[i]))
      throw option_error(option, fmt::format("{} before {}", str(milestones[i - 1]), str(milestones[i])),
                         "ascending milestones");
}

/// Several schedules as one. What they remember is kept in a list.
class group {
 public:
  explicit group(std::vector<schedule> parts) : parts_(std::move(parts)) {}

  [[nodiscard]] state::value state_dict() const {
    state::list all;
    for (const auto& part : parts_) all.push_back(part.state_dict());
    return state::dict{{"parts", std::move(all)}};
  }
  void load_state_dict(const state::value& state) {
    const auto& stored = state.get<state::list>("parts");
    if (stored.size() != parts_.size())
      throw state_error("parts",
                        fmt::format("expected the memory of {} schedules, found {}", parts_.size(), stored.size()));
    for (std::size_t i = 0; i < parts_.size(); ++i) parts_[i].load_state_dict(stored[i]);
  }

 protected:
  std::vector<schedule> parts_;
};

class sequential_schedule : public group {
 public:
  sequential_schedule(std::vector<schedule> parts, std::vector<period> milestones)
      : group(std::move(parts)), milestones_(std::move(milestones)) {}

  double lr(const progress& p, double base) {
    std::size_t i = 0;
    while (i < milestones_.size() && reached(p, milestones_[i])) ++i;
    return parts_[i].lr(from_part(p, i), base);
  }
  // The iteration that has reached a milestone was trained by the part before it.
  void observe(const progress& p, const moment& now) {
    std::size_t i = 0;
    while (i < milestones_.size() && reached(p, milestones_[i]) && p.since(milestones_[i]).iteration > 0) ++i;
    parts_[i].observe(from_part(p, i), now);
  }

 private:
  [[nodiscard]] progress from_part(const progress& p, std::size_t i) const {
    return i == 0 ? p : p.since(milestones_[i - 1]);
  }

  std::vector<period> milestones_;
};

class chained_schedule : public group {
 public:
  using group::group;

  double lr(const progress& p, double base) {
    for (auto& part : parts_) base = part.lr(p, base);
    return base;
  }
  void observe(const progress& p, const moment& now) {
    for (auto& part : parts_) part.observe(p, now);
  }
};

class one_cycle_schedule {
 public:
  one_cycle_schedule(period n, one_cycle_options options) : n_(std::move(n)), options_(options) {}

  double lr(const progress& p, double base) const {
    const auto total = static_cast<double>(p.iterations_in(n_));
    const double at = done(p);
    const double low = base / options_.div_factor;
    const double last = low / options_.final_div_factor;
    const double rise = options_.pct_start * total - 1.0;
    if (at <= rise) return between(low, base, at, 0.0, rise);
    if (!options_.three_phase) return between(base, last, at, rise, total - 1.0);
    const double fall = 2.0 * options_.pct_start * total - 2.0;
    if (at <= fall) return between(base, low, at, rise, fall);
    return between(low, last, at, fall, total - 1.0);
  }

 private:
  [[nodiscard]] double done(const progress& p) const {
    if (std::holds_alternative<iterations>(n_)) return static_cast<double>(p.iteration);
    return static_cast<double>(iterations_done(p, known_length(p, str(n_))));
  }

  [[nodiscard]] double between(double from, double to, double at, double begin, double end) const {
    const double part = end > begin ? std::min((at - begin) / (end - begin), 1.0) : 1.0;
    return options_.anneal == curve::cosine ? half_cosine(from, to, part) : (to - from) * part + from;
  }

  period n_;
  one_cycle_options options_;
};

class plateau_schedule {
 public:
  explicit plateau_schedule(reduce_on_plateau_options options)
      : higher_(higher_is_better(options.direction, options.monitor, "reduce_on_plateau.direction")),
        mean_("reduce_on_plateau", options.monitor, options.check),
        options_(std::move(options)) {}

  // The same subtractions as if the rate had been reduced step by step, so that `eps` means the same.
  double lr(const progress&, double base) const {
    for (std::int64_t i = 0; i < reductions_; ++i) {
      const double reduced = std::max(base * options_.factor, options_.min_lr);
      if (base - reduced <= options_.eps) break;
      base = reduced;
    }
    return base;
  }

  void observe(const progress&, const moment& now) {
    if (const auto mean = mean_.next(now)) judge(*mean);
  }

  [[nodiscard]] state::value state_dict() const {
    return state::dict{{"mean", mean_.state_dict()},
                       {"best", best_ ? state::value(*best_) : state::value()},
                       {"bad", bad_},
                       {"cooldown", cooldown_},
                       {"reductions", reductions_}};
  }
  void load_state_dict(const state::value& state) {
    interval_mean mean = mean_;
    mean.load_state_dict(state.at("mean"));
    const auto& best = state.at("best");
    const auto stored_best = best.is_null() ? std::nullopt : std::optional(best.number());
    const auto bad = state.get<std::int64_t>("bad");
    const auto cooldown = state.get<std::int64_t>("cooldown");
    reductions_ = state.get<std::int64_t>("reductions");
    mean_ = std::move(mean);
    best_ = stored_best;
    bad_ = bad;
    cooldown_ = cooldown;
  }

 private:
  void judge(double mean) {
    if (is_better(mean)) {
      best_ = mean;
      bad_ = 0;
    } else {
      ++bad_;
    }
    if (cooldown_ > 0) {
      --cooldown_;
      bad_ = 0;
    }
    if (bad_ <= options_.patience) return;
    ++reductions_;
    cooldown_ = options_.cooldown;
    bad_ = 0;
  }

  [[nodiscard]] bool is_better(double mean) const {
    if (!best_) return !std::isnan(mean);
    const double change = higher_ ? options_.threshold : -options_.threshold;
    const double limit = options_.relative ? *best_ * (1.0 + change) : *best_ + change;
    return higher_ ? mean > limit : mean < limit;
  }

  bool higher_;
  interval_mean mean_;
  reduce_on_plateau_options options_;
  std::optional<double> best_;
  std::int64_t bad_ = 0;
  std::int64_t cooldown_ = 0;
  std::int64_t reductions_ = 0;
};

}  // namespace

double progress::epoch_detail() const noexcept {
  if (!epoch_length) return static_cast<double>(epoch);
  return static_cast<double>(epoch) + static_cast<double>(iteration_in_epoch) / static_cast<double>(*epoch_length);
}

double progress::of(const period& p) const {
  return std::visit([this](const auto& n) { return ratio_of(*this, n).number(); }, p);
}

std::int64_t progress::times(const period& p) const {
  if (is_whole_epochs(p)) return epoch / std::get<epochs>(p).numerator();
  return std::visit([this](const auto& n) { return ratio_of(*this, n).whole(); }, p);
}

std::int64_t progress::iterations_in(const period& p) const {
  if (const auto* n = std::get_if<iterations>(&p)) return n->count;
  const auto& n = std::get<epochs>(p);
  const wide all = static_cast<wide>(n.numerator()) * known_length(*this, str(p));
  return static_cast<std::int64_t>((all + n.denominator() - 1) / n.denominator());
}

progress progress::since(const period& p) const {
  const auto count = iterations_in(p);
  progress rest = *this;
  rest.iteration = std::max<std::int64_t>(iteration - count, 0);
  if (!epoch_length) {
    rest.iteration_in_epoch = std::max<std::int64_t>(iteration_in_epoch - count, 0);
    return rest;
  }
  const auto left = static_cast<std::int64_t>(std::max<wide>(iterations_done(*this, *epoch_length) - count, 0));
  rest.epoch = left / *epoch_length;
  rest.iteration_in_epoch = left % *epoch_length;
  return rest;
}

progress progress_at(const moment& now) {
  progress p{now.iteration, now.epoch(), now.epoch_end ? 0 : now.iteration_in_epoch, now.epoch_length};
  // An epoch that is longer than the one that its length was learned from is not over before its end.
  if (p.epoch_length) p.iteration_in_epoch = std::min(p.iteration_in_epoch, *p.epoch_length - 1);
  return p;
}

schedule constant(double factor) {
  require_not_negative("constant.factor", factor);
  return [factor](const progress&) { return factor; };
}

schedule constant(double factor, period n) {
  require_not_negative("constant.factor", factor);
  require_positive("constant.n", n);
  return [factor, n = std::move(n)](const progress& p) { return reached(p, n) ? 1.0 : factor; };
}

schedule step(period n, double gamma) {
  require_positive("step.n", n);
  require_not_negative("step.gamma", gamma);
  return [n = std::move(n), gamma](const progress& p) { return std::pow(gamma, static_cast<double>(p.times(n))); };
}

schedule multi_step(std::vector<period> milestones, double gamma) {
  if (milestones.empty())
    throw option_error("multi_step.milestones", "none", "at least one number of iterations or epochs");
  for (const auto& m : milestones) require_positive("multi_step.milestones", m);
  require_not_negative("multi_step.gamma", gamma);
  return [milestones = std::move(milestones), gamma](const progress& p) {
    const auto passed =
        std::count_if(milestones.begin(), milestones.end(), [&](const period& m) { return reached(p, m); });
    return std::pow(gamma, static_cast<double>(passed));
  };
}

schedule exponential(double gamma, period n) {
  require_not_negative("exponential.gamma", gamma);
  require_positive("exponential.n", n);
  return [gamma, n = std::move(n)](const progress& p) { return std::pow(gamma, p.of(n)); };
}

schedule linear(double start, double end, period n) {
  require_not_negative("linear.start", start);
  require_not_negative("linear.end", end);
  require_positive("linear.n", n);
  return [start, end, n = std::move(n)](const progress& p) {
    const double part = part_of(p, n);
    return part < 1.0 ? start + (end - start) * part : end;
  };
}

schedule polynomial(period n, double power) {
  require_positive("polynomial.n", n);
  require_not_negative("polynomial.power", power);
  return [n = std::move(n), power](const progress& p) {
    const double part = part_of(p, n);
    return part < 1.0 ? std::pow(1.0 - part, power) : 0.0;
  };
}

namespace {

struct cosine_schedule {
  period n;
  double eta_min;

  double lr(const progress& p, double base) const { return half_cosine(base, eta_min, part_of(p, n)); }
};

struct cosine_restarts_schedule {
  period n;
  std::int64_t multiplier;
  double eta_min;

  double lr(const progress& p, double base) const {
    double at = p.of(n);
    double length = 1.0;
    if (multiplier == 1) at -= std::floor(at);
    for (; at >= length; length *= static_cast<double>(multiplier)) at -= length;
    return half_cosine(base, eta_min, at / length);
  }
};

}  // namespace

schedule cosine(period n, double eta_min) {
  require_positive("cosine.n", n);
  require_not_negative("cosine.eta_min", eta_min);
  return cosine_schedule{std::move(n), eta_min};
}

schedule cosine_restarts(period n, std::int64_t multiplier, double eta_min) {
  require_positive("cosine_restarts.n", n);
  if (multiplier < 1) throw option_error("cosine_restarts.multiplier", fmt::format("{}", multiplier), "1 or more");
  require_not_negative("cosine_restarts.eta_min", eta_min);
  return cosine_restarts_schedule{std::move(n), multiplier, eta_min};
}

schedule warm_up(period n, schedule then, double start) {
  std::vector<schedule> parts;
  parts.push_back(linear(start, 1.0, n));
  parts.push_back(std::move(then));
  return sequential(std::move(parts), {std::move(n)});
}

schedule one_cycle(period n, one_cycle_options options) {
  require_positive("one_cycle.n", n);
  require(options.pct_start >= 0.0 && options.pct_start <= 1.0, "one_cycle.pct_start", options.pct_start,
          "a number between 0 and 1");
  require(options.div_factor > 0.0, "one_cycle.div_factor", options.div_factor, "a number above 0");
  require(options.final_div_factor > 0.0, "one_cycle.final_div_factor", options.final_div_factor, "a number above 0");
  return one_cycle_schedule(std::move(n), options);
}

schedule sequential(std::vector<schedule> parts, std::vector<period> milestones) {
  if (parts.empty() || milestones.size() + 1 != parts.size())
    throw option_error("sequential.milestones", fmt::format("{} for {} parts", milestones.size(), parts.size()),
                       "one less than parts");
  for (const auto& m : milestones) require_positive("sequential.milestones", m);
  require_ascending("sequential.milestones", milestones);
  return sequential_schedule(std::move(parts), std::move(milestones));
}

schedule chained(std::vector<schedule> parts) {
  if (parts.empty()) throw option_error("chained.parts", "none", "at least one schedule");
  return chained_schedule(std::move(parts));
}

schedule reduce_on_plateau(reduce_on_plateau_options options) {
  require(options.factor > 0.0 && options.factor < 1.0, "reduce_on_plateau.factor", options.factor,
          "a number above 0 and below 1");
  if (options.patience < 0)
    throw option_error("reduce_on_plateau.patience", fmt::format("{}", options.patience), "0 or more checks");
  if (options.cooldown < 0)
    throw option_error("reduce_on_plateau.cooldown", fmt::format("{}", options.cooldown), "0 or more checks");
  require_not_negative("reduce_on_plateau.threshold", options.threshold);
  require_not_negative("reduce_on_plateau.min_lr", options.min_lr);
  require_not_negative("reduce_on_plateau.eps", options.eps);
  return plateau_schedule(std::move(options));
}

}  // namespace rondo::schedules

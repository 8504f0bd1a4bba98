#include "rondo/event/early_stopping.hpp"

#include <fmt/format.h>

#include <cmath>
#include <optional>

#include "rondo/event/interval_mean.hpp"

namespace rondo {

namespace {

class early_stopping_trigger {
 public:
  explicit early_stopping_trigger(early_stopping_options options)
      : higher_(higher_is_better(options.direction, options.monitor, "early_stopping.direction")),
        patience_(options.patience),
        min_delta_(options.min_delta),
        mean_("early_stopping", std::move(options.monitor), std::move(options.check)),
        limit_(std::move(options.limit)) {}

  bool due(const moment& now) {
    const bool at_limit = limit_.due(now);
    const auto candidate = mean_.next(now);
    if (candidate) judge(*candidate);
    return at_limit || stale_ >= patience_;
  }
  bool same_on_all_ranks() const { return limit_.same_on_all_ranks(); }
  bool judges_values() const { return true; }
  bool holds(const moment& now) const { return stale_ >= patience_ || limit_.holds(now).value_or(false); }
  std::string str() const {
    return fmt::format("'{}' without improvement for {} checks, or {}", mean_.key(), patience_, limit_.str());
  }
  state::value state_dict() const {
    state::dict memory{
        {"mean", mean_.state_dict()}, {"limit", limit_.state_dict()}, {"stale", stale_}, {"best", nullptr}};
    if (best_) memory["best"] = *best_;
    return memory;
  }
  void load_state_dict(const state::value& state) {
    mean_.load_state_dict(state.at("mean"));
    limit_.load_state_dict(state.at("limit"));
    const auto& best = state.at("best");
    best_ = best.is_null() ? std::nullopt : std::optional(best.number());
    stale_ = state.get<std::int64_t>("stale");
  }

 private:
  void judge(double candidate) {
    const double gain = best_ ? (higher_ ? candidate - *best_ : *best_ - candidate) : 0.0;
    if (!std::isnan(candidate) && (!best_ || gain > min_delta_)) {
      best_ = candidate;
      stale_ = 0;
    } else {
      ++stale_;
    }
  }

  bool higher_;
  std::int64_t patience_;
  double min_delta_;
  interval_mean mean_;
  trigger limit_;
  std::optional<double> best_;
  std::int64_t stale_ = 0;
};

}  // namespace

trigger early_stopping(early_stopping_options options) {
  if (options.patience < 1)
    throw option_error("early_stopping.patience", fmt::format("{}", options.patience), "1 or more checks");
  if (!(options.min_delta >= 0.0))
    throw option_error("early_stopping.min_delta", fmt::format("{}", options.min_delta), "a number >= 0");
  return early_stopping_trigger(std::move(options));
}

}  // namespace rondo

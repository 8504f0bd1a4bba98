#include "rondo/event/value_trigger.hpp"

#include <cmath>

#include "rondo/event/interval_mean.hpp"

namespace rondo {

namespace {

class best_value_trigger {
 public:
  best_value_trigger(std::string what, interval_mean mean, std::function<bool(double, double)> better)
      : what_(std::move(what)), mean_(std::move(mean)), better_(std::move(better)) {}

  bool due(const moment& now) {
    const auto candidate = mean_.next(now);
    if (!candidate || std::isnan(*candidate) || (best_ && !better_(*candidate, *best_))) return false;
    best_ = candidate;
    return true;
  }
  bool same_on_all_ranks() const { return true; }
  bool judges_values() const { return true; }
  std::string str() const { return what_ + " of '" + mean_.key() + "', checked " + mean_.check_str(); }
  state::value state_dict() const {
    return state::dict{{"mean", mean_.state_dict()}, {"best", best_ ? state::value(*best_) : state::value()}};
  }
  void load_state_dict(const state::value& state) {
    mean_.load_state_dict(state.at("mean"));
    const auto& best = state.at("best");
    best_ = best.is_null() ? std::nullopt : std::optional(best.number());
  }

 private:
  std::string what_;
  interval_mean mean_;
  std::function<bool(double, double)> better_;
  std::optional<double> best_;
};

}  // namespace

trigger best_value(std::string key, std::function<bool(double, double)> better, trigger check) {
  return best_value_trigger("best value", {"best_value", std::move(key), std::move(check)}, std::move(better));
}
trigger min_value(std::string key, trigger check) {
  return best_value_trigger("minimum", {"min_value", std::move(key), std::move(check)}, std::less<double>());
}
trigger max_value(std::string key, trigger check) {
  return best_value_trigger("maximum", {"max_value", std::move(key), std::move(check)}, std::greater<double>());
}

}  // namespace rondo

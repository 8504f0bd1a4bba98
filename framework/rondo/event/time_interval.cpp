#include "rondo/event/time_interval.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace rondo {

namespace {

class time_trigger {
 public:
  explicit time_trigger(double period) : period_(period), next_(period) {}

  bool due(const moment& now) {
    next_ = std::min(next_, multiple_after(now.elapsed_time));  // of a longer period, of an earlier run
    if (now.elapsed_time < next_) return false;
    next_ = multiple_after(now.elapsed_time);
    return true;
  }
  bool holds(const moment& now) const { return now.elapsed_time >= period_; }
  std::string str() const { return fmt::format("every {} s", period_); }
  state::value state_dict() const { return state::dict{{"next", next_}}; }
  void load_state_dict(const state::value& state) { next_ = state.at("next").number(); }

 private:
  [[nodiscard]] double multiple_after(double elapsed) const { return (std::floor(elapsed / period_) + 1.0) * period_; }

  double period_;
  double next_;
};

}  // namespace

trigger time_interval(std::chrono::duration<double> period) {
  if (!(period.count() > 0.0) || !std::isfinite(period.count()))
    throw option_error("time_interval", fmt::format("{} s", period.count()), "a positive number of seconds");
  return time_trigger(period.count());
}

}  // namespace rondo

#include "rondo/event/time_interval.hpp"

#include <fmt/format.h>

#include <cmath>

namespace rondo {

namespace {

class time_trigger {
 public:
  explicit time_trigger(double period) : period_(period), next_(period) {}

  bool due(const moment& now) {
    if (now.elapsed_time < next_) return false;
    next_ = (std::floor(now.elapsed_time / period_) + 1.0) * period_;
    return true;
  }
  std::string str() const { return fmt::format("every {} s", period_); }
  state::value state_dict() const { return state::dict{{"next", next_}}; }
  void load_state_dict(const state::value& state) { next_ = state.at("next").number(); }

 private:
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

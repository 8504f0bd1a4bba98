#pragma once

#include <optional>
#include <string>

#include "rondo/event/trigger.hpp"
#include "rondo/report/summary.hpp"

namespace rondo {

/// The mean of one observation over the stretches between two firings of a trigger: what the value triggers and early
/// stopping look at. With several ranks: over what all of them have reported, and the same on each. State: the
/// trigger's and the running summary's.
class interval_mean {
 public:
  /// `who` looks at it, as errors say.
  interval_mean(std::string who, std::string key, trigger check)
      : who_(std::move(who)), key_(std::move(key)), check_(std::move(check)) {}

  /// The mean, in the iterations in which `check` fires; throws `observation_error` if there was nothing to average.
  [[nodiscard]] std::optional<double> next(const moment& now);

  [[nodiscard]] const std::string& key() const noexcept { return key_; }
  [[nodiscard]] std::string check_str() const { return check_.str(); }

  [[nodiscard]] state::value state_dict() const;
  void load_state_dict(const state::value& state);

 private:
  [[noreturn]] void throw_nothing_reported(const moment& now) const;

  std::string who_;
  std::string key_;
  trigger check_;
  summary summary_;
  bool weightless_ = false;  // something was reported that does not count
};

}  // namespace rondo

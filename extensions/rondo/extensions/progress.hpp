#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>

#include "rondo/loop/context.hpp"

/// How far training is and how fast: what the extensions say of it that show progress.
namespace rondo::extensions {

/// How many iterations per second there have been in the last half minute.
class rate_meter {
 public:
  /// `time` in seconds, ascending.
  void add(double time, std::int64_t iteration);
  /// 0 while unknown.
  [[nodiscard]] double rate() const;

 private:
  struct sample {
    double time;
    std::int64_t iteration;
  };
  std::deque<sample> samples_;
};

/// "1:02:03"
[[nodiscard]] std::string time_text(double seconds);
/// How much of the training is done, from 0 to 1, if its length is known.
[[nodiscard]] std::optional<double> done_of_total(const context& ctx);
/// How much of the epoch is done, from 0 to 1, if its length is known.
[[nodiscard]] std::optional<double> done_of_epoch(const context& ctx);
/// How many iterations are left, if that is known.
[[nodiscard]] std::optional<double> iterations_left(const context& ctx);
/// "iteration 120 of 1000, epoch 1.20 of 10"
[[nodiscard]] std::string position_text(const context& ctx);
/// "12.3 iterations/s, 0:01:13 to go"
[[nodiscard]] std::string speed_text(const context& ctx, double rate);

}  // namespace rondo::extensions

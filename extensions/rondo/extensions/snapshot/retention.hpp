#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "rondo/event/better.hpp"
#include "rondo/event/interval.hpp"

namespace rondo {

/// What a snapshot says about itself, as far as it decides whether it is kept.
struct snapshot_record {
  std::filesystem::path path;
  std::int64_t iteration = 0;  ///< recorded inside the file, or in its name where the file has no manifest
  std::int64_t epoch = 0;      ///< epochs completed
  std::int64_t created = 0;    ///< seconds since 1970-01-01 UTC; the file's modification time where nothing is recorded
  std::map<std::string, double> metrics = {};  ///< the observations that policies rank by
  bool foreign = false;        ///< written by another program: may be resumed from, is never removed
};

/// Which snapshots are kept. Policies combine with `|`: kept is what one of them keeps. See `rondo::retain`.
class retention {
 public:
  /// Marks in `keep` those of `newest_first` that are to stay. `now` is in seconds since 1970-01-01 UTC.
  using rule = std::function<void(std::span<const snapshot_record> newest_first, std::int64_t now,
                                  std::vector<bool>& keep)>;

  /// A policy of one's own. `metrics`: names of observations that it needs in `snapshot_record::metrics`.
  explicit retention(rule r, std::vector<std::string> metrics = {});

  /// Both.
  friend retention operator|(retention a, retention b);

  /// Which of `newest_first` stay: what a rule marks, and in any case the first.
  [[nodiscard]] std::vector<bool> keep(std::span<const snapshot_record> newest_first, std::int64_t now) const;
  /// Names of the observations that must be recorded in snapshots.
  [[nodiscard]] const std::vector<std::string>& metrics() const noexcept { return metrics_; }

 private:
  std::vector<rule> rules_;
  std::vector<std::string> metrics_;
};

/// Policies for `snapshot_options::retain`: `retain::last(3) | retain::best(1, "validation/accuracy")`.
namespace retain {

inline constexpr better min = better::lower;
inline constexpr better max = better::higher;

/// The `n` newest by recorded iteration. Throws `option_error` for less than 1.
[[nodiscard]] retention last(std::int64_t n);

/// The `k` with the best value of the observation `key`, as it was last reported before the snapshot. Of equal ones the
/// newer counts as better; snapshots without the value, or with NaN, are not kept. Throws `option_error` for less than 1.
[[nodiscard]] retention best(std::int64_t k, std::string key, better direction = better::automatic);

/// Those of iterations that `n` divides. Throws `option_error` for less than 1.
[[nodiscard]] retention every(iterations n);
/// For each number of completed epochs that `n` divides, the first snapshot with it (not before the first epoch is
/// complete). Throws `option_error` unless `n` is whole and at least 1.
[[nodiscard]] retention every(epochs n);

/// Those taken within the last `age`, by the clock of the machine. Throws `option_error` unless it is positive.
[[nodiscard]] retention newer_than(std::chrono::seconds age);

}  // namespace retain

}  // namespace rondo

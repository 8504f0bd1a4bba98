#pragma once

#include <concepts>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "rondo/event/better.hpp"
#include "rondo/event/interval.hpp"
#include "rondo/event/moment.hpp"
#include "rondo/event/trigger.hpp"
#include "rondo/state/value.hpp"

namespace rondo {

namespace schedules {

/// How far training is, as a schedule sees it: before the iteration whose learning rate is asked for. Epochs are
/// counted in whole numbers of iterations, so that no rounding decides when something happens.
struct progress {
  std::int64_t iteration = 0;           ///< iterations done, over all resumes
  std::int64_t epoch = 0;               ///< epochs completed
  std::int64_t iteration_in_epoch = 0;  ///< iterations done of the epoch after those
  std::optional<std::int64_t>
      epoch_length = std::nullopt;  ///< iterations per epoch; unknown in the first epoch of a range without a size

  /// Epochs completed, with the fraction of the present one; without it while the length of an epoch is unknown.
  [[nodiscard]] double epoch_detail() const noexcept;
  /// How many times `p` is done: 0.5 is half of it. Throws `option_error` inside an epoch of unknown length, if `p` is
  /// in epochs.
  [[nodiscard]] double of(const period& p) const;
  /// The same in whole numbers, rounded down exactly. Throws only if `p` is a fraction of epochs.
  [[nodiscard]] std::int64_t times(const period& p) const;
  /// The iterations in `p`, rounded up. Throws `option_error` for epochs of unknown length.
  [[nodiscard]] std::int64_t iterations_in(const period& p) const;
  /// The same training, counted from where `p` was reached.
  [[nodiscard]] progress since(const period& p) const;
};

/// The progress of a training that is at `now`, after an iteration or before the first one.
[[nodiscard]] progress progress_at(const moment& now);

}  // namespace schedules

namespace detail {

template <class T>
concept lr_factor = requires(T t, const schedules::progress& p) {
  { t(p) } -> std::convertible_to<double>;
};
template <class T>
concept lr_rule = requires(T t, const schedules::progress& p, double lr) {
  { t.lr(p, lr) } -> std::convertible_to<double>;
};
template <class T>
concept lr_observer = requires(T t, const schedules::progress& p, const moment& now) { t.observe(p, now); };

}  // namespace detail

/// What a schedule is: either a callable that gives the factor of the base learning rate for a `schedules::progress`,
/// or a class with `double lr(const progress&, double base)`, which gives the learning rate itself. Copyable. It should
/// depend on its arguments only. A class that does not has `observe(const progress&, const moment&)`, called after
/// every iteration, and `state_dict() const` and `load_state_dict(const state::value&)` for what it remembers.
template <class T>
concept schedule_like = detail::lr_factor<T> || detail::lr_rule<T>;

/// Any schedule, by value. Copying copies its memory too. Training thread only.
class schedule {
 public:
  template <class T>
    requires(!std::same_as<std::remove_cvref_t<T>, schedule> && schedule_like<std::remove_cvref_t<T>>)
  schedule(T&& concrete) : self_(std::make_unique<model<std::remove_cvref_t<T>>>(std::forward<T>(concrete))) {}

  schedule(const schedule& other) : self_(other.self_->clone()) {}
  schedule(schedule&&) noexcept = default;
  schedule& operator=(const schedule& other) {
    self_ = other.self_->clone();
    return *this;
  }
  schedule& operator=(schedule&&) noexcept = default;
  ~schedule() = default;

  /// The learning rate at `p`, where it would be `base` without the schedule.
  [[nodiscard]] double lr(const schedules::progress& p, double base) { return self_->lr(p, base); }
  /// To be called after every iteration that was trained by this schedule.
  void observe(const schedules::progress& p, const moment& now) { self_->observe(p, now); }

  /// What the schedule remembers; an empty dict if nothing.
  [[nodiscard]] state::value state_dict() const { return self_->state_dict(); }
  void load_state_dict(const state::value& state) { self_->load_state_dict(state); }

 private:
  struct base {
    virtual ~base() = default;
    virtual double lr(const schedules::progress&, double) = 0;
    virtual void observe(const schedules::progress&, const moment&) = 0;
    virtual state::value state_dict() const = 0;
    virtual void load_state_dict(const state::value&) = 0;
    virtual std::unique_ptr<base> clone() const = 0;
  };

  template <class T>
  struct model final : base {
    static constexpr bool remembers = requires(T t, const T c, const state::value& v) {
      { c.state_dict() } -> std::convertible_to<state::value>;
      t.load_state_dict(v);
    };
    static_assert(remembers || !requires(const T c) { c.state_dict(); },
                  "a schedule with state_dict() also needs load_state_dict(const state::value&)");
    static_assert(std::is_copy_constructible_v<T>, "a schedule must be copyable");

    template <class U>
    explicit model(U&& u) : concrete(std::forward<U>(u)) {}
    double lr(const schedules::progress& p, double from) override {
      if constexpr (detail::lr_rule<T>)
        return concrete.lr(p, from);
      else
        return from * static_cast<double>(concrete(p));
    }
    void observe([[maybe_unused]] const schedules::progress& p, [[maybe_unused]] const moment& now) override {
      if constexpr (detail::lr_observer<T>) concrete.observe(p, now);
    }
    state::value state_dict() const override {
      if constexpr (remembers)
        return concrete.state_dict();
      else
        return state::dict();
    }
    void load_state_dict([[maybe_unused]] const state::value& state) override {
      if constexpr (remembers) concrete.load_state_dict(state);
    }
    std::unique_ptr<base> clone() const override { return std::make_unique<model>(concrete); }

    T concrete;
  };

  std::unique_ptr<base> self_;
};

/// Ready-made schedules. They have the names, defaults and values of `torch.optim.lr_scheduler`, computed in closed
/// form: with an `n` in iterations those of a scheduler that steps after every iteration. With an `n` in epochs a curve
/// goes on inside epochs as well; at the end of each it is where a scheduler that steps once per epoch is.
///
/// All throw `option_error` at once for numbers that make no sense. Learning rates among the arguments (`eta_min`,
/// `min_lr`) are absolute, everything else is a factor of the base learning rate.
namespace schedules {

/// `factor` times the base learning rate, always.
[[nodiscard]] schedule constant(double factor = 1.0);
/// `factor` for the first `n`, then 1. (ConstantLR)
[[nodiscard]] schedule constant(double factor, period n);
/// Multiplies by `gamma` at each multiple of `n`. (StepLR)
[[nodiscard]] schedule step(period n, double gamma = 0.1);
/// Multiplies by `gamma` at each of `milestones`. (MultiStepLR)
[[nodiscard]] schedule multi_step(std::vector<period> milestones, double gamma = 0.1);
/// Multiplies by `gamma` in the course of each `n`. (ExponentialLR)
[[nodiscard]] schedule exponential(double gamma, period n = epochs(1));
/// In a straight line from `start` to `end` over `n`, then `end`. (LinearLR)
[[nodiscard]] schedule linear(double start, double end, period n);
/// From 1 to 0 over `n` as (1 - t/n) to the power of `power`, then 0. (PolynomialLR)
[[nodiscard]] schedule polynomial(period n, double power = 1.0);
/// Along half a cosine from the base learning rate to `eta_min` over `n`, where it stays. (CosineAnnealingLR, which
/// goes up again)
[[nodiscard]] schedule cosine(period n, double eta_min = 0.0);
/// The same again and again: the next cycle begins at the base learning rate and is `multiplier` times as long.
/// (CosineAnnealingWarmRestarts)
[[nodiscard]] schedule cosine_restarts(period n, std::int64_t multiplier = 1, double eta_min = 0.0);
/// In a straight line from `start` to 1 over `n`, then `then`, counted from there. (SequentialLR with a LinearLR)
[[nodiscard]] schedule warm_up(period n, schedule then = constant(), double start = 0.001);

/// How `one_cycle` goes from one learning rate to the next.
enum class curve { cosine, linear };

struct one_cycle_options {
  double pct_start = 0.3;          ///< the part of the cycle in which the learning rate grows; between 0 and 1
  double div_factor = 25.0;        ///< it begins at base / this
  double final_div_factor = 1e4;   ///< it ends at base / div_factor / this
  bool three_phase = false;        ///< down to where it began, as long as it grew, and only then to its end
  curve anneal = curve::cosine;
};
/// Up to the base learning rate and down again within `n`, of which the last iteration has the lowest one; it stays
/// there. (OneCycleLR with `max_lr` the base learning rate; momentum is left alone.) Needs to know the length of an
/// epoch if `n` is in epochs.
[[nodiscard]] schedule one_cycle(period n, one_cycle_options options = {});

/// Each part from its milestone to the next one, counted from there: one milestone less than parts, in ascending order.
/// A milestone between two iterations is reached at the later one. (SequentialLR)
[[nodiscard]] schedule sequential(std::vector<schedule> parts, std::vector<period> milestones);
/// All at once: each makes its learning rate from the one of the part before it. (ChainedScheduler)
[[nodiscard]] schedule chained(std::vector<schedule> parts);

struct reduce_on_plateau_options {
  /// The observation to watch. Its mean between two checks counts.
  std::string monitor = "validation/loss";
  /// The learning rate is multiplied by this. Above 0, below 1.
  double factor = 0.1;
  /// Reduce when there were more checks than this in a row without improvement. At least 0.
  std::int64_t patience = 10;
  /// `automatic`: higher if the key contains "accuracy" or "auc", else lower (torch: mode, always "min" by default).
  better direction = better::automatic;
  /// An improvement is a change by more than this fraction of the best value, or than this if not `relative`
  /// (torch: threshold_mode). At least 0.
  double threshold = 1e-4;
  bool relative = true;
  /// Checks after a reduction in which nothing counts as bad. At least 0.
  std::int64_t cooldown = 0;
  /// The learning rate does not fall below this. At least 0.
  double min_lr = 0.0;
  /// A reduction by no more than this is not made. At least 0.
  double eps = 1e-8;
  /// When to look. Needs an observation between any two times.
  trigger check = every(epochs(1));
};
/// Multiplies by `factor` whenever `monitor` has stopped improving (ReduceLROnPlateau). A NaN is no improvement. It
/// sees what has been reported by subscribers of `iteration_completed` with a higher priority than the scheduler's,
/// which evaluators are. What it remembers is saved in snapshots: the best value, the counts, the mean in progress and
/// the memory of `check`. Training ends with `observation_error` when `check` fires and there was nothing to look at.
[[nodiscard]] schedule reduce_on_plateau(reduce_on_plateau_options options = {});

}  // namespace schedules
}  // namespace rondo

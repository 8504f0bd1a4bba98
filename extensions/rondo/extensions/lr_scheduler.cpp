#include "rondo/extensions/lr_scheduler.hpp"

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <utility>

#include "rondo/error.hpp"
#include "rondo/event/events.hpp"
#include "rondo/log.hpp"
#include "rondo/loop/context.hpp"

namespace rondo {

namespace {

double lr_of(const torch::optim::OptimizerParamGroup& group) { return group.options().get_lr(); }

/// The learning rates of one optimizer.
struct target {
  std::string name;
  torch::optim::Optimizer* optimizer;
  std::vector<double> base;  // per group of parameters, as the schedule gets it
  std::vector<double> set;   // as the schedule has set it
};

state::list list_of(const std::vector<double>& numbers) { return {numbers.begin(), numbers.end()}; }

std::vector<double> numbers_in(const state::value& stored, const std::string& name, std::size_t expected) {
  const auto& list = stored.get<state::list>(name);
  if (list.size() != expected)
    throw state_error(
        name, fmt::format("expected {} learning rates, one per group of parameters, found {}", expected, list.size()));
  std::vector<double> numbers;
  for (const auto& item : list) numbers.push_back(item.number());
  return numbers;
}

state::value state_of(const std::optional<schedules::progress>& p) {
  if (!p) return {};
  return state::dict{{"iteration", p->iteration},
                     {"epoch", p->epoch},
                     {"iteration_in_epoch", p->iteration_in_epoch},
                     {"epoch_length", p->epoch_length ? state::value(*p->epoch_length) : state::value()}};
}

std::optional<schedules::progress> progress_in(const state::value& stored) {
  if (stored.is_null()) return std::nullopt;
  const auto& length = stored.at("epoch_length");
  return schedules::progress{stored.get<std::int64_t>("iteration"), stored.get<std::int64_t>("epoch"),
                             stored.get<std::int64_t>("iteration_in_epoch"),
                             length.is_null() ? std::nullopt : std::optional(length.as<std::int64_t>())};
}

class scheduler {
 public:
  scheduler(schedule s, lr_scheduler_options options) : schedule_(std::move(s)), options_(std::move(options)) {}

  void attach(context& ctx) {
    for (const auto& o : ctx.optimizers())
      if (is_wanted(o.name)) targets_.push_back({o.name, o.optimizer.get(), {}, {}});
    require_targets(ctx);
    several_ = ctx.optimizers().size() > 1;
    ctx.on<event::training_started>([this, &ctx] { begin(ctx); });
    ctx.on<event::iteration_completed>([this, &ctx] {
      if (!options_.key.empty()) report(ctx);
      schedule_.observe(schedules::progress_at(ctx.now()), ctx.now());
    });
    ctx.when_due([this, &ctx] {
      warn_of_others();
      apply(schedules::progress_at(ctx.now()));
    });
  }

  [[nodiscard]] state::value state_dict() const {
    state::dict base;
    state::dict present;
    for (const auto& t : targets_) {
      base.insert_or_assign(t.name, list_of(t.base));
      present.insert_or_assign(t.name, list_of(t.set));
    }
    return state::dict{{"base", std::move(base)},
                       {"lr", std::move(present)},
                       {"set_at", state_of(set_at_)},
                       {"would_set", would_set()},
                       {"schedule", schedule_.state_dict()}};
  }

  void load_state_dict(const state::value& state) {
    auto loaded = targets_;
    for (auto& t : loaded) {
      const auto groups = t.optimizer->param_groups().size();
      t.base = numbers_in(state.at("base"), t.name, groups);
      t.set = numbers_in(state.at("lr"), t.name, groups);
    }
    targets_ = std::move(loaded);
    loaded_ = true;
    if (const auto* at = state.as<state::dict>().find("set_at")) set_at_ = progress_in(*at);
    if (const auto* rates = state.as<state::dict>().find("would_set")) stored_would_set_ = *rates;
    load_schedule(state.at("schedule"));
  }

 private:
  /// The base learning rates stay, whatever another schedule remembers.
  void load_schedule(const state::value& memory) {
    schedule loaded = schedule_;
    try {
      loaded.load_state_dict(memory);
      schedule_ = std::move(loaded);
    } catch (const state_error& e) {
      throw partial_memory_error(fmt::format("schedule: {}", e.what()));
    }
  }

  [[nodiscard]] bool is_wanted(const std::string& name) const {
    const auto& all = options_.optimizers;
    return all.empty() || std::find(all.begin(), all.end(), name) != all.end();
  }

  void require_targets(const context& ctx) const {
    for (const auto& name : options_.optimizers) static_cast<void>(ctx.optimizer(name));
    if (targets_.empty()) throw option_error("lr_scheduler", "in a loop without an optimizer", "one with an optimizer");
    for (const auto& t : targets_) require_lr(t);
  }

  static void require_lr(const target& t) {
    try {
      for (const auto& group : t.optimizer->param_groups()) static_cast<void>(lr_of(group));
    } catch (const c10::Error&) {
      throw option_error("lr_scheduler", fmt::format("the optimizer '{}', whose options have no get_lr()", t.name),
                         "optimizers with a learning rate; name them in lr_scheduler_options::optimizers");
    }
  }

  /// What the schedule as it is now makes of the moment at which the present rates were set. A resumed run knows by it
  /// whether it has the same schedule.
  [[nodiscard]] state::value would_set() const {
    if (!set_at_) return {};
    schedule copy = schedule_;
    state::dict all;
    for (const auto& t : targets_) {
      state::list rates;
      for (const double base : t.base) rates.emplace_back(copy.lr(*set_at_, base));
      all.insert_or_assign(t.name, std::move(rates));
    }
    return all;
  }

  /// The schedule that the program has now decides, also where another one had set the rates of these iterations.
  void begin(const context& ctx) {
    if (!loaded_) return apply(schedules::progress_at(ctx.now()));
    const bool same_schedule = stored_would_set_.is_null() || state::equal(stored_would_set_, would_set());
    if (!same_schedule) return apply(*set_at_);
    for (auto& t : targets_)
      for (std::size_t i = 0; i < t.set.size(); ++i) t.optimizer->param_groups()[i].options().set_lr(t.set[i]);
  }

  void apply(const schedules::progress& p) {
    set_at_ = p;
    for (auto& t : targets_) {
      auto& groups = t.optimizer->param_groups();
      for (std::size_t i = t.base.size(); i < groups.size(); ++i) t.base.push_back(lr_of(groups[i]));  // new groups
      t.set.resize(groups.size());
      for (std::size_t i = 0; i < groups.size(); ++i) {
        t.set[i] = checked(schedule_.lr(p, t.base[i]), p);
        groups[i].options().set_lr(t.set[i]);
      }
    }
  }

  static double checked(double lr, const schedules::progress& p) {
    if (lr >= 0.0 && std::isfinite(lr)) return lr;
    throw option_error("schedule", fmt::format("a learning rate of {} after {} iterations", lr, p.iteration),
                       "learning rates that are finite and not negative");
  }

  void report(context& ctx) const {
    for (const auto& t : targets_) {
      const auto& groups = t.optimizer->param_groups();
      const std::string key = several_ ? options_.key + "/" + t.name : options_.key;
      for (std::size_t i = 0; i < groups.size(); ++i)
        ctx.report(i == 0 ? key : fmt::format("{}/{}", key, i), lr_of(groups[i]));
    }
  }

  /// Two schedulers for one optimizer would look like that as well.
  void warn_of_others() {
    for (const auto& t : targets_)
      for (std::size_t i = 0; i < t.set.size() && !warned_; ++i) {
        const double present = lr_of(t.optimizer->param_groups()[i]);
        if (present == t.set[i]) continue;
        warned_ = true;
        log::warn(
            fmt::format("lr_scheduler: somebody else has changed the learning rate of '{}' from {} to {}; the "
                        "schedule goes on from the base learning rate, {}",
                        t.name, t.set[i], present, t.base[i]));
      }
  }

  schedule schedule_;
  lr_scheduler_options options_;
  std::vector<target> targets_;
  std::optional<schedules::progress> set_at_;  // when the present rates were set
  state::value stored_would_set_;
  bool several_ = false;
  bool loaded_ = false;
  bool warned_ = false;
};

}  // namespace

extension lr_scheduler(schedule s, lr_scheduler_options options) {
  return extension::made_by(
             "lr_scheduler",
             [s = std::move(s), options = std::move(options)] { return std::make_shared<scheduler>(s, options); })
      .at_priority(priority::editor);
}

}  // namespace rondo

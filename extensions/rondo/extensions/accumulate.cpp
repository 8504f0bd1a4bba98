#include "rondo/extensions/accumulate.hpp"

#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "rondo/error.hpp"
#include "rondo/event/events.hpp"
#include "rondo/loop/context.hpp"
#include "rondo/report/summary.hpp"

namespace rondo {

namespace {

/// Whether numbers count by their weights.
enum class weighing { as_reported, none };

/// Gathers some observations, and reports one number of them when its trigger fires.
class accumulator {
 public:
  using result_function = std::function<double(const summary_table&)>;

  accumulator(std::vector<std::string> sources, std::string target, trigger when, result_function result,
              weighing weights)
      : sources_(std::move(sources)),
        target_(std::move(target)),
        when_(std::move(when)),
        result_(std::move(result)),
        weights_(weights) {}

  void attach(context& ctx) {
    if (ctx.group().world_size() > 1) return attach_with_others(ctx);
    ctx.when_due([this, &ctx] {
      record(ctx);
      if (when_.due(ctx.now())) report(ctx);
    });
  }

  [[nodiscard]] state::value state_dict() const {
    auto all = joined_;
    all.merge(mine_);
    return state::dict{{"trigger", when_.state_dict()}, {"summary", all.state_dict()}};
  }

  void load_state_dict(const state::value& state) {
    trigger when = when_;
    when.load_state_dict(state.at("trigger"));
    summary_table all;
    all.load_state_dict(state.at("summary"));
    when_ = std::move(when);
    joined_ = std::move(all);
    mine_.clear();
  }

 private:
  void attach_with_others(context& ctx) {
    ctx.when_due([this, &ctx]() -> task<> { return record_with_others(ctx); });
    // A snapshot keeps one rank's account, so that it must be that of all.
    ctx.on<event::snapshot_started>(
        [this, &ctx](const event::snapshot_started& e) -> task<> { return e.alone ? nothing() : join_ranks(ctx); });
  }

  static task<> nothing() { co_return; }

  task<> record_with_others(context& ctx) {
    record(ctx);
    const auto group = ctx.group().channel(ctx.name());
    bool due = when_.due(ctx.now());
    if (!when_.same_on_all_ranks()) due = group.first_says(due);
    if (!due) co_return;
    co_await join_ranks(ctx);
    report(ctx);
  }

  static std::string merged(const std::vector<std::string>& parts) {
    summary_table whole;
    for (const auto& part : parts) whole.merge(summary_table::unpack(part));
    return whole.pack();
  }

  task<> join_ranks(context& ctx) {
    const auto group = ctx.group().channel(ctx.name());
    std::string mine = std::exchange(mine_, {}).pack();  // what comes while the others are awaited belongs to the next
    auto merging = group.merge(std::move(mine), merged);
    const auto whole = co_await std::move(merging);
    joined_.merge(summary_table::unpack(whole));
  }

  void record(context& ctx) {
    const auto& reported = ctx.reported();
    for (const auto& key : sources_)
      if (reported.find(key) == nullptr) return;
    for (const auto& key : sources_) mine_.add(key, weighed(*reported.find(key)));
  }

  [[nodiscard]] observation weighed(const observation& o) const {
    if (weights_ == weighing::as_reported) return o;
    if (const auto* scalar = o.on_device()) return {*scalar, 1.0};
    return {o.value(), 1.0};
  }

  void report(context& ctx) {
    joined_.merge(mine_);
    mine_.clear();
    if (joined_.empty())
      for (const auto& key : sources_) static_cast<void>(ctx.reported().at(key));
    ctx.report(target_, result_(joined_));
    joined_.clear();
  }

  std::vector<std::string> sources_;
  std::string target_;
  trigger when_;
  result_function result_;
  weighing weights_;
  summary_table mine_;    // of this rank, since all ranks' were joined
  summary_table joined_;  // of all ranks, the same on each
};

extension make_accumulator(const char* kind, std::vector<std::string> sources, const std::string& target, trigger when,
                           accumulator::result_function result, weighing weights) {
  for (const auto& key : sources)
    if (key.empty()) throw option_error(kind, "an empty key", "the key of an observation");
  if (target.empty()) throw option_error(kind, "an empty target", "the key under which the result is reported");
  auto make = [sources = std::move(sources), target, when = std::move(when), result = std::move(result), weights] {
    return std::make_shared<accumulator>(sources, target, when, result, weights);
  };
  return extension::made_by(std::string(kind) + "/" + target, std::move(make)).at_priority(priority::editor);
}

extension accumulate(const char* kind, accumulate_options options, double (*number_of)(const summary&)) {
  auto result = [source = options.source, number_of](const summary_table& all) {
    const auto* const one = all.find(source);
    return one != nullptr ? number_of(*one) : std::numeric_limits<double>::quiet_NaN();
  };
  return make_accumulator(kind, {options.source}, options.target, std::move(options.trigger), std::move(result),
                          weighing::as_reported);
}

double sum_of(const summary* all) { return all->mean() * all->weight(); }

}  // namespace

extension average_accumulate(accumulate_options options) {
  return accumulate("average_accumulate", std::move(options), [](const summary& s) { return s.mean(); });
}

extension max_accumulate(accumulate_options options) {
  return accumulate("max_accumulate", std::move(options), [](const summary& s) { return s.max(); });
}

extension min_accumulate(accumulate_options options) {
  return accumulate("min_accumulate", std::move(options), [](const summary& s) { return s.min(); });
}

extension standard_deviation_accumulate(accumulate_options options) {
  return accumulate("standard_deviation_accumulate", std::move(options),
                    [](const summary& s) { return s.standard_deviation(); });
}

extension unbiased_standard_deviation_accumulate(accumulate_options options) {
  return accumulate("unbiased_standard_deviation_accumulate", std::move(options), [](const summary& s) {
    const auto n = static_cast<double>(s.count());
    return n > 1.0 ? std::sqrt(s.variance() * n / (n - 1.0)) : std::numeric_limits<double>::quiet_NaN();
  });
}

extension micro_average(micro_average_options options) {
  auto ratio = [above = options.numerator_key, below = options.denominator_key](const summary_table& all) {
    const double denominators = sum_of(all.find(below));
    return denominators != 0.0 ? sum_of(all.find(above)) / denominators : std::numeric_limits<double>::quiet_NaN();
  };
  return make_accumulator("micro_average", {options.numerator_key, options.denominator_key}, options.result_key,
                          std::move(options.trigger), std::move(ratio), weighing::none);
}

}  // namespace rondo

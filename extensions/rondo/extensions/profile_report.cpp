#include "rondo/extensions/profile_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <utility>

#include "rondo/async/trace.hpp"
#include "rondo/error.hpp"
#include "rondo/event/events.hpp"
#include "rondo/extensions/background_jobs.hpp"
#include "rondo/extensions/line_file.hpp"
#include "rondo/extensions/output_file.hpp"
#include "rondo/loop/context.hpp"
#include "rondo/report/summary.hpp"

namespace rondo {

namespace {

using json = nlohmann::ordered_json;

/// `chosen` names keys ("loop/step") or kinds ("loop"); empty: all.
bool matches(const std::vector<std::string>& chosen, const std::string& key) {
  const auto names_it = [&](const std::string& one) { return key == one || key.starts_with(one + "/"); };
  return chosen.empty() || std::any_of(chosen.begin(), chosen.end(), names_it);
}

struct measured {
  std::string key;
  summary seconds;
};

/// What has been measured, by keys in the order in which they were first seen.
class tally {
 public:
  explicit tally(std::vector<std::string> wanted) : wanted_(std::move(wanted)) {}

  void add(const trace::record& span) {
    if (auto* const one = slot_of(*span.what)) one->seconds.add(static_cast<double>(span.end - span.begin) * 1e-9);
  }
  void clear() {
    for (auto& one : all_) one.seconds = summary();
  }
  [[nodiscard]] const std::vector<measured>& all() const noexcept { return all_; }

  [[nodiscard]] state::dict state_dict() const {
    state::dict kept;
    for (const auto& one : all_)
      if (!one.seconds.empty()) kept.insert_or_assign(one.key, one.seconds.state_dict());
    return kept;
  }
  void load_state_dict(const state::dict& kept) {
    for (const auto& [key, value] : kept) named(key.str()).seconds.load_state_dict(value);
  }

 private:
  static constexpr std::size_t unknown = std::numeric_limits<std::size_t>::max();
  static constexpr std::size_t unwanted = unknown - 1;

  measured& named(const std::string& key) {
    const auto found = std::find_if(all_.begin(), all_.end(), [&](const measured& one) { return one.key == key; });
    return found != all_.end() ? *found : all_.emplace_back(measured{key, {}});
  }
  measured* slot_of(const trace::label& what) {
    if (what.id >= slots_.size()) slots_.resize(what.id + 1, unknown);
    auto& slot = slots_[what.id];
    if (slot == unknown) {
      const auto key = what.category + "/" + what.name;
      slot = matches(wanted_, key) ? static_cast<std::size_t>(&named(key) - all_.data()) : unwanted;
    }
    return slot == unwanted ? nullptr : &all_[slot];
  }

  std::vector<std::string> wanted_;
  std::vector<measured> all_;
  std::vector<std::size_t> slots_;  // by the ids of labels
};

double percent(const summary& seconds, double whole) {
  return whole > 0.0 ? 100.0 * seconds.mean() * static_cast<double>(seconds.count()) / whole : 0.0;
}

json to_json(const summary& seconds, double whole) {
  return {{"count", seconds.count()},
          {"total", seconds.mean() * static_cast<double>(seconds.count())},
          {"mean", seconds.mean()},
          {"std", seconds.standard_deviation()},
          {"min", seconds.min()},
          {"max", seconds.max()},
          {"percent", percent(seconds, whole)}};
}

class profiler {
 public:
  explicit profiler(profile_report_options options)
      : options_(std::move(options)), spans_(false), tally_(options_.store_keys) {}

  void attach(context& ctx) {
    if (!ctx.is_saver()) return;
    file_ = std::make_shared<extensions::line_file>(ctx.out() / options_.filename);
    ctx.on<event::training_started>([this, &ctx] { begin(ctx); });
    ctx.on<event::iteration_completed>([this, &ctx] {
      if (options_.trigger.due(ctx.now())) return report(ctx);
      if (trace::recorded_by_this_thread() - drained_at_ >= trace::spans_between_drains) drain();
    });
    ctx.on_end<event::training_completed>([this]() -> task<> { return end(); });
  }

  [[nodiscard]] state::value state_dict() const {
    drain();
    return state::dict{{"trigger", options_.trigger.state_dict()},
                       {"spans", tally_.state_dict()},
                       {"since", since_},
                       {"position", position_}};
  }

  void load_state_dict(const state::value& state) {
    trigger when = options_.trigger;
    when.load_state_dict(state.at("trigger"));
    tally kept(options_.store_keys);
    kept.load_state_dict(state.get<state::dict>("spans"));
    const double since = state.get<double>("since");
    const auto position = state.get<std::int64_t>("position");
    if (position < 0) throw state_error("position", fmt::format("is {}, which is not a position in a file", position));

    options_.trigger = std::move(when);
    tally_ = std::move(kept);
    since_ = since;
    position_ = position;
    loaded_ = true;
  }

 private:
  void begin(context& ctx) {
    if (loaded_)
      position_ = file_->whole_lines(position_);
    else
      position_ = options_.append || ctx.iteration() > 0 ? file_->whole_lines(file_->size()) : 0;
    file_->truncate(position_);
    if (!loaded_) since_ = ctx.elapsed_time();
    spans_.resume();
    drained_at_ = trace::recorded_by_this_thread();
  }

  void drain() const {
    if (!spans_.running()) return;
    drained_.clear();
    lost_ += spans_.drain(drained_);
    for (const auto& span : drained_) tally_.add(span);
    drained_at_ = trace::recorded_by_this_thread();
  }

  void report(context& ctx) {
    drain();
    const double whole = ctx.elapsed_time() - since_;
    since_ = ctx.elapsed_time();
    auto line = std::make_shared<const std::string>(line_of(ctx, whole));
    position_ += static_cast<std::int64_t>(line->size());
    jobs_.add(ctx, [file = file_, line] { file->append(*line); });
    if (options_.out != nullptr) *options_.out << table(whole) << std::flush;
    tally_.clear();
    lost_ = 0;
  }

  [[nodiscard]] std::string line_of(const context& ctx, double whole) const {
    json entry{{"epoch", ctx.epoch()},
               {"iteration", ctx.iteration()},
               {"elapsed_time", ctx.elapsed_time()},
               {"spans_lost", lost_}};
    for (const auto& one : tally_.all())
      if (!one.seconds.empty() && matches(options_.report_keys, one.key)) entry[one.key] = to_json(one.seconds, whole);
    return entry.dump(-1, ' ', false, json::error_handler_t::replace) + '\n';
  }

  [[nodiscard]] std::string table(double whole) const {
    std::vector<const measured*> rows;
    for (const auto& one : tally_.all())
      if (!one.seconds.empty() && matches(options_.report_keys, one.key)) rows.push_back(&one);
    std::stable_sort(rows.begin(), rows.end(), [&](const measured* a, const measured* b) {
      return percent(a->seconds, whole) > percent(b->seconds, whole);
    });
    std::string text = fmt::format("{:<40} {:>9} {:>12} {:>12} {:>12} {:>12} {:>7}\n", "span", "count", "mean ms",
                                   "std ms", "min ms", "max ms", "%");
    for (const auto* row : rows) {
      const auto& s = row->seconds;
      text +=
          fmt::format("{:<40} {:>9} {:>12.4g} {:>12.4g} {:>12.4g} {:>12.4g} {:>7.1f}\n", row->key, s.count(),
                      s.mean() * 1e3, s.standard_deviation() * 1e3, s.min() * 1e3, s.max() * 1e3, percent(s, whole));
    }
    return text;
  }

  task<> end() {
    spans_.pause();
    co_await jobs_.finished();
  }

  profile_report_options options_;
  std::shared_ptr<extensions::line_file> file_;
  extensions::background_jobs jobs_;
  // Reading the state takes in what has ended since the last time.
  mutable trace::collector spans_;
  mutable tally tally_;
  mutable std::vector<trace::record> drained_;
  mutable std::uint64_t drained_at_ = 0;
  mutable std::uint64_t lost_ = 0;
  double since_ = 0.0;  // the training time of the last line
  std::int64_t position_ = 0;
  bool loaded_ = false;
};

}  // namespace

extension profile_report(profile_report_options options) {
  detail::require_file_name(options.filename);
  return extension::made_by("profile_report",
                            [options = std::move(options)] { return std::make_shared<profiler>(options); });
}

}  // namespace rondo

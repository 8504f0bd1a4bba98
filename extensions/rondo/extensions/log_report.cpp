#include "rondo/extensions/log_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "rondo/error.hpp"
#include "rondo/event/events.hpp"
#include "rondo/extensions/line_file.hpp"
#include "rondo/extensions/output_file.hpp"
#include "rondo/log.hpp"
#include "rondo/loop/context.hpp"
#include "rondo/report/summary.hpp"
#include "rondo/writing/file_name.hpp"

namespace rondo {

namespace {

using json = nlohmann::ordered_json;

json to_json(const state::value& value, const std::string& key);

json to_json(const state::list& items, const std::string& key) {
  json all = json::array();
  for (const auto& item : items) all.push_back(to_json(item, key));
  return all;
}

json to_json(const state::dict& dict) {
  json all = json::object();
  for (const auto& [key, value] : dict) all[key.str()] = to_json(value, key.str());
  return all;
}

json to_json(const state::value& value, const std::string& key) {
  if (value.is_null()) return nullptr;
  if (const auto* b = value.get_if<bool>()) return *b;
  if (const auto* i = value.get_if<std::int64_t>()) return *i;
  if (const auto* d = value.get_if<double>()) return std::isfinite(*d) ? json(*d) : json(nullptr);
  if (const auto* s = value.get_if<std::string>()) return *s;
  if (const auto* l = value.get_if<state::list>()) return to_json(*l, key);
  if (const auto* t = value.get_if<state::tuple>()) return to_json(t->items, key);
  if (const auto* d = value.get_if<state::dict>()) return to_json(*d);
  throw option_error("postprocess", fmt::format("puts a {} under '{}'", value.type_name(), key),
                     "numbers, strings, bools, lists and dicts");
}

std::string json_line(const state::dict& entry) {
  return to_json(entry).dump(-1, ' ', false, json::error_handler_t::replace) + '\n';
}

/// What a writer of numbers gets of an entry.
report_writer::numbers numbers_in(const state::dict& entry) {
  report_writer::numbers all;
  for (const auto& [key, value] : entry) {
    const bool number = value.is<std::int64_t>() || value.is<double>();
    if (number && key != state::key("iteration")) all.emplace_back(key.str(), value.number());
  }
  return all;
}

std::string joined(const std::vector<std::string>& names) {
  return names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", "));
}

class log_writer {
 public:
  explicit log_writer(log_report_options options) : options_(std::move(options)) {
    using kind = writing::name_field::kind;
    if (options_.filename.find_first_of("{}") != std::string::npos)
      names_.emplace(options_.filename,
                     std::vector<writing::name_field>{{"iteration", kind::integer}, {"epoch", kind::integer}});
  }

  void attach(context& ctx) {
    several_ = ctx.group().world_size() > 1;
    if (several_) return attach_with_others(ctx);
    if (!names_) open(ctx, options_.filename);
    ctx.on<event::training_started>([this, &ctx] { begin(ctx); });
    // The last iteration of an epoch waits for its epoch, whose handlers may have something to report.
    ctx.on<event::iteration_completed>([this, &ctx] {
      if (!ctx.now().epoch_end && record(ctx)) write(ctx, ctx.elapsed_time());
    });
    ctx.on<event::epoch_completed>([this, &ctx] {
      if (record(ctx)) write(ctx, ctx.elapsed_time());
    });
    if (options_.final) write_rest_at_end(ctx);
    end_with(ctx);
  }

  [[nodiscard]] state::value state_dict() const {
    state::list seen(seen_.begin(), seen_.end());
    auto means = joined_;
    means.merge(means_);
    return state::dict{{"trigger", options_.trigger.state_dict()},
                       {"summary", means.state_dict()},
                       {"seen", std::move(seen)},
                       {"file", file_name_},
                       {"position", position_}};
  }

  void load_state_dict(const state::value& state) {
    summary_table means;
    means.load_state_dict(state.at("summary"));
    std::vector<std::string> seen;
    for (const auto& key : state.get<state::list>("seen")) seen.push_back(key.as<std::string>());
    const auto position = state.get<std::int64_t>("position");
    if (position < 0) throw state_error("position", fmt::format("is {}, which is not a position in a file", position));

    (several_ ? joined_ : means_) = std::move(means);
    seen_ = std::move(seen);
    position_ = position;
    if (const auto* name = state.as<state::dict>().find("file")) stored_file_name_ = name->as<std::string>();
    loaded_ = true;
    load_trigger(state.at("trigger"));
  }

 private:
  /// The lines and means stay, whatever another trigger remembers.
  void load_trigger(const state::value& memory) {
    trigger loaded = options_.trigger;
    try {
      loaded.load_state_dict(memory);
      options_.trigger = std::move(loaded);
    } catch (const state_error& e) {
      throw partial_memory_error(fmt::format("trigger '{}': {}", options_.trigger.str(), e.what()));
    }
  }

  /// Every rank keeps the same account, of what all have reported; the first one writes.
  void attach_with_others(context& ctx) {
    if (!names_) open(ctx, options_.filename);
    ctx.on<event::training_started>([this, &ctx]() -> task<> { return begin_with_others(ctx); });
    ctx.on<event::iteration_completed>(
        [this, &ctx]() -> task<> { return record_with_others(ctx, !ctx.now().epoch_end); });
    ctx.on<event::epoch_completed>([this, &ctx]() -> task<> { return record_with_others(ctx, true); });
    // A snapshot keeps one rank's account, so that it must be that of all.
    ctx.on<event::snapshot_started>(
        [this, &ctx](const event::snapshot_started& e) -> task<> { return e.alone ? nothing() : join_ranks(ctx); });
    if (options_.final) write_rest_at_end(ctx);
    if (ctx.is_saver()) end_with(ctx);
  }

  static task<> nothing() { co_return; }

  void end_with(context& ctx) {
    ctx.on_end<event::training_completed>([this] {
      if (std::exchange(writer_begun_, false)) options_.writer->end();
    });
  }

  task<> begin_with_others(context& ctx) {
    if (ctx.is_saver()) begin(ctx);
    const auto group = ctx.group().channel(ctx.name());
    const auto place = co_await group.broadcast(fmt::format("{} {}", position_, file_name_));
    position_ = std::stoll(place);
    if (names_) file_name_ = place.substr(place.find(' ') + 1);
  }

  task<> record_with_others(context& ctx, bool wanted) {
    if (!wanted) co_return;
    bool due = record(ctx);
    const auto group = ctx.group().channel(ctx.name());
    if (!options_.trigger.same_on_all_ranks()) due = group.first_says(due);
    if (!due) co_return;
    co_await join_ranks(ctx);
    write(ctx, elapsed_time_);
  }

  /// Posted at the end of each iteration, and so delivered when everybody has seen it.
  struct iteration_is_over {
    const log_writer* whose;
  };

  void write_rest_at_end(context& ctx) {
    ctx.on<event::training_started>([this, &ctx] {
      begun_at_ = ctx.state_version();
      remember_keys(ctx);
    });
    ctx.on<event::iteration_completed>([this, &ctx] { ctx.post<iteration_is_over>(this); });
    ctx.on<iteration_is_over>([this, &ctx](const iteration_is_over& e) {
      if (e.whose == this) remember_keys(ctx);
    });
    ctx.on<event::training_completed>([this, &ctx]() -> task<> { return write_rest(ctx); });
  }

  void remember_keys(context& ctx) {
    before_end_.clear();
    ctx.reported().for_each([this](const std::string& key, const observation&) { before_end_.insert(key); });
  }

  /// What a run that is over has not logged yet, with what others have reported since the last iteration. One that is
  /// to go on elsewhere logs it there.
  task<> write_rest(context& ctx) {
    if (ctx.preempted() || ctx.state_version() == begun_at_) co_return;
    ctx.reported().for_each([this](const std::string& key, const observation& value) {
      if (!before_end_.contains(key)) add(key, value);
    });
    if (several_) co_await join_ranks(ctx);
    const bool rest = several_ ? !joined_.empty() : !means_.empty();
    if (!rest) co_return;
    auto told =
        ctx.emit<extensions::log_entry>(ctx.name(), write_line(ctx, several_ ? elapsed_time_ : ctx.elapsed_time()));
    if (told) co_await std::move(*told);
  }

  /// Each rank's part: its time, a space, and the table of its means.
  static std::string_view table_in(std::string_view part) { return part.substr(part.find(' ') + 1); }

  static std::string merged(const std::vector<std::string>& parts) {
    summary_table whole;
    for (const auto& part : parts) whole.merge(summary_table::unpack(table_in(part)));
    return parts.front().substr(0, parts.front().find(' ') + 1) + whole.pack();
  }

  task<> join_ranks(context& ctx) {
    const auto group = ctx.group().channel(ctx.name());
    std::string mine = fmt::format("{} ", ctx.elapsed_time());
    mine += std::exchange(means_, {}).pack();  // what is reported while the others are awaited belongs to the next
    auto merging = group.merge(std::move(mine), merged);
    const auto whole = co_await std::move(merging);
    joined_.merge(summary_table::unpack(table_in(whole)));
    for (const auto& key : joined_.keys()) see(key);
    elapsed_time_ = std::stod(whole);
  }

  void begin(context& ctx) {
    // First, so that a mistake in the writer's options costs no line of an earlier log.
    if (options_.writer) {
      options_.writer->begin(ctx.out(), ctx.iteration());
      writer_begun_ = true;
    }
    if (names_ && !loaded_) return;  // the first line makes the first file
    if (names_) {
      if (stored_file_name_.empty()) return;
      detail::require_file_name(stored_file_name_);
      open(ctx, stored_file_name_);
    }
    if (loaded_)
      go_back_to(position_);
    else if (options_.append || ctx.iteration() > 0)
      position_ = file_->whole_lines(file_->size());
    else
      position_ = 0;
    file_->truncate(position_);
  }

  void open(context& ctx, const std::string& name) {
    file_name_ = name;
    if (!ctx.is_saver()) return;
    file_.reset();
    file_.emplace(ctx.out() / name);
  }

  /// A template names another file for some of the lines. What an earlier run has written there beyond the snapshot is
  /// written again.
  void turn_to_file(context& ctx) {
    if (!names_) return;
    const auto name = names_->format({{"iteration", ctx.iteration()}, {"epoch", ctx.epoch()}});
    if (name == file_name_) return;
    open(ctx, name);
    position_ = 0;
    if (!file_) return;
    if (options_.append) position_ = file_->whole_lines(file_->size());
    file_->truncate(position_);
  }

  void go_back_to(std::int64_t position) {
    position_ = file_->whole_lines(position);
    if (position_ == position) return;
    log::warn(fmt::format(
        "'{}' had {} bytes when the snapshot was taken, of which the first {} are there in whole lines: the log "
        "goes on from there",
        file_->path().string(), position, position_));
  }

  /// Whether it is time for a line.
  bool record(context& ctx) {
    ctx.reported().for_each([this](const std::string& key, const observation& value) { add(key, value); });
    return options_.trigger.due(ctx.now());
  }

  void add(const std::string& key, const observation& value) {
    see(key);
    if (wanted(key)) means_.add(key, value);
  }

  void see(const std::string& key) {
    if (std::find(seen_.begin(), seen_.end(), key) == seen_.end()) seen_.push_back(key);
  }

  [[nodiscard]] bool wanted(const std::string& key) const {
    return options_.keys.empty() || std::find(options_.keys.begin(), options_.keys.end(), key) != options_.keys.end();
  }

  void write(context& ctx, double elapsed_time) {
    ctx.post<extensions::log_entry>(ctx.name(), write_line(ctx, elapsed_time));
  }

  state::dict write_line(context& ctx, double elapsed_time) {
    if (ctx.is_saver()) warn_of_unknown_keys();
    state::dict entry = take_means();
    entry.insert_or_assign("epoch", ctx.epoch());
    entry.insert_or_assign("iteration", ctx.iteration());
    entry.insert_or_assign("elapsed_time", elapsed_time);
    if (options_.postprocess) options_.postprocess(entry);
    const std::string line = json_line(entry);
    turn_to_file(ctx);
    if (file_) file_->append(line);
    position_ += static_cast<std::int64_t>(line.size());
    if (options_.writer && ctx.is_saver()) options_.writer->write(ctx.iteration(), numbers_in(entry));
    return entry;
  }

  state::dict take_means() {
    auto& means = several_ ? joined_ : means_;
    state::dict all;
    for (const auto& key : options_.keys.empty() ? seen_ : options_.keys)
      if (const auto* one = means.find(key)) all.insert_or_assign(key, one->mean());
    means.clear();
    return all;
  }

  void warn_of_unknown_keys() {
    if (warned_) return;
    std::vector<std::string> unknown;
    for (const auto& key : options_.keys)
      if (std::find(seen_.begin(), seen_.end(), key) == seen_.end()) unknown.push_back(key);
    if (unknown.empty()) return;
    warned_ = true;
    log::warn(fmt::format("log_report: nobody has reported {} so far; there are: {}", joined(unknown), joined(seen_)));
  }

  log_report_options options_;
  std::optional<writing::file_name_template> names_;  // where there are several files
  std::string file_name_;                             // of the present one
  std::string stored_file_name_;
  std::optional<extensions::line_file> file_;
  summary_table means_;   // of this rank, since all ranks' were joined
  summary_table joined_;  // of all ranks, the same on each
  bool several_ = false;
  double elapsed_time_ = 0.0;      // of rank 0, when they were joined
  std::vector<std::string> seen_;  // the columns' order, which must survive a resume
  std::int64_t position_ = 0;
  bool loaded_ = false;
  bool warned_ = false;
  bool writer_begun_ = false;
  std::set<std::string> before_end_;  // what there was at the end of the last iteration
  std::int64_t begun_at_ = -1;        // version of the state
};

}  // namespace

extension log_report(log_report_options options) {
  detail::require_file_name(options.filename);
  return extension::made_by("log_report",
                            [options = std::move(options)] { return std::make_shared<log_writer>(options); });
}

}  // namespace rondo

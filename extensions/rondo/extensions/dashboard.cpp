#include "rondo/extensions/dashboard.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <memory>
#include <string_view>
#include <utility>

#include "rondo/error.hpp"
#include "rondo/event/better.hpp"
#include "rondo/event/events.hpp"
#include "rondo/extensions/line_chart.hpp"
#include "rondo/extensions/progress.hpp"
#include "rondo/extensions/terminal.hpp"
#include "rondo/extensions/terminal_capture.hpp"
#include "rondo/log.hpp"
#include "rondo/loop/context.hpp"
#include "rondo/report/summary.hpp"

namespace rondo {

namespace {

using extensions::time_text;
using lines = std::vector<std::string>;

constexpr double sample_interval = 1e-3;  // seconds: what quicker iterations report is not looked at each time
constexpr std::size_t most_points = 512;  // of a curve
constexpr int least_chart_height = 7;
constexpr int least_chart_width = 38;
constexpr std::array<std::string_view, 6> colours = {"\x1b[36m", "\x1b[33m", "\x1b[32m",
                                                     "\x1b[35m", "\x1b[34m", "\x1b[31m"};
constexpr std::string_view marks = "*+xo#@";

void require_positive(const char* option, std::chrono::duration<double> time) {
  if (!(time.count() > 0.0) || !std::isfinite(time.count()))
    throw option_error(option, fmt::format("{} s", time.count()), "a positive number of seconds");
}

bool locale_is_utf8() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const char* value = std::getenv(name);
    if (value == nullptr || *value == '\0') continue;
    std::string text(value);
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
    return text.find("utf-8") != std::string::npos || text.find("utf8") != std::string::npos;
  }
  return false;
}

/// How many columns it takes: escape sequences take none, other characters one.
int width_of(std::string_view text) {
  int width = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\x1b')
      while (i < text.size() && text[i] != 'm') ++i;
    else if ((static_cast<unsigned char>(text[i]) & 0xc0) != 0x80)
      ++width;
  }
  return width;
}

/// Exactly `width` columns of a text without escape sequences.
std::string fitted(const std::string& text, int width) {
  std::string result;
  int columns = 0;
  for (const char c : text) {
    const bool begins = (static_cast<unsigned char>(c) & 0xc0) != 0x80;
    if (begins && columns++ == width) break;
    result += c;
  }
  return result.append(static_cast<std::size_t>(std::max(0, width - width_of(result))), ' ');
}

std::string last_part(const std::string& key) { return key.substr(key.rfind('/') + 1); }

std::string bytes_text(std::uint64_t bytes) {
  const auto size = static_cast<double>(bytes);
  if (size >= 1073741824.0) return fmt::format("{:.2f} GiB", size / 1073741824.0);
  if (size >= 1048576.0) return fmt::format("{:.1f} MiB", size / 1048576.0);
  return fmt::format("{:.1f} KiB", size / 1024.0);
}

/// What one key has been.
struct history {
  std::string key;
  std::vector<std::pair<double, double>> points;  // iteration, mean since the point before

  double last = 0.0;
  double best = std::nan("");
  std::int64_t best_at = 0;
  summary epoch;
  std::int64_t epoch_index = -1;

  void add(std::int64_t iteration, std::int64_t of_epoch, const summary& seen, double latest) {
    last = latest;
    if (epoch_index != of_epoch) epoch = {};
    epoch_index = of_epoch;
    epoch.merge(seen);
    const double mean = seen.mean();
    const bool higher = known_higher_is_better(key).value_or(false);
    if (std::isfinite(mean) && (std::isnan(best) || (higher ? mean > best : mean < best))) {
      best = mean;
      best_at = iteration;
    }
    points.emplace_back(static_cast<double>(iteration), mean);
    if (points.size() >= most_points) thin_out();
  }

  /// Half as many points, each the mean of two.
  void thin_out() {
    for (std::size_t i = 0; i + 1 < points.size(); i += 2)
      points[i / 2] = {points[i + 1].first, (points[i].second + points[i + 1].second) / 2};
    points.resize(points.size() / 2);
  }
};

class board {
 public:
  explicit board(dashboard_options options)
      : options_(std::move(options)),
        terminal_(extensions::is_terminal(*options_.out)),
        unicode_(options_.unicode.value_or(locale_is_utf8())),
        colours_(options_.colours.value_or(std::getenv("NO_COLOR") == nullptr)),
        interval_(terminal_ ? options_.update_interval.count() : options_.plain_interval.count()) {}

  void attach(context& ctx) {
    if (!ctx.is_saver()) return;
    ctx.on<event::training_started>([this, &ctx] { begin(ctx); });
    ctx.on<event::evaluation_completed>([this] { next_sample_ = 0.0; });
    ctx.on<event::snapshot_completed>([this](const event::snapshot_completed& e) { note(e); });
    ctx.on<event::iteration_completed>([this, &ctx] {
      const double time = time_of(ctx);
      if (time >= next_sample_ || ctx.now().epoch_end) look(ctx, time);
    });
    ctx.on_end<event::training_completed>([this, &ctx](const event::training_completed& end) { conclude(ctx, end); });
  }

 private:
  [[nodiscard]] double time_of(const context& ctx) const {
    return options_.clock ? options_.clock() : ctx.elapsed_time();
  }

  void begin(const context& ctx) {
    begun_at_ = time_of(ctx);
    first_iteration_ = ctx.iteration();
    rate_.add(begun_at_, first_iteration_);
    next_draw_ = begun_at_ + interval_;
    if (!terminal_) return;
    if (ctx.has_extension("progress_bar"))
      log::warn("dashboard: the terminal has a progress_bar as well, whose bars will scroll by; leave one of them out");
    if (extensions::terminal_capture::in_use())
      throw option_error("out", "a terminal on which another dashboard of this process is at work", "one at a time");
    screen_.emplace(options_.out == &std::cout ? STDOUT_FILENO : STDERR_FILENO);
    screen_->show(picture(ctx, begun_at_));
  }

  void look(const context& ctx, double time) {
    next_sample_ = time + sample_interval;
    recent_.add(ctx.reported());
    if (time < next_draw_) return;
    next_draw_ = time + interval_;
    rate_.add(time, ctx.iteration());
    take_recent(ctx);
    if (screen_)
      screen_->show(picture(ctx, time));
    else
      *options_.out << plain_line(ctx) << std::flush;
  }

  /// Brings what has been collected to the host.
  void take_recent(const context& ctx) {
    for (const auto& key : recent_.keys()) {
      const auto* seen = recent_.find(key);
      if (seen == nullptr || seen->empty()) continue;
      const auto* now = ctx.reported().find(key);
      const std::int64_t epoch = ctx.now().epoch_end ? ctx.epoch() - 1 : ctx.epoch();
      history_of(key).add(ctx.iteration(), epoch, *seen, now == nullptr ? seen->mean() : now->value());
      if (key == "train/loss") samples_ = seen->weight() / static_cast<double>(seen->count());
    }
    recent_.clear();
  }

  history& history_of(const std::string& key) {
    const auto found = std::find_if(histories_.begin(), histories_.end(), [&](const auto& h) { return h.key == key; });
    if (found != histories_.end()) return *found;
    histories_.emplace_back().key = key;
    return histories_.back();
  }

  void note(const event::snapshot_completed& e) {
    snapshots_.push_back(
        fmt::format("{}  {}  {:.2f} s", e.path.filename().string(), bytes_text(e.bytes), e.total_seconds));
    while (snapshots_.size() > static_cast<std::size_t>(options_.snapshots)) snapshots_.pop_front();
  }

  // ---- the picture -----------------------------------------------------------------------------------------------

  [[nodiscard]] lines picture(const context& ctx, double time) const {
    const auto size = screen_->size();
    const int columns = std::max(size.columns - 1, 20);
    // At least one line of the terminal is not the picture's, even where there is hardly room.
    const int rows = std::clamp(size.rows - options_.log_lines, 1, std::max(size.rows - 1, 1));
    auto all = header(ctx, time, columns);
    auto below = table(columns, std::max((rows - 4) / 2, 2));
    for (auto& line : snapshot_lines(columns)) below.push_back(std::move(line));
    for (auto& line : charts(columns, rows - static_cast<int>(all.size() + below.size())))
      all.push_back(std::move(line));
    for (auto& line : below) all.push_back(std::move(line));
    if (static_cast<int>(all.size()) > rows) all.resize(static_cast<std::size_t>(rows));
    return all;
  }

  [[nodiscard]] std::string rule(const std::string& title, int columns) const {
    std::string text = unicode_ ? "── " : "-- ";
    text += title + " ";
    text = fitted(text, std::min(columns, width_of(text)));
    for (int i = width_of(text); i < columns; ++i) text += unicode_ ? "─" : "-";
    return text;
  }

  [[nodiscard]] std::string bar(const char* what, double done) const {
    constexpr int length = 30;
    const int filled = static_cast<int>(std::floor(std::clamp(done, 0.0, 1.0) * length));
    std::string text = fmt::format("{:>10} ", what);
    for (int i = 0; i < length; ++i) text += i < filled ? (unicode_ ? "█" : "#") : (unicode_ ? "░" : ".");
    return text + fmt::format(" {:6.2f}%  ", done * 100.0);
  }

  [[nodiscard]] lines header(const context& ctx, double time, int columns) const {
    const auto total = extensions::done_of_total(ctx);
    const auto epoch = extensions::done_of_epoch(ctx);
    std::string speed = extensions::speed_text(ctx, rate_.rate());
    if (samples_ > 1.0) speed += fmt::format(", {:.4g} samples/s", samples_ * rate_.rate());
    return {rule("training, " + time_text(time - begun_at_), columns),
            fitted((total ? bar("total", *total) : "  ") + extensions::position_text(ctx), columns),
            fitted((epoch ? bar("this epoch", *epoch) : "  ") + speed, columns)};
  }

  [[nodiscard]] lines table(int columns, int height) const {
    if (histories_.empty()) return {};
    std::size_t longest = 8;
    for (const auto& h : histories_) longest = std::max(longest, h.key.size());
    const int name = static_cast<int>(std::min<std::size_t>(longest, 28));
    const int block = name + 3 * 11 + 3;
    const int across = std::max(1, columns / block);
    const int count = static_cast<int>(histories_.size());
    const int down = std::min((count + across - 1) / across, std::max(height - 2, 1));
    const int shown = std::min(count, down * across);
    std::string head;
    for (int i = 0; i < std::min(across, (shown + down - 1) / down); ++i)
      head += fmt::format(" {} {:>10} {:>10} {:>10}  ", fitted("", name), "last", "mean", "best");
    lines all{rule(shown < count ? fmt::format("values, {} of {}", shown, count) : "values", columns),
              fitted(head, columns)};
    for (int y = 0; y < down; ++y) {
      std::string line;
      for (int i = y; i < shown; i += down) {
        const auto& h = histories_[static_cast<std::size_t>(i)];
        line += fmt::format(" {} {:>10.4g} {:>10.4g} {:>10.4g}  ", fitted(h.key, name), h.last, h.epoch.mean(), h.best);
      }
      all.push_back(fitted(line, columns));
    }
    return all;
  }

  [[nodiscard]] lines snapshot_lines(int columns) const {
    lines all;
    if (snapshots_.empty()) return all;
    all.push_back(rule("snapshots", columns));
    for (auto s = snapshots_.rbegin(); s != snapshots_.rend(); ++s) all.push_back(fitted(" " + *s, columns));
    return all;
  }

  using group = std::vector<const history*>;

  /// Keys that end alike belong together.
  [[nodiscard]] std::vector<group> groups() const {
    std::vector<const history*> wanted;
    if (options_.curves.empty())
      for (const auto& h : histories_) wanted.push_back(&h);
    for (const auto& key : options_.curves)
      for (const auto& h : histories_)
        if (h.key == key) wanted.push_back(&h);
    std::vector<group> all;
    for (const auto* h : wanted) {
      const auto same = std::find_if(all.begin(), all.end(), [&](const group& g) {
        return g.size() < colours.size() && last_part(g.front()->key) == last_part(h->key);
      });
      if (same == all.end())
        all.push_back({h});
      else
        same->push_back(h);
    }
    return all;
  }

  [[nodiscard]] lines charts(int columns, int height) const {
    const auto all_groups = groups();
    const int fit_down = height / least_chart_height;
    if (all_groups.empty() || fit_down < 1) return {};
    const int fit_across = std::max(1, columns / least_chart_width);
    const int shown = std::min(static_cast<int>(all_groups.size()), fit_down * fit_across);
    const int across = std::min(fit_across, (shown + fit_down - 1) / fit_down);
    const int down = (shown + across - 1) / across;
    const int chart_height = std::min(height / down, 16);
    const int chart_width = columns / across;
    lines all;
    for (int y = 0; y < down; ++y) {
      lines row(static_cast<std::size_t>(chart_height));
      for (int i = y * across; i < std::min((y + 1) * across, shown); ++i) {
        const auto one = chart(all_groups[static_cast<std::size_t>(i)], chart_width, chart_height);
        for (std::size_t l = 0; l < row.size(); ++l) row[l] += one[l];
      }
      for (auto& line : row) all.push_back(std::move(line));
    }
    return all;
  }

  [[nodiscard]] lines chart(const group& keys, int width, int height) const {
    std::vector<extensions::chart_curve> curves;
    std::string title = "  ";
    int left = width - 3;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      const auto colour = colours_ ? colours[i] : std::string_view();
      curves.push_back({keys[i]->points, colour, marks[i]});
      const std::string mark = unicode_ ? "━ " : std::string(1, marks[i]) + " ";
      const std::string text = mark + keys[i]->key + "  ";
      const int take = std::min(width_of(text), left);
      left -= take;
      title += std::string(colour) + fitted(text, take) + (colour.empty() ? "" : "\x1b[0m");
    }
    title.append(static_cast<std::size_t>(std::max(0, width - width_of(title))), ' ');
    lines all{std::move(title)};
    for (auto& line : extensions::line_chart(
             curves, {.width = width - 1, .height = height - 1, .unicode = unicode_, .x_unit = "iterations"}))
      all.push_back(std::move(line) + " ");
    return all;
  }

  // ---- elsewhere, and at the end -----------------------------------------------------------------------------------

  [[nodiscard]] std::string plain_line(const context& ctx) const {
    std::string text = extensions::position_text(ctx);
    if (const auto done = extensions::done_of_total(ctx)) text += fmt::format(", {:.1f}%", *done * 100.0);
    text += ", " + extensions::speed_text(ctx, rate_.rate());
    for (const auto& g : groups())
      for (const auto* h : g) text += fmt::format(", {} {:.4g}", h->key, h->last);
    return text + '\n';
  }

  void conclude(const context& ctx, const event::training_completed& end) {
    const double time = time_of(ctx);
    const auto iterations = ctx.iteration() - first_iteration_;
    std::string text = fmt::format("{}: {} iterations in {}", end.error ? "ended by an error" : end.stop_reason,
                                   iterations, time_text(time - begun_at_));
    if (time > begun_at_)
      text += fmt::format(", {:.4g} iterations/s", static_cast<double>(iterations) / (time - begun_at_));
    if (!end.error) {
      take_recent(ctx);
      warn_of_unknown_keys();
    }
    if (!screen_) {
      *options_.out << text << '\n' << std::flush;
      return;
    }
    auto last = picture(ctx, time);
    last.push_back(std::move(text));
    screen_->end(std::move(last));
    screen_.reset();
  }

  void warn_of_unknown_keys() const {
    lines there, unknown;
    for (const auto& h : histories_) there.push_back(h.key);
    for (const auto& key : options_.curves)
      if (std::find(there.begin(), there.end(), key) == there.end()) unknown.push_back(key);
    if (unknown.empty()) return;
    log::warn(fmt::format("dashboard: nobody has reported {}; there are: {}", fmt::join(unknown, ", "),
                          there.empty() ? "none" : fmt::format("{}", fmt::join(there, ", "))));
  }

  dashboard_options options_;
  bool terminal_;
  bool unicode_;
  bool colours_;
  double interval_;
  double begun_at_ = 0.0;
  double next_draw_ = 0.0;
  double next_sample_ = 0.0;
  std::int64_t first_iteration_ = 0;
  double samples_ = 0.0;  // per iteration
  extensions::rate_meter rate_;
  summary_table recent_;
  std::deque<history> histories_;
  std::deque<std::string> snapshots_;
  std::optional<extensions::terminal_capture> screen_;
};

}  // namespace

extension dashboard(dashboard_options options) {
  require_positive("update_interval", options.update_interval);
  require_positive("plain_interval", options.plain_interval);
  if (options.log_lines < 1) throw option_error("log_lines", fmt::format("{}", options.log_lines), "1 or more lines");
  if (options.snapshots < 0) throw option_error("snapshots", fmt::format("{}", options.snapshots), "0 or more");
  if (options.out == nullptr) throw option_error("out", "null", "a stream that outlives the run");
  return extension::made_by("dashboard", [options = std::move(options)] { return std::make_shared<board>(options); });
}

}  // namespace rondo

#include "rondo/extensions/print_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "rondo/error.hpp"
#include "rondo/event/events.hpp"
#include "rondo/extensions/log_report.hpp"
#include "rondo/extensions/terminal.hpp"
#include "rondo/log.hpp"
#include "rondo/loop/context.hpp"

namespace rondo {

namespace {

constexpr std::size_t least_width = 10;
constexpr std::size_t few_changes = 2;  // between what was meant and what was typed

/// With 6 significant digits, or as many fewer as the width asks for.
std::string number_text(double number, std::size_t width) {
  std::string text = fmt::format("{:.6g}", number);
  for (int digits = 5; digits > 0 && text.size() > width; --digits) text = fmt::format("{:.{}g}", number, digits);
  return text;
}

std::string cell_text(const state::value& value, std::size_t width) {
  if (const auto* number = value.get_if<double>()) return number_text(*number, width);
  if (const auto* number = value.get_if<std::int64_t>()) return fmt::format("{}", *number);
  if (const auto* text = value.get_if<std::string>()) return *text;
  if (const auto* yes = value.get_if<bool>()) return *yes ? "true" : "false";
  return value.is_null() ? "" : value.type_name();
}

class table_printer {
 public:
  table_printer(std::vector<std::string> columns, print_report_options options)
      : columns_(std::move(columns)),
        options_(std::move(options)),
        chosen_(!columns_.empty()),
        terminal_(options_.terminal.value_or(extensions::is_terminal(*options_.out))) {}

  void attach(context& ctx) {
    speaks_ = ctx.is_saver();
    ctx.on<extensions::log_entry>([this](const extensions::log_entry& entry) {
      if (options_.log_report.empty() || options_.log_report == entry.source) print(entry.values);
    });
    ctx.on<event::training_completed>([this] { warn_of_blanks(); });
  }

  [[nodiscard]] state::value state_dict() const {
    if (seen_.empty()) return state::dict();
    return state::dict{{"columns", state::list(columns_.begin(), columns_.end())},
                       {"seen", state::list(seen_.begin(), seen_.end())}};
  }
  // The table of the resumed run is a part of the same one: columns that nobody has chosen stay those of its first
  // entry.
  void load_state_dict(const state::value& state) {
    if (state.as<state::dict>().empty()) return;
    auto columns = texts_in(state, "columns");
    const auto seen = texts_in(state, "seen");
    if (!chosen_) columns_ = std::move(columns);
    seen_.insert(seen.begin(), seen.end());
  }

 private:
  static std::vector<std::string> texts_in(const state::value& state, const char* name) {
    std::vector<std::string> all;
    for (const auto& text : state.get<state::list>(name)) all.push_back(text.as<std::string>());
    return all;
  }

  void print(const state::dict& entry) {
    std::string text;
    if (terminal_) text += extensions::clear_below;
    const bool first = !begun_;
    if (first || has_new_columns(entry)) text += header(entry);
    text += row(entry);
    if (first && speaks_) warn_of_typos();
    if (speaks_) *options_.out << text << std::flush;
  }

  [[nodiscard]] bool is_new(const std::string& key) const {
    return !chosen_ && std::find(columns_.begin(), columns_.end(), key) == columns_.end();
  }

  /// Where nobody has chosen columns, all are shown, also those that come later: with the header once more.
  [[nodiscard]] bool has_new_columns(const state::dict& entry) const {
    return std::any_of(entry.begin(), entry.end(), [this](const auto& item) { return is_new(item.first.str()); });
  }

  std::string header(const state::dict& entry) {
    begun_ = true;
    for (const auto& item : entry)
      if (is_new(item.first.str())) columns_.push_back(item.first.str());
    std::string line;
    for (const auto& column : columns_) add_cell(line, column, column);
    return finished(std::move(line));
  }

  std::string row(const state::dict& entry) {
    for (const auto& item : entry) seen_.insert(item.first.str());
    std::string line;
    for (const auto& column : columns_) {
      const auto* value = entry.find(column);
      add_cell(line, column, value == nullptr ? "" : cell_text(*value, width_of(column)));
    }
    return finished(std::move(line));
  }

  static std::size_t width_of(const std::string& column) { return std::max(least_width, column.size()); }

  static void add_cell(std::string& line, const std::string& column, const std::string& text) {
    line += fmt::format("{:<{}}  ", text, width_of(column));
  }

  static std::string finished(std::string line) {
    line.erase(line.find_last_not_of(' ') + 1);
    return std::move(line) + '\n';
  }

  // Others may come later.
  void warn_of_typos() const {
    for (const auto& column : columns_)
      for (const auto& key : seen_)
        if (!seen_.contains(column) && column.size() > 3 * few_changes && changes_between(column, key) <= few_changes)
          log::warn(fmt::format("print_report: the first entry has no '{}', but '{}'", column, key));
  }

  /// How many characters of `a` must be changed, left out or added to get `b` (Levenshtein's distance).
  static std::size_t changes_between(std::string_view a, std::string_view b) {
    std::vector<std::size_t> best(b.size() + 1);
    std::iota(best.begin(), best.end(), std::size_t{0});
    for (std::size_t i = 0; i < a.size(); ++i) {
      std::size_t diagonal = std::exchange(best[0], i + 1);
      for (std::size_t j = 0; j < b.size(); ++j) {
        const std::size_t other = std::min(best[j], best[j + 1]) + 1;
        diagonal = std::exchange(best[j + 1], std::min(other, diagonal + (a[i] == b[j] ? 0 : 1)));
      }
    }
    return best.back();
  }

  void warn_of_blanks() const {
    if (!speaks_) return;
    if (seen_.empty()) {
      log::warn(
          "print_report has printed nothing, because no log_report has written an entry: attach one, with a trigger "
          "that fires before training ends");
      return;
    }
    for (const auto& column : columns_)
      if (!seen_.contains(column))
        log::warn(fmt::format("print_report: no entry had '{}'; there are: {}", column, fmt::join(seen_, ", ")));
  }

  std::vector<std::string> columns_;
  print_report_options options_;
  bool chosen_;
  bool terminal_;
  bool begun_ = false;
  bool speaks_ = true;  // one of several ranks does
  std::set<std::string> seen_;
};

}  // namespace

extension print_report(std::vector<std::string> entries, print_report_options options) {
  if (options.out == nullptr) throw option_error("out", "null", "a stream that outlives the run");
  return extension::made_by("print_report", [entries = std::move(entries), options = std::move(options)] {
    return std::make_shared<table_printer>(entries, options);
  });
}

}  // namespace rondo

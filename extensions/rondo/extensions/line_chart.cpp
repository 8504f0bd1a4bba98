#include "rondo/extensions/line_chart.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

namespace rondo::extensions {

namespace {

struct range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();

  void include(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  [[nodiscard]] bool empty() const { return low > high; }
  /// From 0 to 1.
  [[nodiscard]] double place(double value) const { return high > low ? (value - low) / (high - low) : 0.5; }
};

bool drawable(const std::pair<double, double>& p) { return std::isfinite(p.first) && std::isfinite(p.second); }

/// Dots, of which `across` × `down` share a character.
class canvas {
 public:
  canvas(int columns, int rows, bool unicode)
      : columns_(columns),
        rows_(rows),
        across_(unicode ? 2 : 1),
        down_(unicode ? 4 : 1),
        unicode_(unicode),
        cells_(static_cast<std::size_t>(columns * rows)) {}

  [[nodiscard]] int dots_across() const { return columns_ * across_; }
  [[nodiscard]] int dots_down() const { return rows_ * down_; }

  void line(int x0, int y0, int x1, int y1, const chart_curve& curve) {
    const int steps = std::max({std::abs(x1 - x0), std::abs(y1 - y0), 1});
    const auto between = [steps](int a, int b, int i) {
      return static_cast<int>(std::lround(a + 1.0 * (b - a) * i / steps));
    };
    for (int i = 0; i <= steps; ++i) dot(between(x0, x1, i), between(y0, y1, i), curve);
  }

  [[nodiscard]] std::string row(int y) const {
    std::string text;
    std::string_view colour;
    for (int x = 0; x < columns_; ++x) {
      const auto& c = cells_[static_cast<std::size_t>(y * columns_ + x)];
      if (c.colour != colour && c.dots != 0) {
        text += c.colour.empty() ? std::string_view("\x1b[0m") : c.colour;
        colour = c.colour;
      }
      text += c.dots == 0 ? " " : unicode_ ? braille(c.dots) : std::string(1, c.mark);
    }
    return colour.empty() ? text : text + "\x1b[0m";
  }

 private:
  struct cell {
    unsigned dots = 0;
    std::string_view colour;
    char mark = ' ';
  };

  void dot(int x, int y, const chart_curve& curve) {
    static constexpr unsigned bits[4][2] = {{0x01, 0x08}, {0x02, 0x10}, {0x04, 0x20}, {0x40, 0x80}};
    auto& c = cells_[static_cast<std::size_t>(y / down_ * columns_ + x / across_)];
    c.dots |= bits[y % down_][x % across_];
    c.colour = curve.colour;
    c.mark = curve.mark;
  }

  /// U+2800 and the dots, in UTF-8.
  static std::string braille(unsigned dots) {
    return {'\xe2', static_cast<char>(0xa0 | (dots >> 6)), static_cast<char>(0x80 | (dots & 0x3f))};
  }

  int columns_, rows_, across_, down_;
  bool unicode_;
  std::vector<cell> cells_;
};

void draw(const chart_curve& curve, const range& xs, const range& ys, canvas& on) {
  const auto x_of = [&](double x) { return static_cast<int>(std::lround(xs.place(x) * (on.dots_across() - 1))); };
  const auto y_of = [&](double y) { return static_cast<int>(std::lround((1.0 - ys.place(y)) * (on.dots_down() - 1))); };
  const std::pair<double, double>* before = nullptr;
  for (const auto& p : curve.points) {
    if (!drawable(p)) continue;
    const auto& from = before == nullptr ? p : *before;
    on.line(x_of(from.first), y_of(from.second), x_of(p.first), y_of(p.second), curve);
    before = &p;
  }
}

std::string number(double value) { return fmt::format("{:.4g}", value); }

}  // namespace

std::vector<std::string> line_chart(const std::vector<chart_curve>& curves, const chart_options& options) {
  range xs, ys;
  for (const auto& curve : curves)
    for (const auto& p : curve.points)
      if (drawable(p)) {
        xs.include(p.first);
        ys.include(p.second);
      }
  const int rows = std::max(options.height, 4) - 2;
  const std::string top = ys.empty() ? "" : number(ys.high);
  const std::string middle = ys.empty() || rows < 5 || ys.high == ys.low ? "" : number((ys.low + ys.high) / 2);
  const std::string bottom = ys.empty() || ys.high == ys.low ? "" : number(ys.low);
  const int margin = static_cast<int>(std::max({top.size(), middle.size(), bottom.size(), std::size_t{4}}));
  const int columns = std::max(std::max(options.width, 20) - margin - 2, 4);
  canvas dots(columns, rows, options.unicode);
  if (!xs.empty())
    for (const auto& curve : curves) draw(curve, xs, ys, dots);

  std::vector<std::string> lines;
  for (int y = 0; y < rows; ++y) {
    const auto& label = y == 0 ? top : y == rows - 1 ? bottom : y == rows / 2 ? middle : std::string();
    const char* axis = options.unicode ? (label.empty() ? "│" : "┤") : (label.empty() ? "|" : "+");
    lines.push_back(fmt::format("{:>{}} {}", label, margin, axis) + dots.row(y));
  }
  std::string axis;
  for (int x = 0; x < columns; ++x) axis += options.unicode ? "─" : "-";
  lines.push_back(fmt::format("{:>{}} {}{}", "", margin, options.unicode ? "└" : "+", axis));
  const std::string left = xs.empty() ? "" : fmt::format("{:.8g}", xs.low);
  std::string right = xs.empty() ? "" : fmt::format("{:.8g} {}", xs.high, options.x_unit);
  if (static_cast<int>(left.size() + right.size()) + 1 > columns) right.resize(right.find(' '));
  const int gap = std::max(columns - static_cast<int>(left.size() + right.size()), 0);
  auto numbers = fmt::format("{:>{}}{}{:>{}}{}", "", margin + 2, left, "", gap, right);
  numbers.resize(static_cast<std::size_t>(margin + 2 + columns), ' ');
  lines.push_back(std::move(numbers));
  return lines;
}

}  // namespace rondo::extensions

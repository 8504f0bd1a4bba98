#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace rondo::extensions {

struct chart_curve {
  std::vector<std::pair<double, double>> points;  ///< (x, y), x ascending; those that are not finite are left out
  std::string_view colour = {};                   ///< what selects it on a terminal ("\x1b[32m"); empty: none
  char mark = '*';                                ///< without braille
};

struct chart_options {
  int width = 60;           ///< columns, at least 20
  int height = 10;          ///< lines, at least 4: the last two are the axis and its numbers
  bool unicode = true;      ///< braille dots, 2 × 4 in each character; else a mark for each
  std::string x_unit = {};  ///< behind the last number of the x axis
};

/// Draws curves into one pair of axes, whose ranges are those of the points. Every line has `width` columns.
[[nodiscard]] std::vector<std::string> line_chart(const std::vector<chart_curve>& curves, const chart_options& options);

}  // namespace rondo::extensions

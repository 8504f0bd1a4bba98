#pragma once

#include <string_view>

namespace rondo {

/// Which direction of a number is better.
enum class better { automatic, lower, higher };

/// What `automatic` means for the observation `key`: higher if its name contains "accuracy" or "auc", else lower.
[[nodiscard]] inline bool higher_is_better(better direction, std::string_view key) {
  if (direction != better::automatic) return direction == better::higher;
  return key.find("accuracy") != std::string_view::npos || key.find("auc") != std::string_view::npos;
}

}  // namespace rondo

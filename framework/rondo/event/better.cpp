#include "rondo/event/better.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>

#include "rondo/error.hpp"

namespace rondo {

namespace {

constexpr std::array<std::string_view, 6> higher = {"accuracy", "auc", "f1", "precision", "recall", "r2"};
constexpr std::array<std::string_view, 7> lower = {"loss", "error", "perplexity", "mse", "rmse", "mae", "nll"};

template <std::size_t N>
bool is_one_of(const std::array<std::string_view, N>& words, std::string_view word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

}  // namespace

std::optional<bool> known_higher_is_better(std::string_view key) {
  std::string_view rest = key.substr(key.rfind('/') + 1);
  bool up = false;
  bool down = false;
  while (!rest.empty()) {
    const auto end = std::min(rest.find_first_of("_-. "), rest.size());
    const auto word = rest.substr(0, end);
    up = up || is_one_of(higher, word);
    down = down || is_one_of(lower, word);
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  if (up == down) return std::nullopt;
  return up;
}

bool higher_is_better(better direction, std::string_view key, std::string_view option) {
  if (direction != better::automatic) return direction == better::higher;
  if (const auto known = known_higher_is_better(key)) return *known;
  throw option_error(std::string(option), fmt::format("automatic for '{}', whose name does not tell it", key),
                     "better::higher or better::lower");
}

}  // namespace rondo

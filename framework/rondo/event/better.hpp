#pragma once

#include <optional>
#include <string_view>

namespace rondo {

/// Which direction of a number is better.
enum class better { automatic, lower, higher };

/// What `automatic` means for the observation `key`, by the words of its last part ("validation/top5_accuracy"):
/// accuracy, auc, f1, precision, recall and r2 are better when higher; loss, error, perplexity, mse, rmse, mae and nll
/// when lower. Nothing where no word is known, or words contradict each other.
[[nodiscard]] std::optional<bool> known_higher_is_better(std::string_view key);

/// Throws `option_error` naming `option` for an `automatic` that nothing is known of.
[[nodiscard]] bool higher_is_better(better direction, std::string_view key, std::string_view option);

}  // namespace rondo

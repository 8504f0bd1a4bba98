#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "rondo/event/trigger.hpp"

namespace rondo {

/// A number of iterations: `100_iterations`.
struct iterations {
  std::int64_t count;
};

/// A number of epochs as an exact decimal fraction: `1_epochs`, `0.29_epochs`, `epochs(0.5)`.
class epochs {
 public:
  template <std::integral I>
  explicit epochs(I whole) : numerator_(static_cast<std::int64_t>(whole)) {}
  /// Takes the shortest decimal that prints as `value`, so that 0.29 means 29/100 and not the nearest binary fraction.
  explicit epochs(double value);
  /// `text` is a decimal literal such as "0.29". Throws `option_error` for anything else.
  explicit epochs(std::string_view text);

  [[nodiscard]] std::int64_t numerator() const noexcept { return numerator_; }
  [[nodiscard]] std::int64_t denominator() const noexcept { return denominator_; }
  [[nodiscard]] bool whole() const noexcept { return denominator_ == 1; }
  [[nodiscard]] std::string str() const;

 private:
  std::int64_t numerator_ = 0;
  std::int64_t denominator_ = 1;
};

inline namespace literals {
[[nodiscard]] constexpr iterations operator""_iterations(unsigned long long n) {
  return {static_cast<std::int64_t>(n)};
}
[[nodiscard]] inline epochs operator""_epochs(const char* text) { return epochs(std::string_view(text)); }
}  // namespace literals

/// A distance in training time.
using period = std::variant<iterations, epochs>;

/// "100 iterations", "0.5 epochs".
[[nodiscard]] std::string str(const period& p);

/// The inverse, in the short form that command lines use: "100it", "2ep", "0.5ep" (also "100 iterations", "2 epochs").
/// Throws `option_error` naming `option`.
[[nodiscard]] period parse_period(std::string_view option, std::string_view text);

/// Fires whenever training passes a multiple of `p`, never at iteration 0. Stateless. A fractional epoch is computed in
/// integers: `every(0.29_epochs)` with 100 iterations per epoch fires at 29, 58, 87, 116, …; where a multiple falls
/// between two iterations, the later one fires.
///
/// Throws `option_error` when `p` is not positive, and, when asked, if `p` is a fraction of epochs and the number of
/// iterations per epoch is unknown (ranges without a size; whole epochs work there).
[[nodiscard]] trigger every(period p);
[[nodiscard]] inline trigger every(iterations n) { return every(period(n)); }
[[nodiscard]] inline trigger every(epochs n) { return every(period(n)); }

/// Fires at each of the given points once, by the same arithmetic: `rondo::at({10_iterations, 2_epochs})`. Stateless.
/// Throws `option_error` when the list is empty or a point is not positive. (Qualified even under `using namespace
/// rondo`, because LibTorch has a namespace `at`.)
[[nodiscard]] trigger at(std::vector<period> points);

}  // namespace rondo

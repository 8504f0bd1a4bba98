#include "rondo/event/interval.hpp"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <numeric>

namespace rondo {

namespace {

using wide = __int128;  // products of iterations, epochs and denominators

/// Floor of (iterations since the beginning, measured in `per`), where epoch fractions are counted in whole numbers.
std::int64_t multiples_passed(const epochs& per, std::int64_t epoch_index, std::int64_t in_epoch, std::int64_t length) {
  const wide done = static_cast<wide>(epoch_index) * length + in_epoch;
  return static_cast<std::int64_t>(done * per.denominator() / (static_cast<wide>(per.numerator()) * length));
}

std::int64_t known_length(const epochs& p, const moment& now) {
  if (now.epoch_length) return *now.epoch_length;
  throw option_error("trigger", p.str() + " epochs",
                     "a whole number of epochs, as long as the number of iterations per epoch is unknown "
                     "(give the batches a size, or count in iterations)");
}

/// Whether the last iteration carried training over a multiple of `p`.
bool passed_multiple(const iterations& p, const moment& now) {
  return now.iteration > 0 && now.iteration % p.count == 0;
}

bool passed_multiple(const epochs& p, const moment& now) {
  if (now.iteration_in_epoch == 0) return false;
  if (p.whole()) return now.epoch_end && now.epoch() % p.numerator() == 0;
  const auto length = known_length(p, now);
  return multiples_passed(p, now.epoch_index, now.iteration_in_epoch, length) >
         multiples_passed(p, now.epoch_index, now.iteration_in_epoch - 1, length);
}

/// Whether the last iteration was the one that reached `p`.
bool reached(const iterations& p, const moment& now) { return now.iteration == p.count; }

bool reached(const epochs& p, const moment& now) {
  if (now.iteration_in_epoch == 0) return false;
  if (p.whole()) return now.epoch_end && now.epoch() == p.numerator();
  const auto length = known_length(p, now);
  return multiples_passed(p, now.epoch_index, now.iteration_in_epoch, length) >= 1 &&
         multiples_passed(p, now.epoch_index, now.iteration_in_epoch - 1, length) == 0;
}

void require_positive(const char* option, const period& p) {
  const bool positive =
      std::holds_alternative<iterations>(p) ? std::get<iterations>(p).count > 0 : std::get<epochs>(p).numerator() > 0;
  if (!positive) throw option_error(option, str(p), "more than 0 iterations or epochs");
}

struct every_iterations {
  iterations p;
  bool due(const moment& now) const { return passed_multiple(p, now); }
  bool holds(const moment& now) const { return passed_multiple(p, now); }
  std::string str() const { return fmt::format("every {} iterations", p.count); }
  bool same_on_all_ranks() const { return true; }
};

struct every_epochs {
  epochs p;
  bool due(const moment& now) const { return passed_multiple(p, now); }
  bool holds(const moment& now) const { return passed_multiple(p, now); }
  std::string str() const { return fmt::format("every {} epochs", p.str()); }
  bool same_on_all_ranks() const { return true; }
};

struct at_points {
  bool same_on_all_ranks() const { return true; }
  bool holds(const moment& now) const { return due(now); }
  std::vector<period> points;

  bool due(const moment& now) const {
    for (const auto& point : points)
      if (std::visit([&](const auto& p) { return reached(p, now); }, point)) return true;
    return false;
  }
  std::string str() const {
    std::string text;
    for (const auto& point : points) text += (text.empty() ? "at " : ", ") + rondo::str(point);
    return text;
  }
};

}  // namespace

epochs::epochs(double value)
    : epochs(std::string_view(std::isfinite(value) ? fmt::format("{}", value) : "not finite")) {}

epochs::epochs(std::string_view text) {
  const auto reject = [&] {
    return option_error("epochs", std::string(text), "a decimal number such as 1, 0.5 or 0.29, of at most 15 digits");
  };
  std::int64_t digits = 0;
  std::int64_t scale = 1;
  int count = 0;
  bool fraction = false;
  const bool negative = text.starts_with('-');
  for (const char c : text.substr(negative ? 1 : 0)) {
    if (c == '\'') continue;  // digit separator of a literal
    if (c == '.' && !fraction) {
      fraction = true;
      continue;
    }
    if (c < '0' || c > '9' || ++count > 15) throw reject();
    digits = digits * 10 + (c - '0');
    if (fraction) scale *= 10;
  }
  if (count == 0) throw reject();
  const auto divisor = std::gcd(digits, scale);
  numerator_ = (negative ? -digits : digits) / divisor;
  denominator_ = scale / divisor;
}

std::string epochs::str() const {
  if (whole()) return fmt::format("{}", numerator_);
  return fmt::format("{}", static_cast<double>(numerator_) / static_cast<double>(denominator_));
}

std::string str(const period& p) {
  if (const auto* n = std::get_if<iterations>(&p)) return fmt::format("{} iterations", n->count);
  return std::get<epochs>(p).str() + " epochs";
}

period parse_period(std::string_view option, std::string_view text) {
  const auto reject = [&] {
    return option_error(std::string(option), std::string(text),
                        "a positive number of iterations or epochs, such as 100it, 2ep or 0.5ep");
  };
  const auto split = text.find_first_not_of("0123456789.");
  if (split == std::string_view::npos || split == 0) throw reject();
  const auto number = text.substr(0, split);
  auto unit = text.substr(split);
  if (unit.starts_with(' ')) unit.remove_prefix(1);
  if (unit == "ep" || unit == "epoch" || unit == "epochs") {
    try {
      const epochs parsed(number);
      if (parsed.numerator() > 0) return parsed;
    } catch (const option_error&) {  // named after the caller's option below
    }
    throw reject();
  }
  std::int64_t count = 0;
  const auto [end, failed] = std::from_chars(number.data(), number.data() + number.size(), count);
  const bool whole = failed == std::errc() && end == number.data() + number.size() && count > 0;
  if (whole && (unit == "it" || unit == "iteration" || unit == "iterations")) return iterations{count};
  throw reject();
}

trigger every(period p) {
  require_positive("every", p);
  if (const auto* n = std::get_if<iterations>(&p)) return every_iterations{*n};
  return every_epochs{std::get<epochs>(p)};
}

trigger at(std::vector<period> points) {
  if (points.empty()) throw option_error("at", "no points", "at least one number of iterations or epochs");
  for (const auto& point : points) require_positive("at", point);
  return at_points{std::move(points)};
}

}  // namespace rondo

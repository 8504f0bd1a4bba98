#include "rondo/event/interval_mean.hpp"

#include <fmt/format.h>

#include <utility>

#include "rondo/report/observations.hpp"

namespace rondo {

std::optional<double> interval_mean::next(const moment& now) {
  bool due = check_.due(now);
  if (now.ranks != nullptr && !check_.same_on_all_ranks()) due = now.ranks->first_says(due);
  if (now.observed != nullptr)
    if (const auto* value = now.observed->find(key_)) {
      summary_.add(value->value(), value->weight());
      weightless_ = weightless_ || value->weight() == 0.0;
    }
  if (!due) return std::nullopt;
  if (now.ranks != nullptr) summary_ = now.ranks->joined(summary_);
  if (summary_.empty() && std::exchange(weightless_, false)) return std::nullopt;
  if (summary_.empty()) throw_nothing_reported(now);
  weightless_ = false;
  const double mean = summary_.mean();
  summary_ = summary();
  return mean;
}

void interval_mean::throw_nothing_reported(const moment& now) const {
  std::string known;
  if (now.observed != nullptr)
    now.observed->for_each([&](const std::string& k, const observation&) { known += (known.empty() ? "" : ", ") + k; });
  throw observation_error(
      key_, fmt::format("has not been reported when {} looked at it ({}): look less often, by `check`, such as "
                        "every(1_epochs) for what an evaluator reports then; in this iteration there are: {}",
                        who_, check_.str(), known.empty() ? "none" : known));
}

state::value interval_mean::state_dict() const {
  return state::dict{{"key", key_}, {"check", check_.state_dict()}, {"summary", summary_.state_dict()}};
}

void interval_mean::load_state_dict(const state::value& state) {
  const auto* const key = state.as<state::dict>().find("key");
  if (key != nullptr && key->as<std::string>() != key_)
    throw state_error("key", "is '" + key->as<std::string>() + "', here '" + key_ + "' is watched");
  check_.load_state_dict(state.at("check"));
  summary_.load_state_dict(state.at("summary"));
}

}  // namespace rondo

#include "rondo/event/interval_mean.hpp"

#include "rondo/report/observations.hpp"

namespace rondo {

std::optional<double> interval_mean::next(const moment& now) {
  bool due = check_.due(now);
  if (now.ranks != nullptr && !check_.same_on_all_ranks()) due = now.ranks->first_says(due);
  if (now.observed != nullptr)
    if (const auto* value = now.observed->find(key_)) summary_.add(value->value(), value->weight());
  if (!due) return std::nullopt;
  if (now.ranks != nullptr) summary_ = now.ranks->joined(summary_);
  if (summary_.empty()) {
    // Nothing to average: `at` names the key and lists what there is.
    if (now.observed == nullptr) throw observation_error(key_, "has not been reported");
    static_cast<void>(now.observed->at(key_));
  }
  const double mean = summary_.mean();
  summary_ = summary();
  return mean;
}

state::value interval_mean::state_dict() const {
  return state::dict{{"check", check_.state_dict()}, {"summary", summary_.state_dict()}};
}

void interval_mean::load_state_dict(const state::value& state) {
  check_.load_state_dict(state.at("check"));
  summary_.load_state_dict(state.at("summary"));
}

}  // namespace rondo

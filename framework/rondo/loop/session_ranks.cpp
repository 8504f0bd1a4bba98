// What a run does together with other ranks.

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "rondo/loop/session.hpp"
#include "rondo/report/summary.hpp"

namespace rondo::detail {

namespace {

/// One rank's part of the agreement at the end of an iteration.
struct report_of_rank {
  bool snapshot = false;
  std::optional<int> signal;
  std::optional<std::string> stop;
};

std::string encode(const report_of_rank& r) {
  const nlohmann::json parts = {r.snapshot, r.signal.value_or(0), r.stop.has_value(), r.stop.value_or("")};
  return parts.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

report_of_rank decode(const std::string& text) {
  const auto parts = nlohmann::json::parse(text);
  report_of_rank r;
  r.snapshot = parts.at(0).get<bool>();
  if (const int number = parts.at(1).get<int>(); number != 0) r.signal = number;
  if (parts.at(2).get<bool>()) r.stop = parts.at(3).get<std::string>();
  return r;
}

/// For triggers.
class group_link final : public rank_link {
 public:
  explicit group_link(const distributed::rank_group& group) : group_(group.channel("triggers")) {}

  [[nodiscard]] bool first_says(bool mine) const override { return group_.first_says(mine); }
  [[nodiscard]] summary joined(const summary& mine) const override {
    return summary::unpack(group_.merge_now(mine.pack(), join));
  }

 private:
  static std::string join(const std::vector<std::string>& all) {
    summary whole;
    for (const auto& one : all) whole.merge(summary::unpack(one));
    return whole.pack();
  }

  distributed::rank_group group_;
};

}  // namespace

bool session::first_says(bool mine) const { return options.group.first_says(mine); }

task<> session::begin_together() {
  rank_link_ = std::make_unique<group_link>(options.group);
  now.ranks = rank_link_.get();
  for (const auto& m : models)
    parallel_.push_back(std::make_unique<distributed::data_parallel>(m.module, options.group, options.data_parallel));
  for (const auto& model : parallel_) co_await model->broadcast_state();
  for (const auto& model : parallel_) model->resume_window(restored_samples_);
  if (options.accumulate_by_weight) window_weight_ = static_cast<double>(restored_samples_.value_or(0));
}

/// Before anything that waits for the other ranks, which might be elsewhere.
void session::require_same_place() const {
  const auto end = now.epoch_end ? " and of an epoch (all ranks need the same number of batches, which "
                                   "data::distributed gives them)"
                                 : "";
  options.group.require_same(fmt::format("the end of iteration {}{}", now.iteration, end));
}

task<> session::agree_on_requests() {
  // What is asked for while the others are awaited belongs to the next exchange.
  const requests told = std::exchange(requested_, {});
  const bool wanted = std::exchange(snapshot_wanted, false);
  const report_of_rank mine{wanted || told.snapshot, told.signal, told.stop};
  const auto texts = co_await options.group.all_gather(encode(mine));
  std::vector<report_of_rank> all;
  for (const auto& text : texts) all.push_back(decode(text));
  requested_.snapshot |= std::exchange(snapshot_wanted, false);
  for (const auto& one : all) {
    snapshot_wanted |= one.snapshot;
    if (!signal) signal = one.signal;
    if (!stop_reason && one.stop) {
      stop_reason = one.stop;
      stopped_by_signal_ = one.signal.has_value();
    }
  }
}

}  // namespace rondo::detail

#include "rondo/distributed/two_phase_commit.hpp"

#include <nlohmann/json.hpp>
#include <utility>

#include "rondo/error.hpp"

namespace rondo::distributed {

namespace {

using json = nlohmann::json;

std::string encode(const commit_report& report) {
  const json parts = {static_cast<int>(report.state), report.rank,
                      json::binary({report.text.begin(), report.text.end()})};
  const auto bytes = json::to_cbor(parts);
  return {bytes.begin(), bytes.end()};
}

commit_report decode(const std::string& text) {
  const auto parts = json::from_cbor(text);
  const auto& bytes = parts.at(2).get_binary();
  return {static_cast<commit_state>(parts.at(0).get<int>()), {bytes.begin(), bytes.end()}, parts.at(1).get<int>()};
}

/// The first report of those that count most.
commit_report joined(const std::vector<commit_report>& all) {
  commit_report worst;
  for (const auto& one : all)
    if (one.state > worst.state) worst = one;
  return worst;
}

task<commit_report> decide(int coordinator, std::vector<commit_report> all,
                           std::function<task<>(std::vector<std::string> texts)> make_whole) {
  auto verdict = joined(all);
  if (verdict.state != commit_state::durable) co_return verdict;
  verdict.rank = coordinator;
  std::vector<std::string> texts;
  for (auto& one : all) texts.push_back(std::move(one.text));
  try {
    auto making = make_whole(std::move(texts));
    co_await std::move(making);
  } catch (...) {
    verdict.state = commit_state::failed;
    verdict.text = message_of(std::current_exception());
  }
  co_return verdict;
}

}  // namespace

task<commit_report> two_phase_commit(rank_group channel, int coordinator, commit_report mine,
                                     std::function<task<>(std::vector<std::string> texts)> make_whole) {
  mine.rank = channel.rank();
  const auto votes = co_await channel.gather(encode(mine), coordinator);
  std::string told;
  if (channel.rank() == coordinator) {
    std::vector<commit_report> all;
    for (const auto& vote : votes) all.push_back(decode(vote));
    auto deciding = decide(coordinator, std::move(all), std::move(make_whole));
    const auto verdict = co_await std::move(deciding);
    told = encode(verdict);
  }
  const auto verdict = co_await channel.broadcast(std::move(told), coordinator);
  co_return decode(verdict);
}

}  // namespace rondo::distributed

#include "rondo/extensions/snapshot/ranks.hpp"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "rondo/distributed/two_phase_commit.hpp"
#include "rondo/extensions/snapshot/sharded_directory.hpp"
#include "rondo/extensions/snapshot/snapshot.hpp"
#include "rondo/extensions/snapshot/taker.hpp"
#include "rondo/log.hpp"
#include "rondo/state/random.hpp"

namespace rondo::extensions {

namespace {

using json = nlohmann::json;

// So many snapshots can be on their way without being mixed up.
constexpr std::int64_t channels = 1024;

std::string to_text(const json& message) {
  const auto bytes = json::to_cbor(message);
  return {bytes.begin(), bytes.end()};
}

json from_text(const std::string& text) { return json::from_cbor(text); }

json to_json(const at::Tensor& bytes) {
  const auto* data = bytes.data_ptr<std::uint8_t>();
  return json::binary({data, data + bytes.numel()});
}

at::Tensor to_tensor(const json& bytes) {
  const auto& data = bytes.get_binary();
  auto tensor = at::empty(static_cast<std::int64_t>(data.size()), at::kByte);
  std::memcpy(tensor.data_ptr(), data.data(), data.size());
  return tensor;
}

/// The generators' states: that of the CPU, then those of the devices.
json to_json(const state::value& random) {
  json all = json::array({to_json(random.get<at::Tensor>("cpu"))});
  if (const auto* devices = random.as<state::dict>().find("cuda"))
    for (const auto& one : devices->as<state::list>()) all.push_back(to_json(one.as<at::Tensor>()));
  return all;
}

state::dict to_random_state(const json& all) {
  state::dict random{{"cpu", to_tensor(all.at(0))}};
  state::list devices;
  for (std::size_t i = 1; i < all.size(); ++i) devices.emplace_back(to_tensor(all.at(i)));
  if (!devices.empty()) random.insert_or_assign("cuda", std::move(devices));
  return random;
}

std::string those_elsewhere(const std::vector<json>& all, std::int64_t iteration) {
  std::vector<std::string> elsewhere;
  for (std::size_t rank = 0; rank < all.size(); ++rank)
    if (const auto there = all[rank].at("iteration").get<std::int64_t>(); there != iteration)
      elsewhere.push_back(fmt::format("rank {} is at iteration {}", rank, there));
  return fmt::format("{}", fmt::join(elsewhere, ", "));
}

}  // namespace

snapshot_ranks::snapshot_ranks(const distributed::rank_group& group, const std::string& name, int saver_rank,
                               bool sharded)
    : group_(group.channel(name)), name_(name), saver_rank_(saver_rank), sharded_(sharded) {}

task<bool> snapshot_ranks::saver_says(bool mine) {
  std::string text = mine ? "1" : "0";
  const auto answer = co_await group_.broadcast(std::move(text), saver_rank_);
  co_return answer == "1";
}

distributed::rank_group snapshot_ranks::channel_of(const snapshot_progress& p) const {
  return group_.channel(fmt::format("{}", p.number % channels));
}

task<> snapshot_ranks::begin(snapshot_progress& p, const std::exception_ptr& objection, bool in_parts) {
  p.number = begun_++;
  p.begun_by_all = true;
  const auto channel = channel_of(p);
  json mine;
  mine["iteration"] = p.order.info.iteration;
  mine["objection"] = objection ? message_of(objection) : "";
  mine["in_parts"] = in_parts;
  mine["random"] = to_json(state::value(state::random_state()));
  const auto texts = co_await channel.gather(to_text(mine), saver_rank_);
  json verdict;
  std::string text;
  if (saves()) {
    verdict["objection"] = judge(p, texts);
    verdict["attempt"] = p.attempt;
    text = to_text(verdict);
  }
  const auto told = co_await channel.broadcast(std::move(text), saver_rank_);
  verdict = from_text(told);
  p.attempt = verdict.at("attempt").get<std::string>();
  const auto against = verdict.at("objection").get<std::string>();
  if (against.empty()) co_return;
  p.begun_by_all = false;
  throw snapshot_error(
      fmt::format("no snapshot '{}' of iteration {}: {}", p.order.path.string(), p.order.info.iteration, against));
}

/// On the saver: what is against the snapshot, or nothing.
std::string snapshot_ranks::judge(snapshot_progress& p, const std::vector<std::string>& texts) const {
  std::vector<json> all;
  for (const auto& text : texts) all.push_back(from_text(text));
  const auto elsewhere = those_elsewhere(all, p.order.info.iteration);
  if (!elsewhere.empty()) return elsewhere + "; all ranks must take it together";
  for (std::size_t rank = 0; rank < all.size(); ++rank)
    if (const auto objection = all[rank].at("objection").get<std::string>(); !objection.empty())
      return fmt::format("rank {} has failed: {}", rank, objection);
  for (std::size_t rank = 1; rank < all.size(); ++rank)
    if (all[rank].at("in_parts") != all[0].at("in_parts"))
      return fmt::format("of rank 0 and rank {} one has sharded tensors in its state, and one has not", rank);
  for (const auto& one : all) p.random_states.emplace_back(to_random_state(one.at("random")));
  if (!sharded_) return "";
  try {
    p.attempt = begin_attempt(p.order.path);
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

task<> snapshot_ranks::commit(snapshot_progress& p,
                              std::function<task<>(std::vector<std::string> receipts)> make_whole) {
  using distributed::commit_state;
  distributed::commit_report mine{commit_state::durable, std::move(p.part_receipt)};
  if (p.error)
    mine = {commit_state::failed, message_of(p.error)};
  else if (p.skipped)
    mine = {commit_state::left_out, *p.skipped};
  // What has been thrown here is not replaced by its message.
  auto make = [&p, &make_whole](std::vector<std::string> receipts) -> task<> {
    try {
      auto making = make_whole(std::move(receipts));
      co_await std::move(making);
    } catch (...) {
      p.error = std::current_exception();
      throw;
    }
  };
  auto committing = distributed::two_phase_commit(channel_of(p), saver_rank_, std::move(mine), make);
  const auto whole = co_await std::move(committing);
  if (whole.state == commit_state::failed) {
    p.skipped.reset();
    if (!p.error)
      p.error = std::make_exception_ptr(
          snapshot_error(fmt::format("rank {} could not save its part of '{}', or not make the parts one snapshot: {}",
                                     whole.rank, p.order.path.string(), whole.text)));
  } else if (whole.state == commit_state::left_out && !p.skipped) {
    p.skipped = fmt::format("rank {}: {}", whole.rank, whole.text);
  }
}

task<> snapshot_ranks::end(snapshot_progress& p) {
  const auto channel = channel_of(p);
  json outcome;
  std::string text;
  if (saves()) {
    outcome["error"] = p.error ? message_of(p.error) : "";
    outcome["skipped"] = p.skipped.value_or("");
    outcome["bytes"] = p.receipt.bytes;
    outcome["seconds"] = {p.receipt.write_seconds, p.receipt.sync_seconds, p.receipt.commit_seconds};
    text = to_text(outcome);
  }
  const auto told = co_await channel.broadcast(std::move(text), saver_rank_);
  if (saves()) co_return;
  outcome = from_text(told);
  const auto error = outcome.at("error").get<std::string>();
  if (!error.empty() && !p.error)
    p.error = std::make_exception_ptr(
        snapshot_error(fmt::format("rank {} could not save '{}': {}", saver_rank_, p.order.path.string(), error)));
  const auto skipped = outcome.at("skipped").get<std::string>();
  if (!skipped.empty() && !p.skipped) p.skipped = skipped;
  p.receipt.target = p.order.path;
  p.receipt.bytes = outcome.at("bytes").get<std::uint64_t>();
  p.receipt.write_seconds = outcome.at("seconds").at(0).get<double>();
  p.receipt.sync_seconds = outcome.at("seconds").at(1).get<double>();
  p.receipt.commit_seconds = outcome.at("seconds").at(2).get<double>();
}

task<std::vector<std::string>> snapshot_ranks::share(const std::vector<std::string>& of_saver) {
  std::string text;
  if (saves()) text = to_text(of_saver);
  const auto told = co_await group_.broadcast(std::move(text), saver_rank_);
  co_return from_text(told).get<std::vector<std::string>>();
}

task<std::string> snapshot_ranks::objections(const std::string& mine) {
  const auto all = co_await group_.all_gather(mine);
  std::string text;
  for (std::size_t rank = 0; rank < all.size(); ++rank)
    if (!all[rank].empty()) text += fmt::format("{}rank {}: {}", text.empty() ? "" : "; ", rank, all[rank]);
  co_return text;
}

state::value state_of_rank(state::value state, int rank, int world_size) {
  auto* const root = state.get_if<state::dict>();
  auto* const ours = root != nullptr ? root->find("rondo") : nullptr;
  if (ours == nullptr) return state;
  auto& parts = ours->as<state::dict>();
  const auto* const ranks = parts.find("ranks");
  const std::size_t saved_by = ranks != nullptr ? ranks->as<state::list>().size() : 1;
  if (saved_by != static_cast<std::size_t>(world_size)) {
    if (rank == 0)
      log::warn(
          fmt::format("the snapshot was taken by {} ranks, now there are {}: random numbers, and the share of the data "
                      "that each rank gets, are others from here on",
                      saved_by, world_size));
  } else if (ranks != nullptr) {
    auto random = ranks->as<state::list>()[static_cast<std::size_t>(rank)].at("random");
    parts.insert_or_assign("random", std::move(random));
  }
  return state;
}

}  // namespace rondo::extensions

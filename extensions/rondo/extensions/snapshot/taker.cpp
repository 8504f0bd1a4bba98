#include "rondo/extensions/snapshot/taker.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <asio/post.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>
#include <utility>

#include "rondo/async/trace.hpp"
#include "rondo/checkpoint/image.hpp"
#include "rondo/checkpoint/reader.hpp"
#include "rondo/checkpoint/verify.hpp"
#include "rondo/distributed/consolidate.hpp"
#include "rondo/extensions/snapshot/sharded_directory.hpp"
#include "rondo/extensions/snapshot/sharding.hpp"
#include "rondo/log.hpp"
#include "rondo/state/optimizer.hpp"
#include "rondo/writing/register_savefun.hpp"

namespace rondo::extensions {

namespace {

using clock = std::chrono::steady_clock;

const trace::label& snapshot_span = trace::intern("snapshot", "snapshot", "", "iteration");
const trace::label& plan_span = trace::intern("plan", "snapshot");
const trace::label& capture_span = trace::intern("capture", "snapshot");
const trace::label& copy_span = trace::intern("copy", "snapshot");
const trace::label& write_span = trace::intern("write", "snapshot");
const trace::label& verify_span = trace::intern("verify", "snapshot");

double seconds_since(clock::time_point start) { return std::chrono::duration<double>(clock::now() - start).count(); }

bool all_on_cpu(const std::vector<checkpoint::described_storage>& storages) {
  return std::ranges::all_of(storages, [](const auto& storage) { return storage.tensor.device().is_cpu(); });
}

state::value ranks_part(const state::list& random_states) {
  state::list ranks;
  for (const auto& random : random_states) ranks.emplace_back(state::dict{{"random", random}});
  return ranks;
}

/// Each rank has its own.
state::value without_random_state(const state::value& loop) {
  state::dict root = loop.as<state::dict>();
  state::dict ours;
  for (const auto& [key, item] : root["rondo"].as<state::dict>())
    if (key != state::key("random")) ours.insert_or_assign(key, item);
  root.insert_or_assign("rondo", std::move(ours));
  return root;
}

/// The tree of the file "complete" of a snapshot that `saver` saves, for a loop or for objects of the user's own.
state::value index_tree(const snapshot_progress& p, const std::vector<std::string>& receipts, std::size_t saver,
                        bool whole_loop) {
  auto tree = index_of(p.outline, receipts);
  auto& root = tree.as<state::dict>();
  if (root.find("rondo") == nullptr) root.insert_or_assign("rondo", state::dict());
  auto& ours = root["rondo"].as<state::dict>();
  if (whole_loop) {
    ours.insert_or_assign("random", p.random_states[saver]);
    ours.insert_or_assign("ranks", ranks_part(p.random_states));
  }
  ours.insert_or_assign("sharded", state::dict{{"attempt", number_of_attempt(p.attempt)},
                                               {"world_size", static_cast<std::int64_t>(receipts.size())}});
  return tree;
}

}  // namespace

task<> snapshot_taker::take(snapshot_order order) {
  const auto p = std::make_shared<snapshot_progress>(std::move(order));
  p->span = trace::span::apart(snapshot_span, p->order.info.iteration);
  p->counted = unfinished_.join();
  p->own = p->unfinished.join();
  co_await begin(p);
  if (p->in_background) {
    p->stall_seconds += seconds_since(p->started);
  } else {
    co_await conclude(p);
  }
  if (!p->order.awaited) co_return;
  co_await p->unfinished.empty();
  if (p->error) std::rethrow_exception(p->error);
  if (p->skipped) throw writing::write_superseded(*p->skipped);
}

void snapshot_taker::prepare() {
  auto* const memory = settings_.writer->memory();
  const bool another_saves = settings_.ranks && !settings_.ranks->sharded() && !settings_.ranks->saves();
  if (memory == nullptr || bytes_ > 0 || another_saves || preparing_failed_) return;
  try {
    plan(std::make_shared<snapshot_progress>(snapshot_order()));
  } catch (const std::exception& e) {
    preparing_failed_ = true;  // and is not tried in every iteration
    log::warn(fmt::format("'{}': no memory is prepared for snapshots, and the first one may fail: {}", ctx_.name(),
                          e.what()));
    return;
  }
  planner_.release();
  ctx_.spawn([this, memory]() -> task<> { co_await memory->prepare(bytes_); });
}

/// Everything up to the point where training may go on.
task<> snapshot_taker::begin(progress p) {
  try {
    co_await come_together(p);
    if (!saver_is_elsewhere(p)) co_await save(p);
  } catch (...) {
    p->error = std::current_exception();
  }
  if (p->in_background) co_return;
  const bool training_goes_on = settings_.writer->memory() != nullptr;
  if (p->begun_by_all && training_goes_on) {
    go_on_without_it(p);
    co_return;
  }
  give_back(p);
  co_await tell_ranks(p);
}

/// All ranks begin, or none does. What goes wrong before is not thrown before the others know: they would wait.
task<> snapshot_taker::come_together(progress p) {
  const bool together = settings_.ranks && !p->order.alone;
  std::exception_ptr objection;
  state::value state;
  try {
    auto rest = ctx_.emit<event::snapshot_started>(p->order.path, p->order.info.iteration, p->order.alone);
    if (rest) co_await std::move(*rest);
    if (together && !is_sharded(p)) state = settings_.collect();
  } catch (...) {
    objection = std::current_exception();
  }
  if (together) {
    // For one file, a state of which each rank has a part only is gathered, while all ranks are here.
    const bool in_parts = !objection && !is_sharded(p) && has_sharded(state);
    std::exception_ptr refused;
    try {
      co_await settings_.ranks->begin(*p, objection, in_parts);
    } catch (...) {
      refused = std::current_exception();
    }
    if (refused && !objection) std::rethrow_exception(refused);
    const auto& group = settings_.ranks->group();
    if (in_parts && !objection) p->whole = co_await distributed::consolidate(std::move(state), group);
  }
  if (objection) std::rethrow_exception(objection);
}

bool snapshot_taker::saver_is_elsewhere(const progress& p) const {
  return settings_.ranks && !p->order.alone && !settings_.ranks->sharded() && !settings_.ranks->saves();
}

bool snapshot_taker::is_sharded(const progress& p) const {
  return settings_.ranks && !p->order.alone && settings_.ranks->sharded();
}

/// What this rank writes.
std::filesystem::path snapshot_taker::file_of(const progress& p) const {
  if (!is_sharded(p)) return p->order.path;
  return attempt_directory(p->order.path, p->attempt) / std::to_string(settings_.ranks->group().rank());
}

task<> snapshot_taker::save(progress p) {
  settings_.check(p->order.path);
  if (auto* const memory = settings_.writer->memory())
    co_await start_in_background(p, *memory);
  else if (settings_.writer->own_format() != nullptr)
    co_await write_by_name(p);
  else
    co_await write_now(p);
}

/// Another rank saves it, or this one does not: training goes on, as it does on the others, until they know of it.
void snapshot_taker::go_on_without_it(progress p) {
  p->in_background = true;
  give_back(p);
  ctx_.spawn([this, p]() -> task<> {
    co_await tell_ranks(p);
    co_await conclude(p);
  });
}

/// What has become of it. That the ranks cannot meet any more is its failure, too, unless it had one before.
task<> snapshot_taker::tell_ranks(progress p) {
  if (!std::exchange(p->begun_by_all, false)) co_return;
  try {
    if (is_sharded(p))
      co_await settle(p);
    else
      co_await settings_.ranks->end(*p);
  } catch (...) {
    if (!p->error) p->error = std::current_exception();
  }
  const bool failed = p->error || p->skipped;
  if (failed && is_sharded(p) && settings_.ranks->saves()) discard_attempt(p->order.path, p->attempt);
}

/// The second half of a sharded snapshot: when all parts are durable, the saver makes them one.
task<> snapshot_taker::settle(progress p) {
  auto make_whole = [this, p](std::vector<std::string> receipts) { return commit(p, std::move(receipts)); };
  auto committing = settings_.ranks->commit(*p, make_whole);
  co_await std::move(committing);
}

task<> snapshot_taker::commit(progress p, std::vector<std::string> receipts) {
  const auto saver = static_cast<std::size_t>(settings_.ranks->group().rank());
  auto work = [p, parts = std::move(receipts), saver, whole_loop = settings_.whole_loop] {
    require_parts(p->order.path, p->attempt, parts.size());
    complete_attempt(p->order.path, p->attempt, index_tree(*p, parts, saver, whole_loop), p->order.info);
    commit_attempt(p->order.path, p->attempt);
  };
  co_await ctx_.offload(work);
  p->outline = state::value();
}

/// What a snapshot that has ended, well or not, may no longer keep from others.
void snapshot_taker::give_back(const progress& p) {
  p->reading.leave();
  p->order.pause.leave();
  p->taken.reset();
}

task<> snapshot_taker::write_by_name(progress p) {
  p->reading = ctx_.hold_state();
  const auto state = collect(p);
  const auto& format = *settings_.writer->own_format();
  writing::write_request request(p->order.path, [&](const std::filesystem::path& temporary) {
    writing::save_by(format, p->order.path, temporary, state);
  });
  p->capture_seconds = seconds_since(p->started);
  p->receipt = co_await settings_.writer->write(std::move(request));
  p->reading.leave();
}

/// From live memory; training waits.
task<> snapshot_taker::write_now(progress p) {
  const auto mine = co_await turn_.acquire();
  const auto state = plan(p);
  p->reading = ctx_.hold_state();
  const auto& file = planner_.file();
  std::optional<capture> copied;
  if (!all_on_cpu(planner_.storages())) {
    const trace::span capturing(capture_span);
    copied.emplace(planner_, ordinary_memory(bytes_), resting_storages());
    copied->copy_rest();
  }
  p->capture_seconds = seconds_since(p->started);
  writing::write_request request(file_of(p), file.size(), [&](const writing::append_function& append) {
    if (copied)
      checkpoint::seal(copied->image().bytes(), copied->image().spots(), append);
    else
      file.write(append);
  });
  auto writing = trace::span::apart(write_span);
  p->receipt = co_await settings_.writer->write(std::move(request));
  writing.end();
  p->reading.leave();
  planner_.release();
  if (settings_.verify) co_await verify_written(p);
}

task<> snapshot_taker::start_in_background(progress p, writing::staging& memory) {
  if (bytes_ == 0) plan(p);
  auto slot = co_await room(memory, bytes_, p->order.insist);
  // Planned when there is room, because the state may have changed while there was none.
  auto state = slot ? plan(p) : state::value();
  while (slot && slot->memory().size() < bytes_) {
    slot.reset();
    slot = co_await room(memory, bytes_, p->order.insist);
    state = slot ? plan(p) : state::value();
  }
  if (!slot) {
    p->skipped =
        fmt::format("the writer '{}' has no room: earlier snapshots are still being written", settings_.writer->name());
    co_return;
  }
  trace::span capturing(capture_span);
  p->taken = std::make_shared<capture>(planner_, std::move(slot), is_sharded(p) ? *p->resting : resting(state));
  capturing.end();
  planner_.release();
  p->order.pause.leave();
  p->reading = ctx_.hold_state();
  ctx_.spawn([this, p]() -> task<> { co_await go_on(p); });
  // The copying begins before training goes on: it may be a while until training lets anybody else run.
  const executor home = co_await asio::this_coro::executor;
  while (!p->in_background) co_await asio::post(home, asio::use_awaitable);
}

task<> snapshot_taker::go_on(progress p) {
  p->in_background = true;
  try {
    co_await copy(p);
    co_await write_copy(p);
    if (settings_.verify) co_await verify_written(p);
  } catch (const writing::write_superseded& e) {
    p->skipped = e.what();
  } catch (...) {
    p->error = std::current_exception();
  }
  give_back(p);
  co_await tell_ranks(p);
  co_await conclude(p);
}

task<> snapshot_taker::copy(progress p) {
  auto job = [taken = p->taken] {
    trace::name_this_thread("copier");
    const trace::span copying(copy_span);
    taken->copy_rest();
  };
  co_await settings_.writer->memory()->copier().run(job);
  p->taken->require_unchanged();
  p->stall_seconds += p->reading.leave();
  p->capture_seconds = seconds_since(p->started);
}

task<> snapshot_taker::write_copy(progress p) {
  writing::write_request request(file_of(p), p->taken->image());
  request.replaceable = !p->order.insist;
  if (const auto* format = settings_.writer->own_format()) request.save_image = writing::saving_image(*format);
  p->taken.reset();  // the writer alone decides how long the memory is needed
  const auto writing = trace::span::apart(write_span);
  p->receipt = co_await settings_.writer->write(std::move(request));
}

task<> snapshot_taker::verify_written(progress p) {
  auto check = [file = file_of(p)] {
    const trace::span verifying(verify_span);
    checkpoint::verify(checkpoint::reader::open(file));
  };
  co_await ctx_.offload(check);
}

/// The end of a snapshot, however it went.
task<> snapshot_taker::conclude(progress p) {
  p->total_seconds = seconds_since(p->started);
  p->span.end();
  if (!p->in_background) p->stall_seconds = p->total_seconds;
  try {
    if (p->error || p->skipped)
      settings_.missing(*p);
    else
      settings_.durable(*p);
    co_await announce(p);
  } catch (...) {
    if (p->error)
      log::error(fmt::format("after the snapshot '{}' had failed, an extension threw: {}", p->order.path.string(),
                             message_of(std::current_exception())));
    else
      p->error = std::current_exception();
  }
  p->own.leave();
  p->counted.leave();
  if (p->error && !p->order.awaited) settings_.failed(*p);
}

task<> snapshot_taker::announce(progress p) {
  const auto& order = p->order;
  if (p->skipped) {
    log::warn(fmt::format("no snapshot '{}': {}", order.path.string(), *p->skipped));
    auto rest = ctx_.emit<event::snapshot_skipped>(order.path, order.info.iteration, *p->skipped);
    if (rest) co_await std::move(*rest);
    co_return;
  }
  const auto* const memory = settings_.writer->memory();
  auto rest = ctx_.emit<event::snapshot_completed>(
      order.path, order.info.iteration, settings_.writer->name(), p->receipt.bytes, p->capture_seconds,
      p->receipt.write_seconds, p->receipt.sync_seconds + p->receipt.commit_seconds, p->stall_seconds, p->total_seconds,
      memory != nullptr ? memory->peak_bytes() : std::uint64_t{0}, p->error);
  if (rest) co_await std::move(*rest);
}

/// A slot, or nullptr if this snapshot is to be skipped.
task<std::shared_ptr<writing::staging_slot>> snapshot_taker::room(writing::staging& memory, std::uint64_t bytes,
                                                                  bool insist) {
  auto policy = memory.options().full;
  if (insist && policy == writing::when_full::skip) policy = writing::when_full::wait;
  return memory.acquire(bytes, policy);
}

/// With what only the other ranks know.
state::value snapshot_taker::collect(const progress& p) {
  auto state = p->whole.is<std::monostate>() ? settings_.collect() : p->whole;
  if (!settings_.ranks || !settings_.whole_loop || p->order.alone || is_sharded(p)) return state;
  state.as<state::dict>()["rondo"].as<state::dict>().insert_or_assign("ranks", ranks_part(p->random_states));
  return state;
}

state::value snapshot_taker::plan(const progress& p) {
  const trace::span planning(plan_span);
  auto state = collect(p);
  settings_.describe(p->order.info);
  if (is_sharded(p)) state = part_of(p, state);
  planner_.plan(state, p->order.info);
  bytes_ = writing::file_image::memory_for(planner_.file().size(), planner_.file().checksum_count());
  return state;
}

/// What this rank writes of a sharded snapshot. Parameters and the state of optimizers are the same on all ranks and
/// are spread over them; of all else that of the saver counts.
state::value snapshot_taker::part_of(const progress& p, const state::value& state) {
  const auto& ranks = *settings_.ranks;
  const int rank = ranks.group().rank();
  const int world_size = ranks.group().world_size();
  const auto unchanging = resting(state);
  auto shared = with_owner(settings_.whole_loop ? without_random_state(state) : state, unchanging, ranks.saves());
  auto mine = sharer_.share_of(shared, rank, world_size, unchanging);
  p->part_receipt = std::move(mine.receipt);
  p->resting = sharer_.resting_pieces();
  if (ranks.saves()) p->outline = outline_of(shared);
  state::dict about{{"attempt", number_of_attempt(p->attempt)},
                    {"rank", std::int64_t{rank}},
                    {"world_size", std::int64_t{world_size}}};
  return state::dict{{"pieces", std::move(mine.pieces)}, {"rondo", std::move(about)}};
}

resting_storages snapshot_taker::resting(const state::value& state) const {
  resting_storages all;
  for (const auto& one : ctx_.optimizers()) {
    for (const auto& group : one.optimizer->param_groups())
      for (const auto& parameter : group.params())
        if (parameter.defined()) add_storages(parameter, all);
    if (!settings_.whole_loop) add_storages(state::optimizer_state(*one.optimizer), all);
  }
  if (settings_.whole_loop) add_storages(state.at("optimizers"), all);
  // Buffers change in the forward pass, also those that share their memory with parameters.
  for (const auto& one : ctx_.models())
    for (const auto& buffer : one.module->buffers())
      if (buffer.defined() && buffer.has_storage()) all.erase(buffer.storage().unsafeGetStorageImpl());
  return all;
}

}  // namespace rondo::extensions

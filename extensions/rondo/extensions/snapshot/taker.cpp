#include "rondo/extensions/snapshot/taker.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <asio/post.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>
#include <utility>

#include "rondo/checkpoint/image.hpp"
#include "rondo/checkpoint/reader.hpp"
#include "rondo/checkpoint/verify.hpp"
#include "rondo/log.hpp"
#include "rondo/state/optimizer.hpp"
#include "rondo/writing/simple_writer.hpp"

namespace rondo::extensions {

namespace {

using clock = std::chrono::steady_clock;

double seconds_since(clock::time_point start) { return std::chrono::duration<double>(clock::now() - start).count(); }

bool all_on_cpu(const std::vector<checkpoint::described_storage>& storages) {
  return std::ranges::all_of(storages, [](const auto& storage) { return storage.tensor.device().is_cpu(); });
}

std::string message_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "unknown exception";
  }
}

}  // namespace

task<> snapshot_taker::take(snapshot_order order) {
  const auto p = std::make_shared<snapshot_progress>(std::move(order));
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
  auto* const memory = settings_.save ? nullptr : settings_.writer->memory();
  if (memory == nullptr || bytes_ > 0) return;
  try {
    plan(std::make_shared<snapshot_progress>(snapshot_order()));
  } catch (const std::exception& e) {
    log::debug(fmt::format("no memory is prepared for snapshots: {}", e.what()));  // the snapshot itself will say so
    return;
  }
  planner_.release();
  ctx_.spawn([this, memory]() -> task<> { co_await memory->prepare(bytes_); });
}

/// Everything up to the point where training may go on.
task<> snapshot_taker::begin(progress p) {
  try {
    auto rest = ctx_.emit<event::snapshot_started>(p->order.path, p->order.info.iteration);
    if (rest) co_await std::move(*rest);
    settings_.check(p->order.path);
    auto* const memory = settings_.save ? nullptr : settings_.writer->memory();
    if (settings_.save) {
      co_await write_by_name(p);
    } else if (memory == nullptr) {
      co_await write_now(p);
    } else {
      co_await start_in_background(p, *memory);
    }
  } catch (...) {
    p->error = std::current_exception();
  }
  if (!p->in_background) give_back(p);
}

/// What a snapshot that has ended, well or not, may no longer keep from others.
void snapshot_taker::give_back(const progress& p) {
  p->reading.leave();
  p->order.pause.leave();
  p->taken.reset();
}

task<> snapshot_taker::write_by_name(progress p) {
  const auto state = settings_.collect();
  writing::write_request request(p->order.path,
                                 [&](const std::filesystem::path& temporary) { settings_.save(temporary, state); });
  p->capture_seconds = seconds_since(p->started);
  const auto by_name = writers::simple();
  p->receipt = co_await by_name->write(std::move(request));
}

/// From live memory; training waits.
task<> snapshot_taker::write_now(progress p) {
  const auto mine = co_await turn_.acquire();
  const auto state = plan(p);
  p->reading = ctx_.hold_state();
  const auto& file = planner_.file();
  std::optional<capture> copied;
  if (!all_on_cpu(planner_.storages())) {
    copied.emplace(planner_, ordinary_memory(bytes_), resting_storages());
  }
  p->capture_seconds = seconds_since(p->started);
  writing::write_request request(p->order.path, file.size(), [&](const writing::append_function& append) {
    if (copied)
      checkpoint::seal(copied->image().bytes(), copied->image().spots(), append);
    else
      file.write(append);
  });
  p->receipt = co_await settings_.writer->write(std::move(request));
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
  p->taken = std::make_shared<capture>(planner_, std::move(slot), resting(state));
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
  co_await conclude(p);
}

task<> snapshot_taker::copy(progress p) {
  auto job = [taken = p->taken] { taken->copy_rest(); };
  co_await settings_.writer->memory()->copier().run(job);
  p->taken->require_unchanged();
  p->stall_seconds += p->reading.leave();
  p->capture_seconds = seconds_since(p->started);
}

task<> snapshot_taker::write_copy(progress p) {
  writing::write_request request(p->order.path, p->taken->image());
  request.replaceable = !p->order.insist;
  p->taken.reset();  // the writer alone decides how long the memory is needed
  p->receipt = co_await settings_.writer->write(std::move(request));
}

task<> snapshot_taker::verify_written(progress p) {
  auto check = [file = p->order.path] { checkpoint::verify(checkpoint::reader::open(file)); };
  co_await ctx_.offload(check);
}

/// The end of a snapshot, however it went.
task<> snapshot_taker::conclude(progress p) {
  p->total_seconds = seconds_since(p->started);
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
  const std::string_view writer = settings_.save ? "savefun" : settings_.writer->name();
  const auto* const memory = settings_.writer->memory();
  auto rest = ctx_.emit<event::snapshot_completed>(
      order.path, order.info.iteration, writer, p->receipt.bytes, p->capture_seconds, p->receipt.write_seconds,
      p->receipt.sync_seconds + p->receipt.commit_seconds, p->stall_seconds, p->total_seconds,
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

state::value snapshot_taker::plan(const progress& p) {
  auto state = settings_.collect();
  settings_.describe(p->order.info);
  planner_.plan(state, p->order.info);
  bytes_ = writing::file_image::memory_for(planner_.file().size(), planner_.file().checksum_count());
  return state;
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

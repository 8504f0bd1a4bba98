#include "rondo/distributed/rank_group.hpp"

#include <fmt/format.h>
#include <signal.h>

#include <algorithm>
#include <asio/error.hpp>
#include <asio/system_error.hpp>
#include <asio/this_coro.hpp>
#include <functional>
#include <mutex>
#include <string>
#include <utility>

#include "rondo/async/detail/homecoming.hpp"
#include "rondo/async/detail/quiet_thread.hpp"
#include "rondo/async/offload.hpp"
#include "rondo/distributed/roll_call.hpp"
#include "rondo/distributed/tensor_backend.hpp"

namespace rondo::distributed {

/// Over as soon as the backend has finished or the group has failed; keeps the tensors for the backend. A backend knows
/// that something broke, not who did, so what it says goes to the roll call, and the group's failure is what counts.
class pending_operation::state : public std::enable_shared_from_this<state> {
 public:
  state(std::shared_ptr<roll_call> roll, int circle, std::vector<at::Tensor> tensors)
      : roll_(std::move(roll)), circle_(circle), tensors_(std::move(tensors)) {}
  ~state() {
    if (roll_) roll_->forget(this);
  }
  state(const state&) = delete;
  state& operator=(const state&) = delete;

  /// `start(finished)` begins the operation.
  template <class Start>
  void begin(Start start) {
    roll_->operation_begins();
    synchronize_ = start([self = shared_from_this()](const std::exception_ptr& failed) {
      if (failed)
        self->roll_->report(self->circle_, without_backtrace(message_of(failed)));
      else
        self->finish(nullptr);
    });
    roll_->on_failure(this, [self = weak_from_this()](std::exception_ptr failed) {
      if (const auto there = self.lock()) there->finish(std::move(failed));
    });
  }

  task<> wait() {
    if (!roll_) co_return;
    const executor home = co_await asio::this_coro::executor;
    rondo::detail::absence away(home);
    auto start = [this, way = away.way()]() noexcept {
      {
        const std::lock_guard lock(mutex_);
        if (!over_) {
          way_ = way;
          return;
        }
      }
      way->call();
    };
    co_await away.after(start);
    roll_->forget(this);
    if (failed_) std::rethrow_exception(failed_);
    if (synchronize_) synchronize_();
  }

 private:
  void finish(std::exception_ptr failed) {
    std::shared_ptr<rondo::detail::homecoming> way;
    {
      const std::lock_guard lock(mutex_);
      if (over_) return;
      over_ = true;
      failed_ = std::move(failed);
      way = std::move(way_);
    }
    roll_->operation_ends();
    if (way) way->call();
  }

  std::shared_ptr<roll_call> roll_;
  int circle_;
  std::vector<at::Tensor> tensors_;
  tensor_backend::synchronize synchronize_;
  std::mutex mutex_;
  std::shared_ptr<rondo::detail::homecoming> way_;
  std::exception_ptr failed_;
  bool over_ = false;
};

task<> pending_operation::wait() { return state_->wait(); }

namespace {

void require_positive(const char* option, std::chrono::milliseconds value) {
  if (value.count() <= 0) throw option_error(option, fmt::format("{} ms", value.count()), "a positive time");
}

void require_rank(const char* option, int rank, int world_size) {
  if (rank < 0 || rank >= world_size)
    throw option_error(option, fmt::format("{}", rank), fmt::format("a rank from 0 to {}", world_size - 1));
}

void require_contiguous(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_contiguous())
    throw option_error("tensor", tensor.defined() ? "not contiguous" : "undefined", "a contiguous tensor");
}

task<bool> says_yes(task<std::vector<std::string>> answer) {
  const auto all = co_await std::move(answer);
  co_return all.at(0) == "1";
}

task<std::int64_t> number_of(task<std::vector<std::string>> answer) {
  const auto all = co_await std::move(answer);
  co_return std::stoll(all.at(0));
}

task<std::string> first_of(task<std::vector<std::string>> answer) {
  auto all = co_await std::move(answer);
  co_return std::move(all.at(0));
}

/// `work()` on a thread of its own, to which it is left if nobody waits any more: it must own what it uses.
template <class T>
task<T> apart(std::function<T()> work) {
  const executor home = co_await asio::this_coro::executor;
  rondo::detail::absence away(home);
  const auto result = std::make_shared<rondo::detail::outcome<T>>();
  auto start = [&work, &result, way = away.way()]() noexcept {
    try {
      rondo::detail::quiet_thread([work, result, way]() mutable {
        result->run(work);
        way->call();
      }).detach();
    } catch (...) {
      result->fail(std::current_exception());
      way->call();
    }
  };
  co_await away.after(start);
  co_return result->take();
}

task<> nothing_of(task<std::vector<std::string>> answer) { static_cast<void>(co_await std::move(answer)); }

template <class T>
task<T> ready(T value) {
  co_return value;
}

task<> ready() { co_return; }

task<> wait_for(pending_operation pending) { co_await pending.wait(); }

task<std::vector<at::Tensor>> result_of(pending_operation pending, std::vector<at::Tensor> tensors) {
  co_await pending.wait();
  co_return tensors;
}

// On rank 0, which the others wait for.
task<std::string> merged(rank_group group, std::string mine, rank_group::joiner join) {
  std::vector<std::string> all;
  try {
    auto gathered = co_await group.gather(std::move(mine));
    all = std::move(gathered);
  } catch (const asio::system_error& e) {
    if (e.code() == asio::error::operation_aborted) group.leave("a merge was cancelled on rank 0");
    throw;
  }
  std::string whole = join(all);
  auto told = co_await group.broadcast(std::move(whole));
  co_return told;
}

// On the other ranks. Both parts at once, so that none is missing if the answer is given up.
task<std::vector<std::string>> give_and_meet(std::shared_ptr<roll_call> roll, meeting given, meeting met) {
  roll->give(std::move(given));
  auto answer = co_await roll->meet(std::move(met));
  co_return answer;
}

/// SIGPIPE kills a process that writes to one that is gone.
void survive_broken_pipes() {
  struct sigaction now {};
  if (::sigaction(SIGPIPE, nullptr, &now) != 0 || now.sa_handler != SIG_DFL) return;
  now.sa_handler = SIG_IGN;
  ::sigaction(SIGPIPE, &now, nullptr);
}

const char* name_of(reduce_op op) {
  switch (op) {
    case reduce_op::min:
      return "min";
    case reduce_op::max:
      return "max";
    case reduce_op::sum:
      break;
  }
  return "sum";
}

// The same words on all ranks.
std::string described(const std::string& call, const at::Tensor& tensor) {
  return fmt::format("{} of {} {}", call, tensor.numel(), c10::toString(tensor.scalar_type()));
}

}  // namespace

rank_group::rank_group() = default;

rank_group::rank_group(std::shared_ptr<roll_call> roll, std::shared_ptr<tensor_backend> tensors, launch who,
                       group_options options)
    : roll_(std::move(roll)), tensors_(std::move(tensors)), who_(std::move(who)), options_(std::move(options)) {
  require_positive("timeout", options_.timeout);
  if (roll_) survive_broken_pipes();
}

rank_group rank_group::connect(const launch& who, const group_options& options) {
  require_positive("timeout", options.timeout);
  require_positive("connect_timeout", options.connect_timeout);
  require_rank("rank", who.rank, who.world_size);
  if (who.world_size == 1) return {nullptr, nullptr, who, options};
  auto met = meet_with_c10d(who, options);
  return {std::move(met.roll), std::move(met.tensors), who, options};
}

rank_group rank_group::channel(std::string_view name) const {
  rank_group other = *this;
  other.channel_ += "/";
  other.channel_ += name;
  return other;
}

namespace {

// The others cannot do without this rank.
task<rank_group> or_end(rank_group whole, task<rank_group> splitting) {
  try {
    auto group = co_await std::move(splitting);
    co_return group;
  } catch (const asio::system_error& e) {
    if (e.code() == asio::error::operation_aborted) whole.leave("a split was cancelled");
    throw;
  }
}

}  // namespace

meeting rank_group::part_of(meeting_kind kind, std::string_view order) const {
  meeting part;
  part.circle = circle_;
  part.kind = kind;
  part.channel = channel_;
  part.channel += order;
  part.root = among_all(0);
  part.timeout = options_.timeout;
  return part;
}

int rank_group::among_all(int rank) const { return ranks_ ? ranks_->at(static_cast<std::size_t>(rank)) : rank; }

task<rank_group> rank_group::split(std::int64_t color) const {
  if (alone()) return ready(*this);
  return or_end(*this, split_off(*this, color));
}

task<rank_group> rank_group::split_off(rank_group whole, std::int64_t color) {
  auto part = whole.part_of(meeting_kind::split, ":split");
  part.mine = std::to_string(color);
  auto splitting = whole.roll_->meet(std::move(part));
  const auto told = co_await std::move(splitting);
  std::vector<int> ranks;
  for (std::size_t i = 1; i < told.size(); ++i) ranks.push_back(std::stoi(told[i]));
  const auto mine = std::ranges::find(ranks, whole.among_all(whole.rank()));

  rank_group group = whole;
  group.circle_ = std::stoi(told.at(0));
  group.channel_ += fmt::format(":group {}", group.circle_);
  group.who_.rank = static_cast<int>(mine - ranks.begin());
  group.who_.world_size = static_cast<int>(ranks.size());
  group.ranks_ = std::make_shared<const std::vector<int>>(std::move(ranks));
  // One that is alone keeps that of all, to abandon it.
  if (!group.alone()) group.tensors_ = nullptr;
  if (whole.tensors_ && !group.alone()) {
    const std::function<std::shared_ptr<tensor_backend>()> connect = [all = whole.tensors_, group] {
      return all->split(*group.roll_, fmt::format("rondo/group/{}", group.circle_), group.who_, group.options_);
    };
    auto connecting = apart(connect);
    auto tensors = co_await std::move(connecting);
    group.tensors_ = std::move(tensors);
  }
  // Whoever keeps the store must not go before all have read it.
  auto everybody = whole.part_of(meeting_kind::barrier, ":split");
  everybody.timeout = std::max(whole.options_.timeout, whole.options_.connect_timeout);
  auto connected = whole.roll_->meet(std::move(everybody));
  static_cast<void>(co_await std::move(connected));
  co_return group;
}

task<> rank_group::barrier(std::optional<std::chrono::milliseconds> timeout) const {
  if (timeout) require_positive("timeout", *timeout);
  if (alone()) return ready();
  auto part = part_of(meeting_kind::barrier);
  part.timeout = timeout.value_or(options_.timeout);
  return nothing_of(roll_->meet(std::move(part)));
}

task<bool> rank_group::agree(bool mine) const {
  if (alone()) return ready(mine);
  auto part = part_of(meeting_kind::minimum);
  part.mine = mine ? "1" : "0";
  return says_yes(roll_->meet(std::move(part)));
}

task<std::int64_t> rank_group::agree_minimum(std::int64_t mine) const {
  if (alone()) return ready(mine);
  auto part = part_of(meeting_kind::minimum);
  part.mine = std::to_string(mine);
  return number_of(roll_->meet(std::move(part)));
}

task<std::string> rank_group::broadcast(std::string mine, int root) const {
  require_rank("root", root, world_size());
  if (alone()) return ready(std::move(mine));
  auto part = part_of(meeting_kind::broadcast);
  part.root = among_all(root);
  if (rank() == root) part.mine = std::move(mine);
  return first_of(roll_->meet(std::move(part)));
}

task<std::vector<std::string>> rank_group::all_gather(std::string mine) const {
  if (alone()) return ready(std::vector<std::string>{std::move(mine)});
  auto part = part_of(meeting_kind::all_gather);
  part.mine = std::move(mine);
  return roll_->meet(std::move(part));
}

task<std::vector<std::string>> rank_group::gather(std::string mine, int root) const {
  require_rank("root", root, world_size());
  if (alone()) return ready(std::vector<std::string>{std::move(mine)});
  auto part = part_of(meeting_kind::gather);
  part.root = among_all(root);
  part.mine = std::move(mine);
  return roll_->meet(std::move(part));
}

void rank_group::require_same(std::string what) const {
  if (alone()) return;
  auto part = part_of(meeting_kind::same, "/require_same");
  part.mine = std::move(what);
  roll_->announce(std::move(part));
}

bool rank_group::first_says(bool mine) const {
  if (alone()) return mine;
  auto part = part_of(meeting_kind::broadcast, "/first_says");
  part.mine = mine ? "1" : "0";
  return roll_->meet_blocking(std::move(part)).at(0) == "1";
}

task<std::string> rank_group::merge(std::string mine, joiner join) const {
  if (rank() == 0) return merged(*this, std::move(mine), std::move(join));
  auto part = part_of(meeting_kind::gather);
  part.mine = std::move(mine);
  return first_of(give_and_meet(roll_, std::move(part), part_of(meeting_kind::broadcast)));
}

std::string rank_group::merge_now(std::string mine, const joiner& join) const {
  if (alone()) return join({std::move(mine)});
  auto part = part_of(meeting_kind::gather, "/merge_now");
  part.mine = std::move(mine);
  const auto all = roll_->meet_blocking(std::move(part));
  auto whole = part_of(meeting_kind::broadcast, "/merge_now");
  if (rank() == 0) whole.mine = join(all);
  return roll_->meet_blocking(std::move(whole)).at(0);
}

template <class Start>
pending_operation rank_group::begin(const std::string& what, std::vector<at::Tensor> tensors, Start start) const {
  if (alone()) return pending_operation(std::make_shared<pending_operation::state>(nullptr, 0, std::move(tensors)));
  if (!tensors_)
    throw option_error(
        "backend", "an object, of which there is none for a group that was split off",
        "a function that makes such objects, see rondo::distributed::over in rondo/distributed/c10d.hpp");
  auto part = part_of(meeting_kind::same);
  part.channel = circle_ == 0 ? "tensors" : fmt::format("tensors/group {}", circle_);
  part.mine = what;
  roll_->announce(std::move(part));
  auto pending = std::make_shared<pending_operation::state>(roll_, circle_, std::move(tensors));
  pending->begin(std::move(start));
  return pending_operation(std::move(pending));
}

pending_operation rank_group::start_all_reduce(at::Tensor tensor, reduce_op op) const {
  require_contiguous(tensor);
  return begin(described(fmt::format("all_reduce({})", name_of(op)), tensor), {tensor},
               [&](tensor_backend::finished then) { return tensors_->all_reduce(tensor, op, std::move(then)); });
}

task<> rank_group::all_reduce(at::Tensor tensor, reduce_op op) const {
  return wait_for(start_all_reduce(std::move(tensor), op));
}

task<> rank_group::broadcast(at::Tensor tensor, int root) const {
  require_rank("root", root, world_size());
  require_contiguous(tensor);
  return wait_for(
      begin(described(fmt::format("broadcast({})", root), tensor), {tensor},
            [&](tensor_backend::finished then) { return tensors_->broadcast(tensor, root, std::move(then)); }));
}

task<std::vector<at::Tensor>> rank_group::all_gather(at::Tensor tensor) const {
  require_contiguous(tensor);
  if (alone()) return ready(std::vector{tensor.clone()});
  std::vector<at::Tensor> all;
  for (int i = 0; i < world_size(); ++i) all.push_back(at::empty_like(tensor));
  auto kept = all;
  kept.push_back(tensor);
  auto pending = begin(described("all_gather", tensor), std::move(kept), [&](tensor_backend::finished then) {
    return tensors_->all_gather(all, tensor, std::move(then));
  });
  return result_of(std::move(pending), std::move(all));
}

void rank_group::leave(const std::string& error) const noexcept {
  if (!roll_) return;
  if (!error.empty() && tensors_) tensors_->abandon();
  roll_->leave(error, options_.timeout);
}

}  // namespace rondo::distributed

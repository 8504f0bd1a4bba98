#include "rondo/distributed/rank_group.hpp"

#include <fmt/format.h>

#include <asio/this_coro.hpp>
#include <mutex>
#include <utility>

#include "rondo/async/detail/homecoming.hpp"
#include "rondo/distributed/roll_call.hpp"
#include "rondo/distributed/tensor_backend.hpp"

namespace rondo::distributed {

namespace {

// Those who are left after an operation on tensors has failed find out here who is missing.
constexpr const char* inquest = "rondo/inquest";

}  // namespace

/// Over as soon as the backend or the group says so; keeps the tensors for the backend.
class pending_operation::state : public std::enable_shared_from_this<state> {
 public:
  state(std::shared_ptr<roll_call> roll, std::vector<at::Tensor> tensors, std::chrono::milliseconds patience)
      : roll_(std::move(roll)), tensors_(std::move(tensors)), patience_(patience) {}
  ~state() {
    if (roll_) roll_->forget(this);
  }
  state(const state&) = delete;
  state& operator=(const state&) = delete;

  /// `start(finished)` begins the operation.
  template <class Start>
  void begin(Start start) {
    synchronize_ =
        start([self = shared_from_this()](std::exception_ptr failed) { self->finish(std::move(failed), false); });
    roll_->on_failure(this, [self = weak_from_this()](std::exception_ptr failed) {
      if (const auto there = self.lock()) there->finish(std::move(failed), true);
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
    if (!failed_) {
      if (synchronize_) synchronize_();
      co_return;
    }
    if (group_failed_) std::rethrow_exception(failed_);
    co_await find_the_missing();
  }

 private:
  void finish(std::exception_ptr failed, bool by_group) {
    std::shared_ptr<rondo::detail::homecoming> way;
    {
      const std::lock_guard lock(mutex_);
      if (over_) return;
      over_ = true;
      failed_ = std::move(failed);
      group_failed_ = by_group;
      way = std::move(way_);
    }
    if (way) way->call();
  }

  /// c10d knows that something broke, not who did: whoever is alive comes to a last meeting.
  task<> find_the_missing() {
    meeting last;
    last.channel = inquest;
    last.timeout = patience_;
    co_await roll_->meet(std::move(last));
    throw rank_error(
        "an operation on tensors has failed, although all ranks are there: " + without_backtrace(message_of(failed_)),
        {});
  }

  std::shared_ptr<roll_call> roll_;
  std::vector<at::Tensor> tensors_;
  std::chrono::milliseconds patience_;
  tensor_backend::synchronize synchronize_;
  std::mutex mutex_;
  std::shared_ptr<rondo::detail::homecoming> way_;
  std::exception_ptr failed_;
  bool over_ = false;
  bool group_failed_ = false;
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

meeting part_of(meeting_kind kind, const std::string& channel, std::chrono::milliseconds timeout) {
  meeting part;
  part.kind = kind;
  part.channel = channel;
  part.timeout = timeout;
  return part;
}

task<bool> says_yes(task<std::vector<std::string>> answer) {
  const auto all = co_await std::move(answer);
  co_return all.at(0) == "1";
}

task<std::string> first_of(task<std::vector<std::string>> answer) {
  auto all = co_await std::move(answer);
  co_return std::move(all.at(0));
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

task<std::string> merged(rank_group group, std::string mine, rank_group::joiner join) {
  const auto all = co_await group.gather(std::move(mine));
  std::string whole;
  if (group.rank() == 0) whole = join(all);
  auto told = co_await group.broadcast(std::move(whole));
  co_return told;
}

}  // namespace

rank_group::rank_group() = default;

rank_group::rank_group(std::shared_ptr<roll_call> roll, std::shared_ptr<tensor_backend> tensors, launch who,
                       group_options options)
    : roll_(std::move(roll)), tensors_(std::move(tensors)), who_(std::move(who)), options_(std::move(options)) {
  require_positive("timeout", options_.timeout);
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

task<> rank_group::barrier(std::optional<std::chrono::milliseconds> timeout) const {
  if (timeout) require_positive("timeout", *timeout);
  if (!roll_) return ready();
  return nothing_of(roll_->meet(part_of(meeting_kind::barrier, channel_, timeout.value_or(options_.timeout))));
}

task<bool> rank_group::agree(bool mine) const {
  if (!roll_) return ready(mine);
  auto part = part_of(meeting_kind::agree, channel_, options_.timeout);
  part.mine = mine ? "1" : "0";
  return says_yes(roll_->meet(std::move(part)));
}

task<std::string> rank_group::broadcast(std::string mine, int root) const {
  require_rank("root", root, world_size());
  if (!roll_) return ready(std::move(mine));
  auto part = part_of(meeting_kind::broadcast, channel_, options_.timeout);
  part.root = root;
  if (rank() == root) part.mine = std::move(mine);
  return first_of(roll_->meet(std::move(part)));
}

task<std::vector<std::string>> rank_group::all_gather(std::string mine) const {
  if (!roll_) return ready(std::vector<std::string>{std::move(mine)});
  auto part = part_of(meeting_kind::all_gather, channel_, options_.timeout);
  part.mine = std::move(mine);
  return roll_->meet(std::move(part));
}

task<std::vector<std::string>> rank_group::gather(std::string mine, int root) const {
  require_rank("root", root, world_size());
  if (!roll_) return ready(std::vector<std::string>{std::move(mine)});
  auto part = part_of(meeting_kind::gather, channel_, options_.timeout);
  part.root = root;
  part.mine = std::move(mine);
  return roll_->meet(std::move(part));
}

bool rank_group::first_says(bool mine) const {
  if (!roll_) return mine;
  auto part = part_of(meeting_kind::broadcast, channel_ + "/first_says", options_.timeout);
  part.mine = mine ? "1" : "0";
  return roll_->meet_blocking(std::move(part)).at(0) == "1";
}

task<std::string> rank_group::merge(std::string mine, joiner join) const {
  return merged(*this, std::move(mine), std::move(join));
}

std::string rank_group::merge_now(std::string mine, const joiner& join) const {
  if (!roll_) return join({std::move(mine)});
  auto part = part_of(meeting_kind::gather, channel_ + "/merge_now", options_.timeout);
  part.mine = std::move(mine);
  const auto all = roll_->meet_blocking(std::move(part));
  auto whole = part_of(meeting_kind::broadcast, channel_ + "/merge_now", options_.timeout);
  if (rank() == 0) whole.mine = join(all);
  return roll_->meet_blocking(std::move(whole)).at(0);
}

pending_operation rank_group::start_all_reduce(at::Tensor tensor, reduce_op op) const {
  require_contiguous(tensor);
  auto pending = std::make_shared<pending_operation::state>(roll_, std::vector{tensor}, last_patience());
  if (roll_)
    pending->begin([&](tensor_backend::finished then) { return tensors_->all_reduce(tensor, op, std::move(then)); });
  return pending_operation(std::move(pending));
}

task<> rank_group::all_reduce(at::Tensor tensor, reduce_op op) const {
  return wait_for(start_all_reduce(std::move(tensor), op));
}

task<> rank_group::broadcast(at::Tensor tensor, int root) const {
  require_rank("root", root, world_size());
  require_contiguous(tensor);
  auto pending = std::make_shared<pending_operation::state>(roll_, std::vector{tensor}, last_patience());
  if (roll_)
    pending->begin([&](tensor_backend::finished then) { return tensors_->broadcast(tensor, root, std::move(then)); });
  return wait_for(pending_operation(std::move(pending)));
}

task<std::vector<at::Tensor>> rank_group::all_gather(at::Tensor tensor) const {
  require_contiguous(tensor);
  if (!roll_) return ready(std::vector{tensor.clone()});
  std::vector<at::Tensor> all;
  for (int i = 0; i < world_size(); ++i) all.push_back(at::empty_like(tensor));
  auto kept = all;
  kept.push_back(tensor);
  auto pending = std::make_shared<pending_operation::state>(roll_, std::move(kept), last_patience());
  pending->begin([&](tensor_backend::finished then) { return tensors_->all_gather(all, tensor, std::move(then)); });
  return result_of(pending_operation(std::move(pending)), std::move(all));
}

std::chrono::milliseconds rank_group::last_patience() const {
  return std::max(std::chrono::milliseconds(100), std::min(options_.timeout / 5, std::chrono::milliseconds(2000)));
}

void rank_group::leave(const std::string& error) const noexcept {
  if (!roll_) return;
  if (!error.empty()) tensors_->abandon();
  roll_->leave(error, options_.timeout);
}

}  // namespace rondo::distributed

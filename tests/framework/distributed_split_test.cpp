// Groups that are parts of a group.

#include <fmt/format.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>
#include <torch/types.h>

#include <asio/error.hpp>
#include <asio/system_error.hpp>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "rondo/async/scope.hpp"
#include "rondo/async/timer.hpp"
#include "rondo/distributed/rank_group.hpp"
#include "rondo/extensions.hpp"
#include "rondo/rondo.hpp"
#include "support/catch.hpp"
#include "support/ranks.hpp"
#include "support/run_task.hpp"
#include "support/temporary_directory.hpp"

namespace distributed_split_test {

using namespace rondo;
using namespace std::chrono_literals;
using distributed::rank_error;
using distributed::rank_group;
using testing::failures_on_ranks;
using testing::on_ranks;
using testing::run_task;

namespace {

/// Catch's macros belong to one thread.
void require(bool holds, const std::string& what) {
  if (!holds) throw std::logic_error(what);
}

std::size_t index_of(int rank) { return static_cast<std::size_t>(rank); }

rank_group split(const rank_group& whole, std::int64_t color) {
  rank_group part;
  run_task([&]() -> task<> { part = co_await whole.split(color); });
  return part;
}

std::string message_of(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& e) {
    return e.what();
  }
}

std::vector<int> named_by(const std::exception_ptr& failure) {
  REQUIRE(failure);
  try {
    std::rethrow_exception(failure);
  } catch (const rank_error& e) {
    return e.ranks();
  } catch (const std::exception& e) {
    FAIL("not a rank_error: " << e.what());
  }
  throw;
}

std::string joined(const std::vector<std::string>& all) {
  std::string whole;
  for (const auto& one : all) whole += one;
  return whole;
}

/// Everything that a group can do, of which each rank knows the outcome: `all` are its ranks among all.
task<> use(rank_group group, int me, std::vector<int> all) {
  const auto count = static_cast<int>(all.size());
  require(group.world_size() == count, "the size of a part");
  require(all.at(static_cast<std::size_t>(group.rank())) == me, "ranks keep their order");
  co_await group.barrier();
  const auto yes = co_await group.agree(true);
  require(yes, "all have agreed");
  const auto no = co_await group.agree(group.rank() != count - 1);
  require(!no, "the last has not agreed");
  const auto least = co_await group.agree_minimum(100 - me);
  require(least == 100 - all.back(), "the smallest number of a part");
  std::vector<std::string> names;
  for (const int one : all) names.push_back(std::to_string(one));
  for (int root = 0; root < count; ++root) {
    const auto told = co_await group.broadcast(std::to_string(me), root);
    require(told == names.at(static_cast<std::size_t>(root)), "what the root of a part has said");
    const auto gathered = co_await group.gather(std::to_string(me), root);
    require(root == group.rank() ? gathered == names : gathered.empty(), "what the root of a part has gathered");
    auto tensor = torch::tensor(static_cast<double>(me));
    co_await group.broadcast(tensor, root);
    require(tensor.item<double>() == all.at(static_cast<std::size_t>(root)), "the tensor of the root of a part");
  }
  const auto gathered = co_await group.all_gather(std::to_string(me));
  require(gathered == names, "what a part has gathered");
  auto merging = group.merge(std::to_string(me), joined);
  const auto merged = co_await std::move(merging);
  require(merged == joined(names), "what a part has merged");
  auto sum = torch::tensor(static_cast<double>(me));
  co_await group.all_reduce(sum);
  double expected = 0;
  for (const int one : all) expected += one;
  require(sum.item<double>() == expected, "the sum of a part");
  const auto mine = torch::tensor(static_cast<double>(me));
  const auto tensors = co_await group.all_gather(mine);
  require(tensors.size() == all.size(), "the tensors of a part");
  for (std::size_t i = 0; i < all.size(); ++i) require(tensors[i].item<double>() == all[i], "tensors in order");
}

}  // namespace

TEST_CASE("parts of a group do all that a group does, and the whole goes on beside them", "[distributed][split]") {
  on_ranks(4, [](const rank_group& whole) {
    const int me = whole.rank();
    const auto part = split(whole, me % 2);
    const std::vector<int> all = me % 2 == 0 ? std::vector<int>{0, 2} : std::vector<int>{1, 3};
    run_task([&]() -> task<> { co_await use(part, me, all); });
    const std::vector<int> everybody{0, 1, 2, 3};
    run_task([&]() -> task<> { co_await use(whole, me, everybody); });
    require(part.first_says(part.rank() == 0), "the first of the part decides");
    require(part.merge_now(std::to_string(me), joined) == fmt::format("{}{}", all[0], all[1]), "a part merges at once");
    // Whoever has more to do in its part does not disturb the other.
    for (int i = 0; i < 10 * (me % 2); ++i) run_task([&]() -> task<> { co_await use(part, me, all); });
  });
}

TEST_CASE("parts of any size, of one rank too, and parts of parts", "[distributed][split]") {
  on_ranks(4, [](const rank_group& whole) {
    const int me = whole.rank();
    const auto first = split(whole, me == 3 ? -7 : 7'000'000'000);
    const std::vector<int> all = me == 3 ? std::vector<int>{3} : std::vector<int>{0, 1, 2};
    run_task([&]() -> task<> { co_await use(first, me, all); });
    const auto second = split(first, me == 0 ? 1 : 0);
    const std::vector<int> rest = me == 0 ? std::vector<int>{0} : me == 3 ? all : std::vector<int>{1, 2};
    run_task([&]() -> task<> { co_await use(second, me, rest); });
    const auto same = split(whole.channel("again"), 0);
    const std::vector<int> everybody{0, 1, 2, 3};
    run_task([&]() -> task<> { co_await use(same, me, everybody); });
  });
  const rank_group alone;
  const std::vector<int> only{0};
  run_task([&]() -> task<> {
    const auto part = co_await alone.split(5);
    co_await use(part, 0, only);
  });
}

TEST_CASE("parts work side by side in one process", "[distributed][split]") {
  on_ranks(3, [](const rank_group& whole) {
    const int me = whole.rank();
    const auto pair = split(whole, me == 2 ? 1 : 0);
    const std::vector<int> everybody{0, 1, 2};
    const std::vector<int> all = me == 2 ? std::vector<int>{2} : std::vector<int>{0, 1};
    run_task([&]() -> task<> {
      const auto both = [&](scope& side_by_side) -> task<> {
        side_by_side.spawn([&]() -> task<> { co_await use(whole, me, everybody); });
        side_by_side.spawn([&]() -> task<> { co_await use(pair, me, all); });
        co_return;
      };
      co_await with_scope(both);
    });
  });
}

TEST_CASE("who is missed in a part is named by its number among all ranks", "[distributed][split]") {
  const bool tensors = GENERATE(false, true);
  std::atomic<int> failed = 0;
  const auto failures = failures_on_ranks(
      4,
      [&](const rank_group& whole) {
        const auto part = split(whole, whole.rank() < 2 ? 0 : 1);
        if (whole.rank() == 2) {
          while (failed < 1) std::this_thread::yield();
          run_task([&]() -> task<> { co_await part.barrier(); });
          return;
        }
        try {
          const auto tensor = torch::ones({3});
          if (whole.rank() == 3 && tensors) run_task([&]() -> task<> { co_await part.all_reduce(tensor); });
          if (whole.rank() == 3) run_task([&]() -> task<> { co_await part.barrier(); });
          // The other part is well, and learns of it all the same.
          run_task([&]() -> task<> { co_await whole.barrier(60s); });
        } catch (const rank_error&) {
          ++failed;
          throw;
        }
      },
      400ms);
  for (const auto& failure : failures) {
    CHECK(named_by(failure) == std::vector<int>{2});
    INFO(message_of(failure));
    CHECK(message_of(failure).find("of ranks 2, 3") != std::string::npos);
  }
}

TEST_CASE("a part in which ranks do different things is told so", "[distributed][split]") {
  const auto failures = failures_on_ranks(4, [](const rank_group& whole) {
    const auto part = split(whole, whole.rank() % 2);
    const auto tensor = torch::ones({whole.rank() == 3 ? 4 : 3});
    run_task([&]() -> task<> { co_await part.all_reduce(tensor); });
    run_task([&]() -> task<> { co_await whole.barrier(); });
  });
  for (const auto& failure : failures) {
    REQUIRE(failure);
    INFO(message_of(failure));
    CHECK(message_of(failure).find("all_reduce(sum) of 3 Float") != std::string::npos);
    CHECK(message_of(failure).find("all_reduce(sum) of 4 Float") != std::string::npos);
  }
}

TEST_CASE("a rank that does not come to a split is named, and one that gives it up ends it for all",
          "[distributed][split]") {
  std::atomic<int> failed = 0;
  const auto missed = failures_on_ranks(
      3,
      [&](const rank_group& whole) {
        if (whole.rank() == 1) {
          while (failed < 2) std::this_thread::yield();
          run_task([&]() -> task<> { co_await whole.barrier(); });
          return;
        }
        try {
          static_cast<void>(split(whole, 0));
        } catch (const rank_error&) {
          ++failed;
          throw;
        }
      },
      400ms);
  for (const auto& failure : missed) CHECK(named_by(failure) == std::vector<int>{1});

  std::atomic<bool> cancelled_it = false;
  const auto given_up = failures_on_ranks(3, [&](const rank_group& whole) {
    if (whole.rank() != 1) {
      while (!cancelled_it) std::this_thread::yield();
      static_cast<void>(split(whole, 0));
      return;
    }
    run_task([&]() -> task<> {
      const auto cancelled = [&](scope& side_by_side) -> task<> {
        side_by_side.spawn([&]() -> task<> { static_cast<void>(co_await whole.split(0)); });
        co_await sleep_for(10ms);
        side_by_side.cancel();
      };
      co_await with_scope(cancelled);
    });
    cancelled_it = true;
    run_task([&]() -> task<> { co_await whole.barrier(); });
  });
  CHECK(message_of(given_up[0]).find("a split was cancelled") != std::string::npos);
  CHECK(message_of(given_up[2]).find("a split was cancelled") != std::string::npos);
}

namespace {

/// Trains on the ranks of a group with snapshots and gives the parameters.
at::Tensor train(const rank_group& group, const std::filesystem::path& out, double slope) {
  auto model = std::make_shared<torch::nn::LinearImpl>(1, 1);
  {
    const torch::NoGradGuard no_grad;
    for (auto& p : model->parameters()) p.fill_(0.5);
  }
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  const auto x = torch::arange(16.0).view({16, 1}) / 16;
  const data::tensor_dataset samples{x, slope * x};
  auto batches = samples | data::shuffle(1) | data::distributed(group.rank(), group.world_size()) | data::batch(2);
  loop training(model, optimizer, batches, torch::nn::functional::mse_loss,
                {.max_iterations = 6, .out = out, .group = group});
  training | snapshot({.mode = snapshot_mode::sharded, .saver_rank = 1}).triggered(every(rondo::iterations(3)));
  training.run();
  return torch::cat({model->weight.detach().flatten(), model->bias.detach()});
}

}  // namespace

TEST_CASE("each part trains a loop of its own, as a group of that size does", "[distributed][split]") {
  const testing::temporary_directory out;
  std::vector<at::Tensor> found(4);
  on_ranks(4, [&](const rank_group& whole) {
    const int color = whole.rank() % 2;
    const auto part = split(whole, color);
    found.at(index_of(whole.rank())) = train(part, out / std::to_string(color), color == 0 ? 2.0 : -3.0);
    run_task([&]() -> task<> { co_await whole.barrier(); });
  });
  std::vector<at::Tensor> expected(2);
  on_ranks(2, [&](const rank_group& group) {
    const auto of_this = train(group, out / "alone", 2.0);
    if (group.rank() == 0) expected[0] = of_this;
  });
  on_ranks(2, [&](const rank_group& group) {
    const auto of_this = train(group, out / "alone too", -3.0);
    if (group.rank() == 0) expected[1] = of_this;
  });
  for (int rank = 0; rank < 4; ++rank) CHECK(torch::equal(found.at(index_of(rank)), expected.at(index_of(rank % 2))));
  for (const char* const color : {"0", "1"})
    CHECK(std::filesystem::exists(out / color / "snapshot_iter_6" / "complete"));
}

}  // namespace distributed_split_test

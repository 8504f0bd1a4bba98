#include "rondo/distributed/rank_group.hpp"

#include <torch/types.h>

#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "rondo/async/scope.hpp"
#include "rondo/async/timer.hpp"
#include "support/catch.hpp"
#include "support/ranks.hpp"
#include "support/run_task.hpp"

namespace distributed_rank_group_test {

using namespace rondo;
using namespace std::chrono_literals;
using distributed::rank_error;
using distributed::rank_group;
using distributed::reduce_op;
using testing::failures_on_ranks;
using testing::on_ranks;
using testing::run_task;

namespace {

/// Catch's macros belong to one thread.
void require(bool holds, const std::string& what) {
  if (!holds) throw std::logic_error(what);
}

rank_error error_of(const std::exception_ptr& failure) {
  REQUIRE(failure);
  try {
    std::rethrow_exception(failure);
  } catch (const rank_error& e) {
    return e;
  } catch (const std::exception& e) {
    FAIL("not a rank_error: " << e.what());
  }
  throw;
}

}  // namespace

TEST_CASE("a single process is a group in which everything completes at once", "[distributed][rank_group]") {
  const rank_group alone;
  CHECK(alone.rank() == 0);
  CHECK(alone.world_size() == 1);
  run_task([&]() -> task<> {
    co_await alone.barrier();
    const bool yes = co_await alone.agree(true);
    CHECK(yes);
    const bool no = co_await alone.agree(false);
    CHECK_FALSE(no);
    const auto text = co_await alone.broadcast(std::string("mine"));
    CHECK(text == "mine");
    const auto all = co_await alone.all_gather(std::string("mine"));
    CHECK(all == std::vector<std::string>{"mine"});
    auto tensor = torch::arange(3.0);
    co_await alone.all_reduce(tensor);
    CHECK(torch::equal(tensor, torch::arange(3.0)));
    const auto tensors = co_await alone.all_gather(tensor);
    CHECK(tensors.size() == 1);
  });
  alone.leave();
}

TEST_CASE("what ranks bring along reaches those it is for", "[distributed][rank_group]") {
  const int world_size = GENERATE(2, 3, 4);
  on_ranks(world_size, [](const rank_group& group) {
    run_task([&]() -> task<> {
      const auto me = std::to_string(group.rank());
      co_await group.barrier();
      const bool all = co_await group.agree(true);
      require(all, "all have agreed");
      const bool not_all = co_await group.agree(group.rank() != 1);
      require(!not_all, "rank 1 has not agreed");
      const auto smallest = co_await group.agree_minimum(7 - group.rank());
      require(smallest == 8 - group.world_size(), "the smallest number");
      const int last = group.world_size() - 1;
      const auto from_last = co_await group.broadcast(me, last);
      require(from_last == std::to_string(last), "broadcast gives the root's");
      const auto everybody = co_await group.all_gather(me);
      require(everybody.size() == static_cast<std::size_t>(group.world_size()), "all_gather gives one per rank");
      for (std::size_t i = 0; i < everybody.size(); ++i) require(everybody[i] == std::to_string(i), "in order");
      const auto gathered = co_await group.gather(me, last);
      require(gathered.size() == (group.rank() == last ? everybody.size() : 0), "only the root gets what is gathered");
      std::string many;
      if (group.rank() == 0) many.assign(5'000'000, 'x');
      const auto large = co_await group.broadcast(std::move(many));
      require(large == std::string(5'000'000, 'x'), "a large message arrives");
    });
  });
}

TEST_CASE("texts that are equal, empty or long come as they were", "[distributed][rank_group]") {
  on_ranks(4, [](const rank_group& group) {
    run_task([&]() -> task<> {
      const std::vector<std::vector<std::string>> rounds{
          {"a", "a", "a", "a"},
          {"", "", "b", ""},
          {"a", "b", "a", "b"},
          {"c", "c", std::string(100'000, 'd'), std::string(100'000, 'd')}};
      for (const auto& round : rounds) {
        const auto all = co_await group.all_gather(round[static_cast<std::size_t>(group.rank())]);
        require(all == round, "gathers what was given");
      }
    });
  });
}

TEST_CASE("rank 0 makes one text of all", "[distributed][rank_group]") {
  const auto join = [](const std::vector<std::string>& all) {
    std::string whole;
    for (const auto& one : all) whole += one;
    return whole;
  };
  on_ranks(3, [&](const rank_group& group) {
    const auto mine = std::to_string(group.rank());
    require(group.merge_now(mine, join) == "012", "merges while blocking");
    run_task([&]() -> task<> {
      auto merging = group.merge(mine, join);
      const auto whole = co_await std::move(merging);
      require(whole == "012", "merges");
    });
  });
  const auto failures = failures_on_ranks(3, [](const rank_group& group) {
    static_cast<void>(
        group.merge_now("x", [](const auto&) -> std::string { throw std::runtime_error("cannot join"); }));
  });
  for (const auto& failure : failures) {
    REQUIRE(failure);
    try {
      std::rethrow_exception(failure);
    } catch (const std::exception& e) {
      CHECK(std::string(e.what()).find("cannot join") != std::string::npos);
    }
  }
  CHECK(rank_group().merge_now("alone", join) == "alone");
}

TEST_CASE("tensors are reduced, broadcast and gathered", "[distributed][rank_group]") {
  const int world_size = GENERATE(2, 4);
  on_ranks(world_size, [](const rank_group& group) {
    run_task([&]() -> task<> {
      const double r = group.rank();
      const double w = group.world_size();
      auto sum = torch::full({1000}, r + 1);
      co_await group.all_reduce(sum);
      require(torch::equal(sum, torch::full({1000}, w * (w + 1) / 2)), "sum");
      auto most = torch::full({3}, group.rank(), torch::kLong);
      co_await group.all_reduce(most, reduce_op::max);
      require(torch::equal(most, torch::full({3}, group.world_size() - 1, torch::kLong)), "max");
      auto least = torch::full({3}, r);
      co_await group.all_reduce(least, reduce_op::min);
      require(torch::equal(least, torch::zeros({3})), "min");
      auto one = torch::full({5}, r);
      co_await group.broadcast(one, 1);
      require(torch::equal(one, torch::ones({5})), "broadcast");
      const auto mine = torch::full({2}, r);
      const auto all = co_await group.all_gather(mine);
      for (int i = 0; i < group.world_size(); ++i)
        require(torch::equal(all[static_cast<std::size_t>(i)], torch::full({2}, i)), "all_gather");
      auto begun = torch::full({7}, r);
      auto pending = group.start_all_reduce(begun);
      auto also = torch::ones({7});
      auto second = group.start_all_reduce(also);
      co_await second.wait();
      co_await pending.wait();
      require(torch::equal(begun, torch::full({7}, w * (w - 1) / 2)), "one begun before");
      require(torch::equal(also, torch::full({7}, w)), "one begun after");
    });
  });
}

TEST_CASE("channels have orders of their own", "[distributed][rank_group]") {
  on_ranks(2, [](const rank_group& group) {
    run_task([&]() -> task<> {
      const auto first = group.channel(group.rank() == 0 ? "a" : "b");
      const auto second = group.channel(group.rank() == 0 ? "b" : "a");
      std::string in_first;
      std::string in_second;
      const auto both = [&](scope& side_by_side) -> task<> {
        side_by_side.spawn([&]() -> task<> { in_first = co_await first.broadcast("first of 0", 0); });
        side_by_side.spawn([&]() -> task<> { in_second = co_await second.broadcast("second of 0", 0); });
        co_return;
      };
      co_await with_scope(both);
      const auto& a = group.rank() == 0 ? in_first : in_second;
      const auto& b = group.rank() == 0 ? in_second : in_first;
      require(a == "first of 0" && b == "second of 0", "meetings of two channels are mixed up");
    });
  });
}

TEST_CASE("waiting for other ranks leaves the thread to other coroutines", "[distributed][rank_group]") {
  std::atomic<int> steps = 0;
  std::atomic<int> ticks = 0;
  on_ranks(2, [&](const rank_group& group) {
    run_task([&]() -> task<> {
      if (group.rank() == 1) {
        // Comes only after the other rank's coroutines have done their steps and ticks.
        while (steps < 1000 || ticks < 50) std::this_thread::yield();
        co_await group.barrier();
        co_return;
      }
      const executor home = co_await asio::this_coro::executor;
      const auto both = [&](scope& side_by_side) -> task<> {
        side_by_side.spawn([&]() -> task<> { co_await group.barrier(); });
        side_by_side.spawn([&]() -> task<> {
          for (int i = 0; i < 1000; ++i) {
            co_await asio::post(home, asio::use_awaitable);
            ++steps;
          }
        });
        side_by_side.spawn([&]() -> task<> {
          for (int i = 0; i < 50; ++i) {
            co_await sleep_for(1ms);
            ++ticks;
          }
        });
        co_return;
      };
      co_await with_scope(both);
    });
  });
  CHECK(steps == 1000);
  CHECK(ticks == 50);
}

TEST_CASE("a rank that does not come is named on all ranks", "[distributed][rank_group]") {
  const int absent = GENERATE(0, 1, 2);
  std::atomic<int> failed = 0;
  const auto failures = failures_on_ranks(3, [&](const rank_group& group) {
    if (group.rank() == absent) {
      while (failed < 2) std::this_thread::yield();
      run_task([&]() -> task<> { co_await group.barrier(); });
      return;
    }
    try {
      run_task([&]() -> task<> { co_await group.barrier(400ms); });
    } catch (const rank_error& e) {
      ++failed;
      require(e.ranks() == std::vector<int>{absent}, "names " + std::string(e.what()));
      throw;
    }
    ++failed;
  });
  for (const auto& failure : failures) {
    const auto e = error_of(failure);
    CHECK(e.ranks() == std::vector<int>{absent});
    CHECK(std::string(e.what()).find("rank " + std::to_string(absent)) != std::string::npos);
  }
}

TEST_CASE("a rank that leaves with an error ends what the others wait for, with its reason",
          "[distributed][rank_group]") {
  const int failing = GENERATE(0, 1, 2);
  const bool tensors = GENERATE(false, true);
  const auto failures = failures_on_ranks(3, [&](const rank_group& group) {
    if (group.rank() == failing) throw error("the disk is on fire");
    run_task([&]() -> task<> {
      auto tensor = torch::ones({10});
      if (tensors) co_await group.all_reduce(tensor);
      co_await group.barrier();
    });
  });
  for (int rank = 0; rank < 3; ++rank) {
    if (rank == failing) continue;
    const auto e = error_of(failures[static_cast<std::size_t>(rank)]);
    CHECK(e.ranks() == std::vector<int>{failing});
    CHECK(std::string(e.what()).find("the disk is on fire") != std::string::npos);
  }
}

TEST_CASE("ranks that do different things are told so", "[distributed][rank_group]") {
  const auto failures = failures_on_ranks(2, [&](const rank_group& group) {
    run_task([&]() -> task<> {
      if (group.rank() == 0)
        co_await group.barrier();
      else
        static_cast<void>(co_await group.agree(true));
    });
  });
  for (const auto& failure : failures) {
    const std::string what = error_of(failure).what();
    CHECK(what.find("barrier") != std::string::npos);
    CHECK(what.find("agree") != std::string::npos);
  }
}

TEST_CASE("operations on tensors in another order are told so, too", "[distributed][rank_group]") {
  const bool other_operation = GENERATE(true, false);
  const auto failures = failures_on_ranks(3, [&](const rank_group& group) {
    run_task([&]() -> task<> {
      auto tensor = torch::ones({10});
      if (group.rank() != 1)
        co_await group.all_reduce(tensor);
      else if (other_operation)
        co_await group.broadcast(tensor, 2);
      else
        co_await group.all_reduce(tensor, reduce_op::max);
      co_await group.barrier();
    });
  });
  for (const auto& failure : failures) {
    const std::string what = error_of(failure).what();
    INFO(what);
    CHECK(what.find("all_reduce(sum) of 10 Float") != std::string::npos);
    CHECK(what.find(other_operation ? "broadcast(2) of 10 Float" : "all_reduce(max) of 10 Float") != std::string::npos);
    CHECK(what.find("same order") != std::string::npos);
  }
}

TEST_CASE("a rank that does not come to an operation on tensors is named on all ranks", "[distributed][rank_group]") {
  const int absent = GENERATE(0, 1, 2);
  std::atomic<int> failed = 0;
  const auto failures = failures_on_ranks(
      3,
      [&](const rank_group& group) {
        if (group.rank() == absent) {
          while (failed < 2) std::this_thread::yield();
          run_task([&]() -> task<> { co_await group.barrier(); });
          return;
        }
        try {
          const auto tensor = torch::ones({10});
          run_task([&]() -> task<> { co_await group.all_reduce(tensor); });
        } catch (const rank_error&) {
          ++failed;
          throw;
        }
        ++failed;
      },
      400ms);
  for (const auto& failure : failures) {
    const auto e = error_of(failure);
    INFO(e.what());
    CHECK(e.ranks() == std::vector<int>{absent});
    CHECK(std::string(e.what()).find("did not come to all_reduce(sum) of 10 Float") != std::string::npos);
  }
}

TEST_CASE("what the backend refuses is an error with its reason that blames no rank", "[distributed][rank_group]") {
  const auto failures = failures_on_ranks(3, [](const rank_group& group) {
    const auto tensor = torch::ones({10}, torch::kComplexFloat);
    run_task([&]() -> task<> { co_await group.all_reduce(tensor); });
  });
  for (const auto& failure : failures) {
    const auto e = error_of(failure);
    INFO(e.what());
    CHECK(e.ranks().empty());
    CHECK(std::string(e.what()).find("all ranks are there") != std::string::npos);
    CHECK(std::string(e.what()).find("calar type") != std::string::npos);
  }
}

TEST_CASE("two coroutines on one channel are refused", "[distributed][rank_group]") {
  on_ranks(2, [](const rank_group& group) {
    run_task([&]() -> task<> {
      const auto side = group.channel("side");
      const auto both = [&](scope& side_by_side) -> task<> {
        side_by_side.spawn([&]() -> task<> { co_await side.barrier(); });
        side_by_side.spawn([&]() -> task<> {
          std::string refused;
          try {
            co_await side.barrier();
          } catch (const error& e) {
            refused = e.what();
          }
          if (group.rank() == 0) require(refused.find("channel of its own") != std::string::npos, refused);
          co_await group.barrier();
        });
        co_return;
      };
      if (group.rank() == 0) {
        co_await with_scope(both);
      } else {
        // Comes to the channel only when the other has been refused.
        co_await group.barrier();
        co_await side.barrier();
      }
    });
  });
}

TEST_CASE("a merge that is cancelled on rank 0 ends the group, elsewhere it is finished without the answer",
          "[distributed][rank_group]") {
  const int cancelled = GENERATE(0, 1);
  const auto failures = failures_on_ranks(2, [&](const rank_group& group) {
    run_task([&]() -> task<> {
      const auto merging_apart = group.channel("merge");
      const auto join = [](const std::vector<std::string>& all) { return all[0] + all[1]; };
      if (group.rank() == cancelled) {
        const auto given_up = [&](scope& inside) -> task<> {
          inside.spawn([&]() -> task<> {
            auto merging = merging_apart.merge("x", join);
            static_cast<void>(co_await std::move(merging));
          });
          const executor home = co_await asio::this_coro::executor;
          for (int i = 0; i < 3; ++i) co_await asio::post(home, asio::use_awaitable);
          inside.cancel();
        };
        co_await with_scope(given_up);
      } else if (cancelled == 1) {
        auto merging = merging_apart.merge("y", join);
        const auto whole = co_await std::move(merging);
        require(whole == "yx", whole);
      }
      co_await group.barrier();
    });
  });
  CHECK(static_cast<bool>(failures[0]) == (cancelled == 0));
  CHECK(static_cast<bool>(failures[1]) == (cancelled == 0));
  if (cancelled == 0) {
    const std::string what = error_of(failures[1]).what();
    INFO(what);
    CHECK(what.find("merge was cancelled") != std::string::npos);
  }
}

TEST_CASE("a rank that has left in peace is missed by those who go on", "[distributed][rank_group]") {
  const auto failures = failures_on_ranks(3, [&](const rank_group& group) {
    if (group.rank() == 2) return;
    run_task([&]() -> task<> { co_await group.barrier(); });
  });
  CHECK_FALSE(failures[2]);
  CHECK(error_of(failures[0]).ranks() == std::vector<int>{2});
  CHECK(error_of(failures[1]).ranks() == std::vector<int>{2});
}

TEST_CASE("a rank that leaves is missed at every meeting that waits for it", "[distributed][rank_group]") {
  const auto failures = failures_on_ranks(3, [&](const rank_group& group) {
    run_task([&]() -> task<> {
      if (group.rank() != 2) {
        const auto other = group.channel("b");
        co_await other.barrier();
        co_return;
      }
      // Has come to a meeting of an earlier name, and leaves.
      const auto given_up = [&](scope& inside) -> task<> {
        inside.spawn([&]() -> task<> {
          const auto one = group.channel("a");
          co_await one.barrier();
        });
        const executor home = co_await asio::this_coro::executor;
        for (int i = 0; i < 3; ++i) co_await asio::post(home, asio::use_awaitable);
        inside.cancel();
      };
      co_await with_scope(given_up);
    });
  });
  CHECK_FALSE(failures[2]);
  for (const int rank : {0, 1})
    CHECK(error_of(failures[static_cast<std::size_t>(rank)]).ranks() == std::vector<int>{2});
}

TEST_CASE("a cancelled wait gives up the answer, and the others get theirs", "[distributed][rank_group]") {
  on_ranks(2, [](const rank_group& group) {
    run_task([&]() -> task<> {
      if (group.rank() == 0) {
        const auto given_up = [&](scope& inside) -> task<> {
          inside.spawn([&]() -> task<> { co_await group.barrier(); });
          const executor home = co_await asio::this_coro::executor;
          for (int i = 0; i < 3; ++i) co_await asio::post(home, asio::use_awaitable);
          inside.cancel();
        };
        co_await with_scope(given_up);
      } else {
        co_await group.barrier();
      }
      const auto all = co_await group.all_gather(std::to_string(group.rank()));
      require(all[0] == "0" && all[1] == "1", "the order is kept");
    });
  });
}

TEST_CASE("a group of ranks that never come is not made", "[distributed][rank_group]") {
  distributed::group_options options;
  options.connect_timeout = 300ms;
  const auto port = testing::free_port();
  try {
    static_cast<void>(rank_group::connect(testing::launch_of(0, 3, port), options));
    FAIL("connected");
  } catch (const rank_error& e) {
    CHECK(e.ranks() == std::vector<int>{1, 2});
  }
  CHECK_THROWS_AS(rank_group::connect(testing::launch_of(1, 3, port), options), rank_error);
}

TEST_CASE("ranks that do not agree on how many they are, or who, are told so", "[distributed][rank_group]") {
  distributed::group_options options;
  options.connect_timeout = 20s;
  const auto message = [&](int rank, int world_size, std::uint16_t port) {
    try {
      static_cast<void>(rank_group::connect(testing::launch_of(rank, world_size, port), options));
    } catch (const rank_error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  const auto port = testing::free_port();
  std::string of_first;
  std::thread first([&] {
    auto short_options = options;
    short_options.connect_timeout = 3s;
    try {
      static_cast<void>(rank_group::connect(testing::launch_of(0, 2, port), short_options));
    } catch (const rank_error& e) {
      of_first = e.what();
    }
  });
  const auto of_other = message(1, 3, port);
  first.join();
  INFO(of_first << "; " << of_other);
  CHECK(of_other.find("WORLD_SIZE") != std::string::npos);
  CHECK(of_first.find("rank 1") != std::string::npos);

  // One of the two is turned away, the others wait for rank 2.
  options.connect_timeout = 3s;
  const auto second_port = testing::free_port();
  std::vector<std::string> said(3);
  std::vector<std::thread> ranks;
  for (int i = 0; i < 3; ++i)
    ranks.emplace_back([&, i] { said[static_cast<std::size_t>(i)] = message(i == 0 ? 0 : 1, 3, second_port); });
  for (auto& one : ranks) one.join();
  INFO(said[0] << "; " << said[1] << "; " << said[2]);
  CHECK((said[1] + said[2]).find("a second process") != std::string::npos);
  CHECK(said[0].find("rank 2") != std::string::npos);
}

TEST_CASE("impossible calls are refused before anybody is asked", "[distributed][rank_group]") {
  const rank_group alone;
  CHECK_THROWS_AS(alone.broadcast(std::string(), 1), option_error);
  CHECK_THROWS_AS(alone.gather(std::string(), -1), option_error);
  CHECK_THROWS_AS(alone.barrier(0ms), option_error);
  CHECK_THROWS_AS(alone.all_reduce(torch::ones({4, 4}).t().slice(0, 0, 2)), option_error);
  distributed::group_options options;
  options.timeout = 0ms;
  CHECK_THROWS_AS(rank_group::connect(testing::launch_of(0, 1, 1), options), option_error);
  options.timeout = 1s;
  options.heartbeat_timeout = 0ms;
  CHECK_THROWS_AS(rank_group::connect(testing::launch_of(0, 2, testing::free_port()), options), option_error);
  CHECK_THROWS_AS(rank_group::connect(testing::launch_of(2, 2, 1)), option_error);
}

}  // namespace distributed_rank_group_test

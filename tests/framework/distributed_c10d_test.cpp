#include "rondo/distributed/c10d.hpp"

#include <torch/types.h>

#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <chrono>
#include <exception>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "support/catch.hpp"
#include "support/ranks.hpp"
#include "support/run_task.hpp"
#include "support/temporary_directory.hpp"

namespace distributed_c10d_test {

using namespace rondo;
using namespace std::chrono_literals;
using distributed::rank_group;

namespace {

using store = c10::intrusive_ptr<c10d::Store>;

constexpr int world_size = 3;

c10::intrusive_ptr<distributed::c10d_backend> gloo(store where, int rank, int size) {
  auto options = c10d::ProcessGroupGloo::Options::create(30s);
  options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1"));
  return c10::make_intrusive<c10d::ProcessGroupGloo>(std::move(where), rank, size, options);
}

/// Runs `body` for every rank on a thread of its own, with a store that all of them share; throws what one has thrown.
void with_store(const std::function<void(int rank, const store&)>& body) {
  const testing::temporary_directory directory;
  std::vector<std::exception_ptr> failures(world_size);
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < world_size; ++rank)
    ranks.emplace_back([&, rank] {
      try {
        body(rank, c10::make_intrusive<c10d::FileStore>((directory / "store").string(), world_size));
      } catch (...) {
        failures[static_cast<std::size_t>(rank)] = std::current_exception();
      }
    });
  for (auto& rank : ranks) rank.join();
  for (const auto& failure : failures)
    if (failure) std::rethrow_exception(failure);
}

distributed::launch who(int rank) { return testing::launch_of(rank, world_size, 1); }

double sum_of_ranks(const rank_group& group, int mine) {
  auto tensor = torch::tensor(static_cast<double>(mine));
  testing::run_task([&]() -> task<> { co_await group.all_reduce(tensor); });
  return tensor.item<double>();
}

void require(bool holds, const std::string& what) {
  if (!holds) throw std::logic_error(what);
}

}  // namespace

TEST_CASE("groups over a backend of the program's own, several of them with one store", "[distributed][c10d]") {
  with_store([](int rank, const store& shared) {
    const auto backend = gloo(c10::make_intrusive<c10d::PrefixStore>("own", shared), rank, world_size);
    const auto first = distributed::over(backend, shared, who(rank));
    const auto second = distributed::over(backend, shared, who(rank));
    require(sum_of_ranks(first, rank) == 3, "the first group sums");
    require(sum_of_ranks(second, 10 * rank) == 30, "the second group sums");
    require(first.merge_now("x", [](const auto& all) { return std::to_string(all.size()); }) == "3", "merges");
    second.leave();
    require(sum_of_ranks(first, rank) == 3, "the first group does not need the second one");
    first.leave();
  });
}

TEST_CASE("a group that makes its backends is split together with its tensors", "[distributed][c10d]") {
  with_store([](int rank, const store& shared) {
    const auto whole = distributed::over(gloo, shared, who(rank));
    require(sum_of_ranks(whole, rank) == 3, "the whole sums");
    rank_group part;
    const int color = rank == 0 ? 0 : 1;
    testing::run_task([&]() -> task<> { part = co_await whole.split(color); });
    require(sum_of_ranks(part, rank) == (rank == 0 ? 0 : 3), "a part sums");
    whole.leave();
  });
}

TEST_CASE("a group over one backend is split without tensors", "[distributed][c10d]") {
  with_store([](int rank, const store& shared) {
    const auto backend = gloo(c10::make_intrusive<c10d::PrefixStore>("own", shared), rank, world_size);
    const auto whole = distributed::over(backend, shared, who(rank));
    rank_group part;
    const int color = rank == 0 ? 0 : 1;
    testing::run_task([&]() -> task<> { part = co_await whole.split(color); });
    testing::run_task([&]() -> task<> { co_await part.barrier(); });
    if (rank > 0) {
      try {
        static_cast<void>(sum_of_ranks(part, rank));
        require(false, "tensors have no way");
      } catch (const option_error& e) {
        require(std::string(e.what()).find("rondo::distributed::over") != std::string::npos, e.what());
      }
    }
    require(sum_of_ranks(whole, rank) == 3, "the whole sums");
    whole.leave();
  });
}

TEST_CASE("a backend of another rank, and one that cannot be made, are refused", "[distributed][c10d]") {
  with_store([](int rank, const store& shared) {
    const auto backend = gloo(c10::make_intrusive<c10d::PrefixStore>("own", shared), rank, world_size);
    try {
      static_cast<void>(distributed::over(backend, shared, who((rank + 1) % world_size)));
      require(false, "another rank's backend");
    } catch (const option_error&) {
    }
    const auto fail_on_rank_1 = [](const store& where, int mine, int size) {
      if (mine == 1) throw std::runtime_error("no such device");
      return gloo(where, mine, size);
    };
    try {
      static_cast<void>(distributed::over(fail_on_rank_1, shared, who(rank)));
      require(false, "a backend that cannot be made");
    } catch (const distributed::rank_error& e) {
      require(std::string(e.what()).find("no such device") != std::string::npos, e.what());
    }
  });
}

}  // namespace distributed_c10d_test

#pragma once

#include <asio/io_context.hpp>
#include <asio/ip/tcp.hpp>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <thread>
#include <vector>

#include "rondo/distributed/rank_group.hpp"

namespace rondo::testing {

[[nodiscard]] inline std::uint16_t free_port() {
  asio::io_context events;
  const asio::ip::tcp::acceptor acceptor(events, {asio::ip::address_v4::loopback(), 0});
  return acceptor.local_endpoint().port();
}

/// How a thread that stands for a rank finds the others.
[[nodiscard]] inline distributed::launch launch_of(int rank, int world_size, std::uint16_t port) {
  distributed::launch who;
  who.rank = who.local_rank = rank;
  who.world_size = who.local_world_size = world_size;
  who.master_port = port;
  return who;
}

/// Runs `body` once for every rank, each on a thread with a group of its own, and gives what each has thrown.
inline std::vector<std::exception_ptr> failures_on_ranks(int world_size,
                                                         const std::function<void(distributed::rank_group)>& body,
                                                         std::chrono::milliseconds timeout = std::chrono::seconds(30)) {
  const auto port = free_port();
  std::vector<std::exception_ptr> failures(static_cast<std::size_t>(world_size));
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < world_size; ++rank)
    ranks.emplace_back([&, rank] {
      try {
        distributed::group_options options;
        options.timeout = timeout;
        options.connect_timeout = std::chrono::seconds(30);
        const auto group = distributed::rank_group::connect(launch_of(rank, world_size, port), options);
        try {
          body(group);
          group.leave();
        } catch (const std::exception& e) {
          group.leave(e.what());
          throw;
        }
      } catch (...) {
        failures[static_cast<std::size_t>(rank)] = std::current_exception();
      }
    });
  for (auto& rank : ranks) rank.join();
  return failures;
}

/// The same; throws what the first rank that failed has thrown.
inline void on_ranks(int world_size, const std::function<void(distributed::rank_group)>& body) {
  for (const auto& failure : failures_on_ranks(world_size, body))
    if (failure) std::rethrow_exception(failure);
}

}  // namespace rondo::testing

// What the benchmarks share.
#pragma once

#include <benchmark/benchmark.h>

#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>
#include <concepts>
#include <exception>

#include "rondo/async/task.hpp"

namespace rondo::bench {

/// Runs the coroutine that `make` gives on a fresh event loop to its end. Throws what it throws.
template <std::invocable F>
void run_to_end(F make) {
  asio::io_context events(1);
  std::exception_ptr error;
  asio::co_spawn(events, make(), [&](std::exception_ptr e) { error = e; });
  events.run();
  if (error) std::rethrow_exception(error);
}

/// A counter of nanoseconds of CPU time for each of `things`, of which one pass through the benchmark's loop does so
/// many.
inline benchmark::Counter nanoseconds_for_each_of(double things) {
  return {things * 1e-9, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert};
}

}  // namespace rondo::bench

#pragma once

#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>
#include <exception>
#include <optional>
#include <type_traits>

#include "rondo/async/task.hpp"

namespace rondo::testing {

/// Runs a coroutine on a fresh event loop to its end and gives what it gives or throws. `make` returns the task.
template <class F>
auto run_task(F make) {
  asio::io_context events(1);
  std::exception_ptr error;
  using task_type = std::invoke_result_t<F&>;
  if constexpr (std::same_as<task_type, task<>>) {
    asio::co_spawn(events, make(), [&](std::exception_ptr e) { error = e; });
    events.run();
    if (error) std::rethrow_exception(error);
  } else {
    using result = typename task_type::value_type;
    std::optional<result> value;
    asio::co_spawn(events, make(), [&](std::exception_ptr e, result r) {
      error = e;
      value = std::move(r);
    });
    events.run();
    if (error) std::rethrow_exception(error);
    return std::move(*value);
  }
}

}  // namespace rondo::testing

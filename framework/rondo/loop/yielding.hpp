#pragma once

#include <asio/post.hpp>
#include <asio/use_awaitable.hpp>

#include "rondo/async/task.hpp"

namespace rondo::detail {

/// Lets the event loop run until whatever was ready has had its turn. One round is not enough for a signal: in the first the
/// reactor sees it, in the second its wait completes, in the third the coroutine that waited goes on.
[[nodiscard]] inline task<> let_others_run(executor home) {
  constexpr int rounds = 4;
  for (int i = 0; i < rounds; ++i) co_await asio::post(home, asio::use_awaitable);
}

}  // namespace rondo::detail

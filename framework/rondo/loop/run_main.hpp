#pragma once

#include <exception>
#include <type_traits>
#include <utility>

#include "rondo/loop/options.hpp"

namespace rondo {

namespace detail {

/// Says on stderr what has been thrown, in one line for each exception that it is nested in, and gives 1.
[[nodiscard]] int report_failure(const std::exception_ptr& error) noexcept;

}  // namespace detail

/// What `main` returns: runs `body` and gives its exit status. An exception becomes a line on stderr and the status 1,
/// where the program would otherwise be aborted.
///
///     int main() {
///       return rondo::run_main([] {
///         …
///         return loop.run();
///       });
///     }
///
/// `body` returns the `run_result` of a loop (see `exit_code`), a number, or nothing (0). Objects of `body` are
/// destroyed before the message. Of LibTorch's errors the message is told without the backtrace.
template <class Body>
[[nodiscard]] int run_main(Body body) noexcept {
  try {
    using result = std::invoke_result_t<Body&>;
    if constexpr (std::is_void_v<result>) {
      body();
      return 0;
    } else if constexpr (std::is_same_v<std::remove_cvref_t<result>, run_result>) {
      return exit_code(body());
    } else {
      return static_cast<int>(body());
    }
  } catch (...) {
    return detail::report_failure(std::current_exception());
  }
}

}  // namespace rondo

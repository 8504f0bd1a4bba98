#pragma once

#include <signal.h>

#include <array>
#include <cstddef>

namespace rondo::testing {

/// While it lives, signals have their default effect: the test runner has handlers of its own, which a loop would call
/// as well.
class default_dispositions {
 public:
  default_dispositions() {
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      struct sigaction by_default {};
      by_default.sa_handler = SIG_DFL;
      ::sigaction(numbers[i], &by_default, &before_[i]);
    }
  }
  ~default_dispositions() {
    for (std::size_t i = 0; i < numbers.size(); ++i) ::sigaction(numbers[i], &before_[i], nullptr);
  }
  default_dispositions(const default_dispositions&) = delete;
  default_dispositions& operator=(const default_dispositions&) = delete;

 private:
  static constexpr std::array<int, 3> numbers = {SIGINT, SIGTERM, SIGUSR1};
  std::array<struct sigaction, 3> before_{};
};

}  // namespace rondo::testing

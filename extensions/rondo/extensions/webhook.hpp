#pragma once

#include <chrono>
#include <memory>
#include <string>

namespace rondo::extensions {

struct webhook_options {
  std::chrono::milliseconds timeout = std::chrono::seconds(10);     ///< for one attempt
  int retries = 2;                                                  ///< further attempts
  std::chrono::milliseconds retry_delay = std::chrono::seconds(1);  ///< before the first of them; doubles each time
};

/// Posts JSON to one address from a thread of its own, in order. What cannot be delivered is given up with a warning,
/// the first time. At most `capacity` messages wait; a further one takes the place of the oldest. Any thread.
class webhook {
 public:
  static constexpr std::size_t capacity = 64;

  /// Throws `option_error("url", …)` without the address in it if that is not one of http or https.
  webhook(std::string url, webhook_options options);
  webhook(const webhook&) = delete;
  webhook& operator=(const webhook&) = delete;
  /// Breaks off what is under way.
  ~webhook();

  /// Never blocks.
  void post(std::string body);
  /// Waits until everything has been delivered or given up, or for `limit`; then what is left is given up, with a
  /// warning. Blocks.
  void finish(std::chrono::milliseconds limit);

 private:
  class delivery;
  std::shared_ptr<delivery> self_;
};

}  // namespace rondo::extensions

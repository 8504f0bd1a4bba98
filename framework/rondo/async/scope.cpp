#include "rondo/async/scope.hpp"

#include "rondo/error.hpp"
#include "rondo/log.hpp"

namespace rondo::detail {

void log_later_failure(const std::exception_ptr& failure) {
  log::error("a coroutine failed after another one of its scope had: " + message_of(failure));
}

}  // namespace rondo::detail

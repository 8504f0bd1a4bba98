#include "rondo/event/acknowledgement.hpp"

#include <utility>

#include "rondo/async/park.hpp"

namespace rondo {

void acknowledgement::settle() {
  const bool owed = std::exchange(owed_, false);
  if (owed && waiter_) waiter_.post();
}

task<> acknowledgement::settled() {
  if (owed_) co_await park(waiter_);
}

}  // namespace rondo

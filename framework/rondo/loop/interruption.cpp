#include "rondo/loop/interruption.hpp"

#include <utility>

#include "rondo/loop/session.hpp"

namespace rondo {

interruptible_work::interruptible_work(detail::session& s, const std::string& owner)
    : session_(s), begun_(s.work_begins(owner)) {}
interruptible_work::interruptible_work(interruptible_work&&) noexcept = default;
interruptible_work::~interruptible_work() = default;

bool interruptible_work::due() const noexcept { return session_.interruption_point_due(); }

task<> interruptible_work::point() { return session_.interruption_point(begun_.get()); }

task<> interruptible_work::wait(task<> other) {
  co_await session_.wait_in_work(begun_.get(), std::move(other));
  co_await session_.interruption_point(begun_.get());
}

}  // namespace rondo

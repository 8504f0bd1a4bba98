#include "rondo/writing/staging.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <asio/this_coro.hpp>
#include <cerrno>
#include <list>
#include <mutex>
#include <new>
#include <system_error>
#include <utility>
#include <vector>

#include "rondo/async/detail/homecoming.hpp"
#include "rondo/async/park.hpp"
#include "rondo/error.hpp"
#include "rondo/writing/memory_block.hpp"

namespace rondo::writing {

namespace {

// So much memory is backed faster than another thread is woken up.
constexpr std::uint64_t backed_here = std::uint64_t{1} << 20U;

}  // namespace

// The blocks, and who has them. Slots may come back on any thread, therefore the mutex; everything else happens on the
// training thread.
class staging::pool {
 public:
  enum class use { free, preparing, filling, handed_over, writing, given_up };

  // A block, or the room for one.
  struct seat {
    memory_block block;
    use state = use::free;
    std::uint64_t order = 0;
    slot* holder = nullptr;
  };

  // In the frame of a coroutine that waits for a seat.
  class waiter {
   public:
    waiter(pool& owner, const executor& home, slot& hopeful, std::uint64_t size)
        : away(home), wanting(hopeful), bytes(size), owner_(owner) {}
    waiter(const waiter&) = delete;
    waiter& operator=(const waiter&) = delete;
    ~waiter() {
      const std::lock_guard lock(owner_.mutex_);
      owner_.line_.remove(this);
    }

    rondo::detail::absence away;
    slot& wanting;
    std::uint64_t bytes;
    bool refused = false;

   private:
    pool& owner_;
  };

  // What a block that is being made will take, given back unless it comes to be.
  class charge {
   public:
    charge(pool& owner, std::uint64_t freed, std::uint64_t size) : owner_(owner), size_(size) {
      const std::lock_guard lock(owner_.mutex_);
      owner_.bytes_ += size - freed;
      owner_.peak_ = std::max(owner_.peak_, owner_.bytes_);
    }
    charge(const charge&) = delete;
    charge& operator=(const charge&) = delete;
    ~charge() {
      const std::lock_guard lock(owner_.mutex_);
      owner_.bytes_ -= size_;
    }
    void keep() noexcept { size_ = 0; }

   private:
    pool& owner_;
    std::uint64_t size_;
  };

  enum class answer { yes, no, later };

  explicit pool(staging_options options) : options_(options) {
    if (options.capacity == 0) throw option_error("capacity", "0", "1 or more");
    seats_.resize(options.capacity);
  }

  static task<std::shared_ptr<staging_slot>> acquire(std::shared_ptr<pool> self, std::shared_ptr<worker> copier,
                                                     std::uint64_t bytes, when_full full);
  static task<> prepare(std::shared_ptr<pool> self, std::shared_ptr<worker> copier, std::uint64_t bytes);

  void release(const slot& holder) noexcept;
  void hand_over(const slot& holder) noexcept;
  [[nodiscard]] bool begin_writing(const slot& holder) noexcept;
  void give_up(const slot& holder) noexcept;

  [[nodiscard]] const staging_options& options() const noexcept { return options_; }
  [[nodiscard]] std::uint64_t bytes() const noexcept {
    const std::lock_guard lock(mutex_);
    return bytes_;
  }
  [[nodiscard]] std::uint64_t peak_bytes() const noexcept {
    const std::lock_guard lock(mutex_);
    return peak_;
  }

 private:
  static task<> wait(pool& self, slot& wanting, std::uint64_t bytes);
  static task<> back(pool& self, worker& copier, slot& holder, std::uint64_t bytes);

  [[nodiscard]] answer take(slot& wanting, std::uint64_t bytes, when_full full);
  [[nodiscard]] bool take_to_prepare(slot& wanting, std::uint64_t bytes) noexcept;
  void join_line(waiter& waiting);
  void serve_line();

  [[nodiscard]] seat* best_free(std::uint64_t bytes) noexcept;
  [[nodiscard]] seat* newest_handed_over() noexcept;
  [[nodiscard]] bool any(use state) const noexcept;
  [[nodiscard]] bool stuck() const noexcept;
  [[noreturn]] void refuse() const;
  static void give(seat& given, slot& to, use state) noexcept;

  staging_options options_;
  mutable std::mutex mutex_;
  std::vector<seat> seats_;
  std::list<waiter*> line_;
  std::uint64_t orders_ = 0;
  std::uint64_t bytes_ = 0;
  std::uint64_t peak_ = 0;
};

// Holds a seat, or none before it got one and after a newer slot took it.
class staging::slot final : public staging_slot {
 public:
  explicit slot(std::shared_ptr<pool> owner) noexcept : owner_(std::move(owner)) {}
  slot(const slot&) = delete;
  slot& operator=(const slot&) = delete;
  ~slot() override { owner_->release(*this); }

  [[nodiscard]] std::span<std::byte> memory() const noexcept override {
    return seat_ == nullptr ? std::span<std::byte>() : seat_->block.bytes();
  }
  [[nodiscard]] int descriptor() const noexcept override { return seat_ == nullptr ? -1 : seat_->block.descriptor(); }
  void hand_over() noexcept override { owner_->hand_over(*this); }
  [[nodiscard]] bool begin_writing() noexcept override { return owner_->begin_writing(*this); }
  void give_up() noexcept override { owner_->give_up(*this); }

 private:
  friend class pool;
  std::shared_ptr<pool> owner_;
  pool::seat* seat_ = nullptr;
};

// ---- who gets what; all with the mutex held, but for the public functions ----

void staging::pool::give(seat& given, slot& to, use state) noexcept {
  if (given.holder != nullptr) given.holder->seat_ = nullptr;
  given.holder = &to;
  given.state = state;
  to.seat_ = &given;
}

bool staging::pool::any(use state) const noexcept {
  return std::any_of(seats_.begin(), seats_.end(), [&](const seat& one) { return one.state == state; });
}

bool staging::pool::stuck() const noexcept {
  return std::all_of(seats_.begin(), seats_.end(), [](const seat& one) { return one.state == use::given_up; });
}

void staging::pool::refuse() const {
  throw io_error("acquire", "staging memory", std::make_error_code(std::errc::timed_out),
                 fmt::format("all of its {} blocks belong to writes that took longer than allowed and were given up; "
                             "check the disk, or allow more time",
                             options_.capacity));
}

// The smallest block that is large enough; otherwise the largest, which grows least; otherwise room for a new one.
staging::pool::seat* staging::pool::best_free(std::uint64_t bytes) noexcept {
  const auto rank = [&](const seat& one) {
    const std::uint64_t size = one.block.bytes().size();
    if (size == 0) return std::pair(2, size);
    return size >= bytes ? std::pair(0, size) : std::pair(1, ~size);
  };
  seat* best = nullptr;
  for (auto& one : seats_) {
    if (one.state == use::free && (best == nullptr || rank(one) < rank(*best))) best = &one;
  }
  return best;
}

staging::pool::seat* staging::pool::newest_handed_over() noexcept {
  seat* newest = nullptr;
  for (auto& one : seats_) {
    if (one.state == use::handed_over && (newest == nullptr || one.order > newest->order)) newest = &one;
  }
  return newest;
}

staging::pool::answer staging::pool::take(slot& wanting, std::uint64_t bytes, when_full full) {
  const std::lock_guard lock(mutex_);
  if (stuck()) refuse();
  if (line_.empty()) {
    if (seat* const found = best_free(bytes)) {
      give(*found, wanting, use::filling);
      return answer::yes;
    }
  }
  // What is being prepared will be free in a moment, so that it is not full.
  if (full == when_full::wait || any(use::preparing)) return answer::later;
  if (full == when_full::skip) return answer::no;
  seat* const replaced = line_.empty() ? newest_handed_over() : nullptr;
  if (replaced == nullptr) return answer::later;
  give(*replaced, wanting, use::filling);
  return answer::yes;
}

bool staging::pool::take_to_prepare(slot& wanting, std::uint64_t bytes) noexcept {
  const std::lock_guard lock(mutex_);
  seat* const found = best_free(bytes);
  if (found == nullptr || (found->block.bytes().size() >= bytes && !found->block.bytes().empty())) return false;
  give(*found, wanting, use::preparing);
  return true;
}

void staging::pool::join_line(waiter& waiting) {
  const std::lock_guard lock(mutex_);
  line_.push_back(&waiting);
  // One may have become free meanwhile.
  serve_line();
}

void staging::pool::serve_line() {
  while (!line_.empty()) {
    waiter& first = *line_.front();
    seat* const found = best_free(first.bytes);
    if (found == nullptr && !stuck()) return;
    line_.pop_front();
    first.refused = found == nullptr;
    if (found != nullptr) give(*found, first.wanting, use::filling);
    first.away.way()->call();
  }
}

void staging::pool::release(const slot& holder) noexcept {
  const std::lock_guard lock(mutex_);
  if (holder.seat_ == nullptr) return;
  holder.seat_->holder = nullptr;
  holder.seat_->state = use::free;
  serve_line();
}

void staging::pool::hand_over(const slot& holder) noexcept {
  const std::lock_guard lock(mutex_);
  if (holder.seat_ == nullptr || holder.seat_->state != use::filling) return;
  holder.seat_->state = use::handed_over;
  holder.seat_->order = ++orders_;
}

bool staging::pool::begin_writing(const slot& holder) noexcept {
  const std::lock_guard lock(mutex_);
  if (holder.seat_ == nullptr) return false;
  holder.seat_->state = use::writing;
  return true;
}

void staging::pool::give_up(const slot& holder) noexcept {
  const std::lock_guard lock(mutex_);
  if (holder.seat_ == nullptr) return;
  holder.seat_->state = use::given_up;
  serve_line();
}

// ---- coroutines ----

task<> staging::pool::wait(pool& self, slot& wanting, std::uint64_t bytes) {
  const executor home = co_await asio::this_coro::executor;
  waiter waiting(self, home, wanting, bytes);
  self.join_line(waiting);
  co_await park(waiting.away.rest());
  if (waiting.refused) self.refuse();
}

task<> staging::pool::back(pool& self, worker& copier, slot& holder, std::uint64_t bytes) {
  memory_block& block = holder.seat_->block;
  if (!block.bytes().empty() && block.bytes().size() >= bytes) co_return;
  const auto size = memory_block::rounded(static_cast<std::size_t>(bytes));
  charge costs(self, block.bytes().size(), size);
  // The old block first: both together may be more than there is.
  auto make = [old = std::move(block), size, shared = self.options_.shared]() mutable {
    old = memory_block();
    return memory_block(size, shared);
  };
  if (size <= backed_here) {
    block = make();
  } else {
    memory_block made = co_await copier.run(make);
    block = std::move(made);
  }
  costs.keep();
}

task<std::shared_ptr<staging_slot>> staging::pool::acquire(std::shared_ptr<pool> self, std::shared_ptr<worker> copier,
                                                           std::uint64_t bytes, when_full full) {
  const auto wanting = std::make_shared<slot>(self);
  const auto found = self->take(*wanting, bytes, full);
  if (found == answer::no) co_return nullptr;
  if (found == answer::later) co_await wait(*self, *wanting, bytes);
  co_await back(*self, *copier, *wanting, bytes);
  co_return wanting;
}

task<> staging::pool::prepare(std::shared_ptr<pool> self, std::shared_ptr<worker> copier, std::uint64_t bytes) {
  const auto wanting = std::make_shared<slot>(self);
  const bool needed = self->take_to_prepare(*wanting, bytes);
  if (!needed) co_return;
  try {
    co_await back(*self, *copier, *wanting, bytes);
  } catch (const std::bad_alloc&) {
  } catch (const error&) {
  }
}

// ---- the public class ----

staging::staging(staging_options options)
    : pool_(std::make_shared<pool>(options)), copier_(std::make_shared<worker>()) {}
staging::~staging() = default;

task<std::shared_ptr<staging_slot>> staging::acquire(std::uint64_t bytes) {
  return pool::acquire(pool_, copier_, bytes, pool_->options().full);
}

task<std::shared_ptr<staging_slot>> staging::acquire(std::uint64_t bytes, when_full full) {
  return pool::acquire(pool_, copier_, bytes, full);
}

task<> staging::prepare(std::uint64_t bytes) { return pool::prepare(pool_, copier_, bytes); }

std::uint64_t staging::bytes() const noexcept { return pool_->bytes(); }
std::uint64_t staging::peak_bytes() const noexcept { return pool_->peak_bytes(); }
worker& staging::copier() noexcept { return *copier_; }
const staging_options& staging::options() const noexcept { return pool_->options(); }

}  // namespace rondo::writing

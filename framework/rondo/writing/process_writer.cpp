#include "rondo/writing/process_writer.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <limits.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <asio/redirect_error.hpp>
#include <asio/steady_timer.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>
#include <cerrno>
#include <deque>
#include <exception>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "rondo/async/continuation.hpp"
#include "rondo/async/park.hpp"
#include "rondo/async/semaphore.hpp"
#include "rondo/checkpoint/file_format.hpp"
#include "rondo/error.hpp"
#include "rondo/writing/helper/process.hpp"
#include "rondo/writing/helper/protocol.hpp"
#include "rondo/writing/helper/registry.hpp"

namespace rondo::writers {

namespace {

using writing::file_image;
using writing::path;
using writing::write_receipt;
using writing::write_request;
using helper_process = writing::helper::process;
using clock = std::chrono::steady_clock;

// How long a helper that was told to end, or killed, may take for it.
constexpr std::chrono::seconds grace(2);
// Where the system cannot tell when a process has ended.
constexpr std::chrono::milliseconds between_looks(2);

// What has to happen before there is something to do: one of the descriptors can be read (-1: none), or it is time.
struct happening {
  int socket = -1;
  int handle = -1;
  clock::time_point deadline = clock::time_point::max();
};

happening look_again(happening next) {
  if (next.handle < 0) next.deadline = std::min(next.deadline, clock::now() + between_looks);
  return next;
}

void block_until(const happening& next) {
  std::array<pollfd, 2> events{pollfd{next.socket, POLLIN, 0}, pollfd{next.handle, POLLIN, 0}};
  int limit = -1;
  if (next.deadline != clock::time_point::max()) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(next.deadline - clock::now()).count();
    limit = static_cast<int>(std::clamp<std::int64_t>(left, 0, INT_MAX));
  }
  ::poll(events.data(), events.size(), limit);
}

// Calls `wake` when the descriptor can be read. False when it cannot be watched.
template <class Wake>
bool watch(asio::posix::stream_descriptor& watched, int descriptor, const Wake& wake) {
  if (descriptor < 0) return true;
  // A copy, because it is registered with the event loop, which may be destroyed before or after the original.
  const int copy = ::fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) return false;
  asio::error_code code;
  watched.assign(copy, code);
  if (code) {
    ::close(copy);
    return false;
  }
  watched.async_wait(asio::posix::stream_descriptor::wait_read, wake);
  return true;
}

task<> until(happening next) {
  const executor home = co_await asio::this_coro::executor;
  const auto alarm = std::make_shared<asio::steady_timer>(home);
  const auto wake = [weak = std::weak_ptr(alarm)](const asio::error_code&) {
    if (const auto sleeping = weak.lock()) sleeping->cancel();
  };
  asio::posix::stream_descriptor socket(home);
  asio::posix::stream_descriptor handle(home);
  const bool watching = watch(socket, next.socket, wake) && watch(handle, next.handle, wake);
  // For lack of descriptors, for example.
  if (!watching) next.deadline = std::min(next.deadline, clock::now() + between_looks);
  alarm->expires_at(next.deadline);
  asio::error_code woken;
  co_await alarm->async_wait(asio::redirect_error(asio::use_awaitable, woken));
}

// Suspends the caller until somebody resumes what is then in `where`. Cancellation does not reach it.
task<> park_in(std::vector<continuation<>>& where) {
  return asio::async_initiate<const asio::use_awaitable_t<>, void(std::exception_ptr)>(
      [&where](auto handler) {
        const auto home = asio::get_associated_executor(handler);
        auto& registry = detail::registry_of(home);
        where.emplace_back(std::move(handler), registry.get());
      },
      asio::use_awaitable);
}

void resume_all(std::vector<continuation<>>& waiting) {
  for (auto& each : std::exchange(waiting, {})) {
    if (each) each.post();
  }
}

io_error failure(const path& target, std::errc code, const std::string& why) {
  return {"write", target, std::make_error_code(code), why};
}

// Of a format that the helper program knows; empty for others.
std::string description_of(const writing::savefun& save) {
  auto description = save.format() ? save.format()->description() : std::string();
  if (description.size() > writing::helper::longest_text)
    throw option_error("savefun", fmt::format("a format whose description has {} bytes", description.size()),
                       fmt::format("at most {}: shorten the metadata", writing::helper::longest_text));
  return description;
}

// A file on its way. Owned by the line and not by the coroutine that waits for it: the helper reads the image until it
// is done with it, whatever becomes of the coroutine.
struct job {
  std::uint64_t number = 0;
  path target;
  std::optional<file_image> image;
  std::shared_ptr<helper_process> helper;
  path announcement;
  // Set once it is the first in line.
  std::optional<clock::time_point> deadline;
  bool overdue = false;

  bool finished = false;
  write_receipt receipt;
  std::exception_ptr failure;
  std::vector<continuation<>> waiting;
};

// The files on their way, oldest first, and the helpers that have them. Belongs to the training thread.
class line : public std::enable_shared_from_this<line> {
 public:
  line(process_options options, bool one_for_all)
      : options_(std::move(options)),
        one_for_all_(one_for_all),
        memory_({options_.capacity, options_.full, true}),
        turn_(1),
        format_(description_of(options_.savefun)),
        program_(format_.empty() ? options_.savefun.name() : std::string()) {}
  line(const line&) = delete;
  line& operator=(const line&) = delete;

  [[nodiscard]] writing::staging& memory() noexcept { return memory_; }
  [[nodiscard]] const writing::savefun* own_format() const noexcept {
    return options_.savefun ? &options_.savefun : nullptr;
  }

  static task<write_receipt> write(std::shared_ptr<line> self, write_request request);
  static task<> close(std::shared_ptr<line> self);

  // Files that were left behind by an event loop that was destroyed: nobody attends to them, and their memory is in
  // use.
  void settle_abandoned() noexcept {
    if (attended_) return;
    try {
      while (const auto next = step()) block_until(*next);
    } catch (...) {
      give_up(std::current_exception());
    }
  }

 private:
  class presence;
  class attendance;

  static task<file_image> staged(std::shared_ptr<line> self, const write_request& request);
  static task<> attend(std::shared_ptr<line> self, std::unique_ptr<attendance> present);
  void attend_on(const executor& home);

  std::shared_ptr<job> hand_over(const path& target, file_image image);
  void send_waiting();
  [[nodiscard]] bool send(job& next);
  [[nodiscard]] helper_process::delivery deliver(job& next);
  helper_process::delivery send(const job& next, const std::vector<int>& given);
  static void withdraw(job& next) noexcept;
  [[nodiscard]] std::optional<happening> step();
  [[nodiscard]] std::optional<happening> advance(job& first);
  [[nodiscard]] std::optional<happening> see_off(helper_process& leaving);
  void settle(job& first, std::span<const std::byte> message);
  void bury(job& first, const std::string& ending);
  void abandon(job& first);
  void forget(const std::shared_ptr<helper_process>& helper);
  void finish_first();
  void give_up(const std::exception_ptr& failure) noexcept;

  process_options options_;
  bool one_for_all_;
  writing::staging memory_;
  async_semaphore turn_;
  std::string format_;  // what helpers are told
  writing::helper::program program_;
  std::deque<std::shared_ptr<job>> jobs_;
  std::uint64_t numbers_ = 0;
  // The helper for all, if there is one.
  std::shared_ptr<helper_process> common_;
  // Where each file has its own: becomes readable when the newest one is done.
  writing::helper::descriptor last_turn_;
  // A helper that has nothing more to do, and since when.
  std::shared_ptr<helper_process> leaving_;
  std::optional<clock::time_point> leaves_by_;
  bool killed_ = false;
  bool closing_ = false;
  bool attended_ = false;
  std::size_t writing_ = 0;
  std::vector<continuation<>> waiting_for_idleness_;
};

// A call of write that has not ended.
class line::presence {
 public:
  explicit presence(line& used) noexcept : line_(used) { ++line_.writing_; }
  presence(const presence&) = delete;
  presence& operator=(const presence&) = delete;
  ~presence() {
    if (--line_.writing_ == 0) resume_all(line_.waiting_for_idleness_);
  }

 private:
  line& line_;
};

// Somebody attends for as long as the coroutine has this in its frame, also if the event loop destroys that.
class line::attendance {
 public:
  explicit attendance(std::shared_ptr<line> attended) noexcept : line_(std::move(attended)) {}
  attendance(const attendance&) = delete;
  attendance& operator=(const attendance&) = delete;
  ~attendance() {
    line_->attended_ = false;
    resume_all(line_->waiting_for_idleness_);
  }

 private:
  std::shared_ptr<line> line_;  // its own: the order in which a frame lets go of parameters is the compiler's affair
};

path from_root(const path& target) {
  std::error_code code;
  auto full = std::filesystem::absolute(target, code);
  if (code) throw io_error("find the directory of", target, code);
  // The longest that the system takes; also keeps messages to helpers short.
  if (full.native().size() >= PATH_MAX) throw failure(target, std::errc::filename_too_long, "");
  return full;
}

// What a request without an image produces, in shared memory.
task<file_image> line::staged(std::shared_ptr<line> self, const write_request& request) {
  auto slot = co_await self->memory_.acquire(file_image::memory_for(request.size, 0), writing::when_full::wait);
  file_image image(std::move(slot), request.size, 0);
  const auto refuse = [&](std::uint64_t produced) {
    throw failure(request.target, std::errc::invalid_argument,
                  fmt::format("{} bytes were announced, {} were produced", request.size, produced));
  };
  std::uint64_t produced = 0;
  request.produce([&](std::span<const std::byte> part) {
    if (part.size() > request.size - produced) refuse(produced + part.size());
    std::copy(part.begin(), part.end(), image.bytes().begin() + static_cast<std::ptrdiff_t>(produced));
    produced += part.size();
  });
  if (produced != request.size) refuse(produced);
  co_return image;
}

task<write_receipt> line::write(std::shared_ptr<line> self, write_request request) {
  self->settle_abandoned();
  const presence here(*self);
  const executor home = co_await asio::this_coro::executor;
  const path target = from_root(request.target);
  if (!request.image) {
    file_image made = co_await staged(self, request);
    request.image.emplace(std::move(made));
  }
  if (request.replaceable) request.image->slot().hand_over();
  async_semaphore::permit alone;
  if (self->options_.full == writing::when_full::replace) alone = co_await self->turn_.acquire();
  if (!request.image->slot().begin_writing()) {
    throw writing::write_superseded(fmt::format("'{}': a newer file has taken its place", request.target.string()));
  }
  const std::shared_ptr<job> mine = self->hand_over(target, std::move(*request.image));
  request.image.reset();
  self->attend_on(home);
  if (!mine->finished) co_await park_in(mine->waiting);
  if (mine->failure) std::rethrow_exception(mine->failure);
  mine->receipt.target = request.target;
  co_return mine->receipt;
}

task<> line::close(std::shared_ptr<line> self) {
  self->settle_abandoned();
  const executor home = co_await asio::this_coro::executor;
  while (self->writing_ > 0) co_await park_in(self->waiting_for_idleness_);
  self->closing_ = true;
  self->attend_on(home);
  while (self->attended_) co_await park_in(self->waiting_for_idleness_);
}

void line::attend_on(const executor& home) {
  if (attended_) return;
  attended_ = true;
  asio::co_spawn(home, attend(shared_from_this(), std::make_unique<attendance>(shared_from_this())), asio::detached);
}

task<> line::attend(std::shared_ptr<line> self, [[maybe_unused]] std::unique_ptr<attendance> present) {
  try {
    for (auto next = self->step(); next; next = self->step()) co_await until(*next);
  } catch (...) {
    self->give_up(std::current_exception());
  }
}

std::shared_ptr<job> line::hand_over(const path& target, file_image image) {
  auto added = std::make_shared<job>();
  added->number = ++numbers_;
  added->target = target;
  added->image.emplace(std::move(image));
  jobs_.push_back(added);
  send_waiting();
  return added;
}

// In order: those behind one that cannot be sent now have to wait as well.
void line::send_waiting() {
  for (const auto& each : jobs_) {
    if (!each->helper && !each->failure && !send(*each)) return;
  }
}

// False when it has to be tried again later.
bool line::send(job& next) {
  using delivery = helper_process::delivery;
  try {
    auto result = deliver(next);
    const bool idle = &next == jobs_.front().get();
    if (result == delivery::dead && idle) {
      // It died while it had nothing to do. Nobody noticed, and nothing was lost.
      forget(std::exchange(next.helper, nullptr));
      result = deliver(next);
    }
    if (result == delivery::sent) return true;
    next.helper.reset();
    if (!idle) return false;
    throw failure(next.target, std::errc::resource_unavailable_try_again, "a helper process does not take it");
  } catch (...) {
    next.helper.reset();
    next.failure = std::current_exception();
    return true;
  }
}

helper_process::delivery line::deliver(job& next) {
  next.helper = one_for_all_ && common_ ? common_ : helper_process::start(program_, next.target);
  if (one_for_all_) common_ = next.helper;
  std::vector<int> given{next.image->slot().descriptor()};
  std::array<int, 2> turn{-1, -1};
  if (!one_for_all_ && ::pipe2(turn.data(), O_CLOEXEC) != 0) {
    throw io_error("hand to a helper process", next.target, std::error_code(errno, std::generic_category()));
  }
  writing::helper::descriptor end_of_turn(turn[0]);
  const writing::helper::descriptor held_for_turn(turn[1]);
  if (held_for_turn.valid()) given.push_back(held_for_turn.get());
  if (held_for_turn.valid() && last_turn_.valid()) given.push_back(last_turn_.get());
  next.announcement = announce_writing(*writing::posix_file_system(), next.target, next.helper->id());
  auto result = helper_process::delivery::dead;
  try {
    result = send(next, given);
  } catch (...) {
    withdraw(next);
    throw;
  }
  if (result != helper_process::delivery::sent) {
    withdraw(next);
    return result;
  }
  if (!one_for_all_) {
    last_turn_ = std::move(end_of_turn);
    next.helper->finish();
  }
  return result;
}

// What is not handed over is nobody's.
void line::withdraw(job& next) noexcept {
  try {
    if (!next.announcement.empty()) writing::posix_file_system()->remove(next.announcement);
  } catch (...) {  // the next start removes it
  }
  next.announcement.clear();
}

helper_process::delivery line::send(const job& next, const std::vector<int>& given) {
  writing::helper::job_message message;
  message.number = next.number;
  message.size = next.image->size();
  message.spots = next.image->spots().size();
  message.spots_offset = file_image::memory_for(message.size, 0);
  message.target = next.target.string();
  message.announcement = next.announcement.string();
  message.format = format_;
  return next.helper->send(writing::helper::pack(message), given, next.target);
}

// Does what can be done now. Says what has to happen before there is more, or nothing when all is done.
std::optional<happening> line::step() {
  for (;;) {
    if (leaving_) {
      if (const auto next = see_off(*leaving_)) return next;
      leaving_.reset();
    }
    if (!jobs_.empty()) {
      if (const auto next = advance(*jobs_.front())) return next;
      finish_first();
    } else if (std::exchange(closing_, false) && common_) {
      leaving_ = std::exchange(common_, nullptr);
    } else {
      return std::nullopt;
    }
  }
}

// Nothing when the file is done, one way or the other.
std::optional<happening> line::advance(job& first) {
  if (!first.helper && !first.failure) send_waiting();
  if (first.failure) return std::nullopt;
  if (!first.deadline) first.deadline = options_.timeout ? clock::now() + *options_.timeout : clock::time_point::max();
  // In this order: what it said before it ended is there when it has ended.
  const auto ending = first.helper->ending();
  if (const auto message = first.helper->receive()) {
    settle(first, *message);
    return std::nullopt;
  }
  if (ending) {
    bury(first, *ending);
    return std::nullopt;
  }
  if (clock::now() >= *first.deadline) {
    if (first.overdue) {
      abandon(first);
      return std::nullopt;
    }
    first.helper->kill();
    first.overdue = true;
    first.deadline = clock::now() + grace;
  }
  return look_again({first.helper->socket(), first.helper->handle(), *first.deadline});
}

void line::settle(job& first, std::span<const std::byte> message) {
  const auto reply = writing::helper::unpack_reply(message);
  if (!reply || reply->number != first.number) {
    first.helper->kill();
    bury(first, "answered something else");
    return;
  }
  if (reply->what != writing::helper::reply_message::kind::receipt) {
    first.failure = writing::helper::failure_in(*reply);
    return;
  }
  // It was killed for its time, but had done it.
  first.finished = true;
  if (first.overdue) forget(first.helper);
  first.receipt.bytes = reply->bytes;
  first.receipt.write_seconds = reply->write_seconds;
  first.receipt.sync_seconds = reply->sync_seconds;
  first.receipt.commit_seconds = reply->commit_seconds;
}

// What a helper that is no more has left of a file. If that fails, the next start removes it; why the file was not
// written matters more.
void remove_temporaries(const job& of, pid_t helper) noexcept {
  try {
    writing::remove_temporaries_of(*writing::posix_file_system(), of.target, helper);
  } catch (...) {
  }
}

// The helper has ended without an answer.
void line::bury(job& first, const std::string& ending) {
  const auto id = first.helper->id();
  if (first.overdue) {
    const auto limit = std::chrono::ceil<std::chrono::milliseconds>(*options_.timeout).count();
    first.failure = std::make_exception_ptr(
        failure(first.target, std::errc::timed_out,
                fmt::format("it was not durable after {} ms, so helper process {} was killed", limit, id)));
  } else {
    first.failure = std::make_exception_ptr(failure(
        first.target, std::errc::broken_pipe, fmt::format("helper process {} {} before it was done", id, ending)));
  }
  remove_temporaries(first, id);
  forget(first.helper);
}

// It was killed but does not end: it hangs inside the system. It will do nothing more by itself.
void line::abandon(job& first) {
  first.failure = std::make_exception_ptr(failure(
      first.target, std::errc::timed_out,
      fmt::format("helper process {} was killed but hangs in the system; look after the disk", first.helper->id())));
  forget(first.helper);
}

// Whatever else was handed to this helper goes to another one.
void line::forget(const std::shared_ptr<helper_process>& helper) {
  if (common_ == helper) common_.reset();
  for (const auto& each : jobs_) {
    if (each->helper != helper || each->failure || each->finished) continue;
    remove_temporaries(*each, helper->id());
    each->helper.reset();
  }
}

void line::finish_first() {
  const auto first = std::move(jobs_.front());
  jobs_.pop_front();
  if (!one_for_all_) leaving_ = first->helper;
  first->helper.reset();
  first->image.reset();
  first->finished = true;
  if (jobs_.empty()) last_turn_ = writing::helper::descriptor();
  send_waiting();
  resume_all(first->waiting);
}

std::optional<happening> line::see_off(helper_process& leaving) {
  const auto now = clock::now();
  if (!leaves_by_) {
    leaving.finish();
    leaves_by_ = now + grace;
  }
  const bool overdue = now >= *leaves_by_;
  if (leaving.ending() || (overdue && killed_)) {
    leaves_by_.reset();
    killed_ = false;
    return std::nullopt;
  }
  if (overdue) {
    leaving.kill();
    killed_ = true;
    leaves_by_ = now + grace;
  }
  return look_again({-1, leaving.handle(), *leaves_by_});
}

// The trainer itself cannot go on with it, for lack of memory or descriptors.
void line::give_up(const std::exception_ptr& failure) noexcept {
  for (const auto& each : std::exchange(jobs_, {})) {
    if (each->helper) each->helper->kill();
    each->helper.reset();
    each->image.reset();
    each->failure = failure;
    each->finished = true;
    resume_all(each->waiting);
  }
  common_.reset();
  leaving_.reset();
}

class process_writer final : public writing::writer {
 public:
  process_writer(std::string name, process_options options, bool one_for_all)
      : name_(std::move(name)), line_(std::make_shared<line>(std::move(options), one_for_all)) {}

  task<write_receipt> write(write_request request) override {
    writing::require_format(name_, own_format(), static_cast<bool>(request.save_image));
    if (request.save_image && own_format() == nullptr)
      throw option_error("savefun", fmt::format("of a writer around '{}'", name_),
                         "one that the writer inside is given, as a registered function");
    return line::write(line_, std::move(request));
  }
  task<> close() override { return line::close(line_); }
  [[nodiscard]] std::string_view name() const override { return name_; }
  [[nodiscard]] writing::staging* memory() noexcept override {
    line_->settle_abandoned();
    return &line_->memory();
  }
  [[nodiscard]] const writing::savefun* own_format() const noexcept override { return line_->own_format(); }

 private:
  std::string name_;
  std::shared_ptr<line> line_;
};

std::shared_ptr<writing::writer> make(std::string name, process_options options, bool one_for_all) {
  if (options.timeout && options.timeout->count() <= 0) {
    throw option_error("timeout", fmt::format("{} ns", std::chrono::nanoseconds(*options.timeout).count()),
                       "a positive time, or none");
  }
  writing::helper::require_savefun(options.savefun);
  return std::make_shared<process_writer>(std::move(name), std::move(options), one_for_all);
}

}  // namespace

std::shared_ptr<writing::writer> process(process_options options) { return make("process", std::move(options), false); }

std::shared_ptr<writing::writer> process_queue(process_options options) {
  return make("process_queue", std::move(options), true);
}

}  // namespace rondo::writers

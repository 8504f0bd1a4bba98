#include "rondo/writing/posix_output_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "rondo/async/detail/quiet_thread.hpp"
#include "rondo/writing/memory_block.hpp"

namespace rondo::writing::posix {

namespace {

constexpr std::size_t block = 4096;
constexpr std::size_t largest_chunk = std::size_t{8} << 20U;
// Below this many bytes one copy is cheaper than one system call that waits for the disk, or for the page cache.
constexpr std::size_t worth_a_direct_call = std::size_t{1} << 20U;
constexpr std::size_t worth_a_call = std::size_t{64} << 10U;
// Smaller files are written before a thread has been made.
constexpr std::uint64_t worth_a_thread = std::uint64_t{16} << 20U;
// One chunk that is being written and one that is ready, so that the disk never waits for a thread to wake up.
constexpr std::size_t chunks_behind = 2;

std::size_t round_up(std::size_t size) { return (size + block - 1) / block * block; }
std::size_t round_down(std::size_t size) { return size / block * block; }

// One set of buffers is kept for the next file, so that files that come again and again cause no page faults.
class buffer_shelf {
 public:
  memory_block take(std::size_t size) {
    {
      const std::lock_guard lock(mutex_);
      if (kept_.bytes().size() >= size) return std::move(kept_);
    }
    return memory_block(size);
  }
  void put(memory_block block) {
    const std::lock_guard lock(mutex_);
    if (kept_.bytes().size() < block.bytes().size()) std::swap(kept_, block);
  }

 private:
  std::mutex mutex_;
  memory_block kept_;
};

buffer_shelf& shelf() {
  // Never destroyed: a thread that was given up may still be writing when the program ends.
  static auto& kept = *new buffer_shelf;
  return kept;
}

}  // namespace

/// The file, and how to write to it. Used by one thread at a time.
class chunk_output {
 public:
  explicit chunk_output(descriptor file) : file_(std::move(file)), direct_(set_direct(true)) {}

  /// 0, or why the bytes could not be written. Direct writes need whole blocks: an unaligned tail, which only the end
  /// of a file has, goes through the page cache.
  [[nodiscard]] int write(std::span<const std::byte> bytes) noexcept {
    const auto whole = direct_ ? round_down(bytes.size()) : bytes.size();
    if (const int code = write_fully(bytes.first(whole)); code != 0) return code;
    if (whole == bytes.size()) return 0;
    leave_direct();
    return write_fully(bytes.subspan(whole));
  }

  [[nodiscard]] descriptor& file() noexcept { return file_; }
  [[nodiscard]] std::uint64_t written() const noexcept { return written_; }
  /// Any thread. Never becomes true again.
  [[nodiscard]] bool direct() const noexcept { return direct_; }

 private:
  [[nodiscard]] bool set_direct(bool wanted) const noexcept {
    const int flags = ::fcntl(file_.get(), F_GETFL);
    return flags >= 0 && ::fcntl(file_.get(), F_SETFL, wanted ? flags | O_DIRECT : flags & ~O_DIRECT) == 0 && wanted;
  }
  void leave_direct() noexcept { direct_ = set_direct(false); }

  [[nodiscard]] int write_fully(std::span<const std::byte> bytes) noexcept {
    while (!bytes.empty()) {
      const auto count = ::write(file_.get(), bytes.data(), bytes.size());
      if (count < 0 && errno == EINTR) continue;
      if (count < 0 && errno == EINVAL && direct_) {
        leave_direct();
        continue;
      }
      if (count <= 0) return count < 0 ? errno : EIO;
      const auto done = static_cast<std::size_t>(count);
      if (direct_ && done % block != 0) leave_direct();
      written_ += done;
      bytes = bytes.subspan(done);
    }
    return 0;
  }

  descriptor file_;
  std::uint64_t written_ = 0;
  std::atomic<bool> direct_;
};

/// Where bytes are gathered until they make a chunk. As many as can be on their way, and one to be filled.
class chunk_buffers {
 public:
  explicit chunk_buffers(std::size_t chunk, std::size_t count)
      : memory_(shelf().take(chunk * count)), chunk_(chunk), count_(count) {}
  chunk_buffers(const chunk_buffers&) = delete;
  chunk_buffers& operator=(const chunk_buffers&) = delete;
  ~chunk_buffers() { shelf().put(std::move(memory_)); }

  [[nodiscard]] std::byte* current() const noexcept { return memory_.bytes().data() + at_ * chunk_; }
  void next() noexcept { at_ = (at_ + 1) % count_; }

 private:
  memory_block memory_;
  std::size_t chunk_;
  std::size_t count_;
  std::size_t at_ = 0;
};

/// A thread that writes chunk after chunk. After one has failed the others are dropped.
class write_behind {
 public:
  explicit write_behind(chunk_output& output) : output_(output), thread_(detail::quiet_thread([this] { run(); })) {}
  write_behind(const write_behind&) = delete;
  write_behind& operator=(const write_behind&) = delete;
  /// Waits for the chunk that is being written, not for others.
  ~write_behind() {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  /// Waits for room. The bytes must stay as they are until so many others were put as can be on their way. Yields the
  /// reason of a failure so far.
  [[nodiscard]] int put(std::span<const std::byte> bytes) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return count_ < chunks_behind; });
    waiting_[(first_ + count_) % chunks_behind] = bytes;
    ++count_;
    changed_.notify_all();
    return failure_;
  }

  /// Waits until all is written. Yields the reason of a failure.
  [[nodiscard]] int drain() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return count_ == 0; });
    return failure_;
  }

  [[nodiscard]] int failure() {
    const std::lock_guard lock(mutex_);
    return failure_;
  }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return count_ > 0 || ending_; });
      if (ending_) return;
      const auto bytes = waiting_[first_];
      if (failure_ == 0) {
        lock.unlock();
        const int code = output_.write(bytes);
        lock.lock();
        failure_ = code;
      }
      first_ = (first_ + 1) % chunks_behind;
      --count_;
      changed_.notify_all();
    }
  }

  chunk_output& output_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::array<std::span<const std::byte>, chunks_behind> waiting_;
  std::size_t first_ = 0;
  std::size_t count_ = 0;
  int failure_ = 0;
  bool ending_ = false;
  std::thread thread_;
};

posix_output_file::posix_output_file(descriptor file, path name, std::uint64_t expected_size)
    : name_(std::move(name)),
      expected_size_(expected_size),
      chunk_(expected_size == 0
                 ? largest_chunk
                 : round_up(static_cast<std::size_t>(std::clamp<std::uint64_t>(expected_size, 1, largest_chunk)))),
      output_(std::make_unique<chunk_output>(std::move(file))) {}

posix_output_file::~posix_output_file() = default;

void posix_output_file::append(std::span<const std::byte> bytes) { add(bytes, false); }
void posix_output_file::append_stable(std::span<const std::byte> bytes) { add(bytes, true); }

void posix_output_file::sync() {
  expect_usable("sync");
  finish();
  if (uninterrupted([&] { return ::fdatasync(output_->file().get()); }) != 0) give_up("sync", errno);
}

void posix_output_file::close() {
  expect_usable("close");
  finish();
  behind_.reset();
  // Linux has closed the file even when a signal interrupted close, so that is no failure and never retried.
  if (::close(output_->file().release()) != 0 && errno != EINTR) give_up("close", errno);
}

void posix_output_file::expect_usable(const char* operation) {
  if (dead_ != 0) throw failure(operation, name_, dead_, "the file was given up after an earlier failure");
  if (!output_->file().valid()) throw failure(operation, name_, EBADF, "the file is closed");
  if (const int code = behind_ ? behind_->failure() : 0; code != 0) give_up("write", code);
}

void posix_output_file::give_up(const char* operation, int code) {
  dead_ = code;
  // Idle, because nothing is written after a failure; this makes its count of bytes visible here.
  if (behind_) (void)behind_->drain();
  const auto missing = std::max(expected_size_, output_->written()) - output_->written();
  throw failure(operation, name_, code, advice_for(code, name_, missing));
}

void posix_output_file::write_behind_if_worth_it(std::size_t next) {
  if (behind_ || std::max(expected_size_, appended_ + next) <= worth_a_thread) return;
  behind_ = std::make_unique<write_behind>(*output_);
  const auto single = std::move(buffers_);
  chunk_ = largest_chunk;
  if (const auto gathered = std::exchange(staged_, 0); gathered > 0) stage({single->current(), gathered});
}

std::size_t posix_output_file::writable_without_copy(std::span<const std::byte> bytes, bool stable) const noexcept {
  // What may change after the call must be written during the call, or be copied.
  if (behind_ && !stable) return 0;
  if (!output_->direct()) return bytes.size() >= worth_a_call ? bytes.size() : 0;
  const bool aligned = reinterpret_cast<std::uintptr_t>(bytes.data()) % block == 0 && staged_ % block == 0;
  const auto worth = behind_ ? worth_a_direct_call : worth_a_call;
  return aligned && bytes.size() >= worth ? std::min(largest_chunk, round_down(bytes.size())) : 0;
}

void posix_output_file::add(std::span<const std::byte> bytes, bool stable) {
  expect_usable("write");
  write_behind_if_worth_it(bytes.size());
  appended_ += bytes.size();
  while (!bytes.empty()) {
    if (const auto straight = writable_without_copy(bytes, stable); straight > 0) {
      if (staged_ > 0) flush();
      put(bytes.first(straight));
      bytes = bytes.subspan(straight);
    } else {
      bytes = bytes.subspan(stage(bytes));
      if (staged_ == chunk_) flush();
    }
  }
}

std::size_t posix_output_file::stage(std::span<const std::byte> bytes) {
  if (!buffers_) buffers_ = std::make_unique<chunk_buffers>(chunk_, behind_ ? chunks_behind + 1 : 1);
  const auto count = std::min(bytes.size(), chunk_ - staged_);
  std::memcpy(buffers_->current() + staged_, bytes.data(), count);
  staged_ += count;
  return count;
}

void posix_output_file::flush() {
  const std::span<const std::byte> bytes(buffers_->current(), std::exchange(staged_, 0));
  buffers_->next();
  put(bytes);
}

void posix_output_file::put(std::span<const std::byte> bytes) {
  const int code = behind_ ? behind_->put(bytes) : output_->write(bytes);
  if (code != 0) give_up("write", code);
}

void posix_output_file::finish() {
  if (staged_ > 0) flush();
  if (const int code = behind_ ? behind_->drain() : 0; code != 0) give_up("write", code);
  if (output_->written() >= expected_size_) return;
  const auto size = static_cast<off_t>(output_->written());
  if (uninterrupted([&] { return ::ftruncate(output_->file().get(), size); }) != 0) give_up("truncate", errno);
}

}  // namespace rondo::writing::posix

#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "rondo/async/task.hpp"
#include "rondo/async/worker.hpp"
#include "rondo/checkpoint/image.hpp"

namespace rondo::writing {

/// What happens to a snapshot that comes while as many as allowed are still on their way to disk.
enum class when_full {
  wait,     ///< training waits until one is durable
  skip,     ///< it is not taken
  replace,  ///< it takes the place of the newest one whose writing has not begun; if all have begun, training waits
};

/// A block of staging memory that holds one file on its way to disk. It is free again when its last owner lets go, on
/// whatever thread. Every function but the two first belongs to the training thread.
class staging_slot {
 public:
  virtual ~staging_slot() = default;
  /// Aligned to a page, already backed by memory. Empty once a newer file has taken the slot's place.
  [[nodiscard]] virtual std::span<std::byte> memory() const noexcept = 0;
  /// The memory as a file that another process can map; -1 when the staging is not shared.
  [[nodiscard]] virtual int descriptor() const noexcept = 0;

  /// Called by the writer when it is given the file: from now on nobody fills the memory any more, and a newer file may
  /// take its place (`when_full::replace`).
  virtual void hand_over() noexcept = 0;
  /// Called by the writer when it begins with this file. False: a newer file has taken its place.
  [[nodiscard]] virtual bool begin_writing() noexcept = 0;
  /// Called by the writer when it stops waiting for whoever writes this file and may still read the memory. The slot is
  /// free when they let go; nobody waits for that.
  virtual void give_up() noexcept = 0;
};

/// A whole file in staging memory, complete but for its checksums (see `checkpoint::seal`).
class file_image {
 public:
  file_image(std::shared_ptr<staging_slot> slot, std::uint64_t size, std::uint64_t spots) noexcept
      : slot_(std::move(slot)), size_(size), spots_(spots) {}

  /// How much staging memory an image needs: the file, behind it, at the next multiple of 8, its spots.
  [[nodiscard]] static std::uint64_t memory_for(std::uint64_t size, std::uint64_t spots) noexcept {
    return spots_offset(size) + spots * sizeof(checkpoint::checksum_spot);
  }
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
  [[nodiscard]] std::span<std::byte> bytes() const noexcept {
    return slot_->memory().first(static_cast<std::size_t>(size_));
  }
  [[nodiscard]] std::span<checkpoint::checksum_spot> spots() const noexcept {
    auto* const first = slot_->memory().data() + spots_offset(size_);
    return {reinterpret_cast<checkpoint::checksum_spot*>(first), static_cast<std::size_t>(spots_)};
  }
  [[nodiscard]] staging_slot& slot() const noexcept { return *slot_; }

 private:
  [[nodiscard]] static std::uint64_t spots_offset(std::uint64_t size) noexcept { return (size + 7) / 8 * 8; }

  std::shared_ptr<staging_slot> slot_;
  std::uint64_t size_;
  std::uint64_t spots_;
};

struct staging_options {
  /// How many files may be held at the same time, the one that is being written included. At least 1.
  std::size_t capacity = 2;
  when_full full = when_full::wait;
  /// Whether another process must be able to map the memory.
  bool shared = false;
};

/// The memory in which files wait for their writer: allocated once, backed at once (huge pages where there are any),
/// used again and again, never more than `capacity` blocks. A block grows when a larger file needs it; the old one goes
/// first, so that at no time more than `capacity` times the largest file is held, each rounded up to 2 MiB.
///
/// Everything here belongs to the training thread and, while somebody waits, to one event loop at a time. Slots may be
/// released by any thread and outlive the staging.
class staging {
 public:
  /// Nothing is allocated yet. Throws option_error("capacity", …) for 0.
  explicit staging(staging_options options);
  ~staging();
  staging(const staging&) = delete;
  staging& operator=(const staging&) = delete;

  /// A slot with `bytes` or more. Completes at once when one is free or may be allocated (large blocks are allocated
  /// and backed on the copier's thread, and then it completes from the event loop); otherwise as `when_full` says:
  /// nullptr for skip. Those who wait are served in the order of the calls.
  ///
  /// Cancellation while waiting throws operation_aborted. Throws std::bad_alloc when there is no memory, io_error when
  /// shared memory cannot be made, and io_error (timed_out) when every block belongs to a write that was given up.
  [[nodiscard]] task<std::shared_ptr<staging_slot>> acquire(std::uint64_t bytes);

  /// The same under another rule than that of the options.
  [[nodiscard]] task<std::shared_ptr<staging_slot>> acquire(std::uint64_t bytes, when_full full);

  /// Sees to it, in the background, that the next `acquire` of so many bytes finds memory that has been backed.
  /// Completes when it is so, or when no more blocks are allowed. Failures are left for `acquire` to meet. An `acquire`
  /// meanwhile waits for it, whatever `when_full` says, when it needs the same block.
  [[nodiscard]] task<> prepare(std::uint64_t bytes);

  /// Bytes of memory held now.
  [[nodiscard]] std::uint64_t bytes() const noexcept;
  /// The most bytes ever held.
  [[nodiscard]] std::uint64_t peak_bytes() const noexcept;

  /// The thread that copies into the memory while training goes on.
  [[nodiscard]] worker& copier() noexcept;

  [[nodiscard]] const staging_options& options() const noexcept;

 private:
  class pool;
  class slot;
  std::shared_ptr<pool> pool_;
  std::shared_ptr<worker> copier_;
};

}  // namespace rondo::writing

#pragma once

#include <memory>
#include <vector>

#include "rondo/checkpoint/encoder.hpp"
#include "rondo/checkpoint/tensors.hpp"
#include "rondo/state/value.hpp"

namespace rondo::checkpoint {

/// Describes one state after another, such as those of a training's snapshots, and lays each out as a file. What has
/// not changed since the last one is not done again: as long as trees have the same shape and keys and tensors the same
/// geometry and shared storages, only numbers, bytes, the info and the tensors themselves are renewed. The file is the
/// same as `describe` and `encoder` make. Not tied to a thread, but to one at a time.
class planner {
 public:
  planner();
  ~planner();
  planner(planner&&) noexcept;
  planner& operator=(planner&&) noexcept;

  /// Plans the file of `state`. No tensor's bytes are read or copied, except to carry out a pending conjugation or
  /// negation. Throws as `describe` and `encoder` do; then there is no plan, and the next one starts afresh.
  void plan(const state::value& state, snapshot_info info);

  /// The file that was planned last. Its storages' bytes are known only for those on the CPU, so `write` is possible
  /// only if all are and until `release`; `write_frame`, `storage_offset` and `checksum_spots` always. Valid until the
  /// next `plan`. Throws `std::logic_error` when there is none.
  [[nodiscard]] const encoder& file() const;
  /// The same for whoever needs it longer, on any thread. It stays as it is but for the storages' bytes, which are not
  /// known after `release`.
  [[nodiscard]] std::shared_ptr<const encoder> shared_file() const;
  /// The storages of that file, in the order of `encoder::storage_offset`. `tensor` is a tensor of the storage,
  /// whatever its device; `data` shows the live memory of those on the CPU and is empty for others; `size` is that of
  /// the record.
  [[nodiscard]] const std::vector<described_storage>& storages() const;
  /// Whether the last plan could build upon the one before.
  [[nodiscard]] bool reused() const noexcept;

  /// Lets go of the tensors, which may be much memory, once their bytes have been copied. `storages` is empty then
  /// until the next plan, which can still build upon this one.
  void release();

 private:
  struct planned;
  std::unique_ptr<planned> planned_;
  bool reused_ = false;
};

}  // namespace rondo::checkpoint

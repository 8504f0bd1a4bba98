#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_set>
#include <vector>

#include "rondo/checkpoint/planner.hpp"
#include "rondo/writing/staging.hpp"

namespace rondo::extensions {

/// Storages that nobody changes between two updates: parameters and the state of optimizers.
using resting_storages = std::unordered_set<const c10::StorageImpl*>;

/// Memory of the process that nobody else uses, for a file that is built in memory although its writer has none.
[[nodiscard]] std::shared_ptr<writing::staging_slot> ordinary_memory(std::uint64_t bytes);

/// The storages of all tensors in `state`.
void add_storages(const state::value& state, resting_storages& to);

/// A planned state on its way into staging memory. What training may change at any time is copied at once, the rest when
/// `copy_rest` is called, which may be on another thread while nobody makes an update.
class capture {
 public:
  /// Copies everything but CPU storages in `resting` and the file's frame. `slot` has room for
  /// `file_image::memory_for(plan.file().size(), plan.file().checksum_count())`. `plan` is not needed afterwards.
  capture(const checkpoint::planner& plan, std::shared_ptr<writing::staging_slot> slot,
          const resting_storages& resting);

  /// Once, on any thread. The image is complete then.
  void copy_rest() const;

  /// On the training thread, after `copy_rest`. Throws `state_error` naming a tensor that was changed in place since the
  /// construction, for then the copy may be a mixture.
  void require_unchanged() const;

  [[nodiscard]] const writing::file_image& image() const noexcept { return image_; }

 private:
  struct later {
    at::Tensor tensor;  // keeps the memory
    std::uint64_t version;
    std::string name;
    std::span<const std::byte> from;
    std::byte* to;
  };

  std::shared_ptr<const checkpoint::encoder> file_;
  writing::file_image image_;
  std::vector<later> later_;
};

}  // namespace rondo::extensions

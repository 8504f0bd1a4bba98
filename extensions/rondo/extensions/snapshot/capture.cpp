#include "rondo/extensions/snapshot/capture.hpp"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/GradMode.h>
#include <c10/core/Storage.h>

#include <algorithm>
#include <cstring>

namespace rondo::extensions {

namespace {

/// Copies a storage that is not in the CPU's memory, and waits for it.
void copy_from_device(const at::Tensor& tensor, std::byte* to) {
  const c10::AutoGradMode no_grad(false);
  const auto size = static_cast<std::int64_t>(tensor.storage().nbytes());
  const auto bytes = at::empty({0}, tensor.options().dtype(at::kByte)).set_(tensor.storage(), 0, {size}, {1});
  at::from_blob(to, {size}, at::TensorOptions(at::kByte)).copy_(bytes);
}

class ordinary_slot final : public writing::staging_slot {
 public:
  explicit ordinary_slot(std::uint64_t bytes)
      : size_(static_cast<std::size_t>(bytes)), memory_(std::make_unique_for_overwrite<std::byte[]>(size_)) {}

  [[nodiscard]] std::span<std::byte> memory() const noexcept override { return {memory_.get(), size_}; }
  [[nodiscard]] int descriptor() const noexcept override { return -1; }
  void hand_over() noexcept override {}
  [[nodiscard]] bool begin_writing() noexcept override { return true; }
  void give_up() noexcept override {}

 private:
  std::size_t size_;
  std::unique_ptr<std::byte[]> memory_;
};

/// Tensors of inference mode have no version that would tell of changes.
bool can_be_watched(const at::Tensor& tensor) { return !tensor.is_inference(); }

}  // namespace

std::shared_ptr<writing::staging_slot> ordinary_memory(std::uint64_t bytes) {
  return std::make_shared<ordinary_slot>(bytes);
}

void add_storages(const state::value& state, resting_storages& to) {
  if (const auto* tensor = state.get_if<at::Tensor>()) {
    if (tensor->defined() && tensor->has_storage()) to.insert(tensor->storage().unsafeGetStorageImpl());
    return;
  }
  const auto* items = state.get_if<state::list>();
  if (const auto* fixed = state.get_if<state::tuple>()) items = &fixed->items;
  if (items != nullptr)
    for (const auto& item : *items) add_storages(item, to);
  if (const auto* dict = state.get_if<state::dict>())
    for (const auto& item : *dict) add_storages(item.second, to);
}

capture::capture(const checkpoint::planner& plan, std::shared_ptr<writing::staging_slot> slot,
                 const resting_storages& resting)
    : file_(plan.shared_file()), image_(std::move(slot), file_->size(), file_->checksum_count()) {
  const auto bytes = image_.bytes();
  const auto& storages = plan.storages();
  for (std::size_t i = 0; i < storages.size(); ++i) {
    const auto& storage = storages[i];
    std::byte* const to = bytes.data() + file_->storage_offset(i);
    const bool rests = resting.contains(storage.tensor.storage().unsafeGetStorageImpl());
    if (!storage.tensor.device().is_cpu()) {
      copy_from_device(storage.tensor, to);
    } else if (rests && can_be_watched(storage.tensor)) {
      later_.push_back(
          {storage.tensor, static_cast<std::uint64_t>(storage.tensor._version()), storage.name, storage.data, to});
    } else if (!storage.data.empty()) {
      std::memcpy(to, storage.data.data(), storage.data.size());
    }
  }
}

void capture::copy_rest() const {
  file_->write_frame(image_.bytes());
  std::ranges::copy(file_->checksum_spots(), image_.spots().begin());
  for (const auto& each : later_)
    if (!each.from.empty()) std::memcpy(each.to, each.from.data(), each.from.size());
}

void capture::require_unchanged() const {
  for (const auto& each : later_)
    if (static_cast<std::uint64_t>(each.tensor._version()) != each.version)
      throw state_error(
          each.name,
          "was changed in place while a snapshot was being copied, outside of the loop's updates; whoever "
          "does that awaits ctx.exclusive_state() first");
}

}  // namespace rondo::extensions

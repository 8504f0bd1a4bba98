#include "rondo/checkpoint/planner.hpp"

#include <c10/core/GradMode.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "rondo/checkpoint/live_storages.hpp"
#include "rondo/checkpoint/outline.hpp"
#include "rondo/checkpoint/pickle_writer.hpp"
#include "rondo/checkpoint/tensor_table.hpp"

namespace rondo::checkpoint {

namespace {

/// What `pickle_writer` asks about tensors.
class surveyed_tensors {
 public:
  std::optional<tensor_view> survey(const at::Tensor& tensor, const std::string& path) {
    if (!tensor.defined()) return std::nullopt;
    views_.push_back(storages_.add(tensor, path));
    table_.add(path, views_.back().storage_key);
    return views_.back();
  }
  std::optional<tensor_view> again(const at::Tensor& tensor) {
    if (!tensor.defined()) return std::nullopt;
    auto& view = views_[next_++];
    view.storage_key = storages_.all()[view.storage].key;
    return view;
  }

  [[nodiscard]] const std::vector<tensor_view>& views() const noexcept { return views_; }
  [[nodiscard]] std::string take_table() { return std::move(table_).take(); }
  [[nodiscard]] std::vector<described_storage> take_storages() { return std::move(storages_).take(); }

 private:
  live_storages storages_;
  tensor_table table_;
  std::vector<tensor_view> views_;
  std::size_t next_ = 0;
};

std::vector<storage> views_of(const std::vector<described_storage>& storages) {
  std::vector<storage> views;
  views.reserve(storages.size());
  for (const auto& s : storages) views.push_back({s.key, s.data, s.size});
  return views;
}

bool keep_their_sizes(const std::vector<changed_scalar>& changes, const std::vector<scalar_place>& places) {
  return std::ranges::all_of(changes, [&](const changed_scalar& c) { return places[c.index].size == c.size; });
}

/// The pickle with the changed scalars in it, whose places are then right again.
std::vector<std::byte> changed_pickle(std::vector<std::byte> old, std::vector<scalar_place>& places,
                                      const outline_comparison& comparison) {
  const auto& changes = comparison.changes();
  const auto bytes_of = [&](const changed_scalar& c) {
    return std::span(comparison.changed_bytes()).subspan(c.begin, c.size);
  };
  if (keep_their_sizes(changes, places)) {
    for (const auto& c : changes)
      std::ranges::copy(bytes_of(c), old.begin() + static_cast<std::ptrdiff_t>(places[c.index].begin));
    return old;
  }

  std::vector<std::byte> result;
  result.reserve(old.size() + comparison.changed_bytes().size());
  const auto append = [&](std::span<const std::byte> bytes) {
    result.insert(result.end(), bytes.begin(), bytes.end());
  };
  std::size_t copied = 0;
  auto change = changes.begin();
  for (std::size_t i = 0; i < places.size(); ++i) {
    auto& place = places[i];
    append(std::span(old).subspan(copied, place.begin - copied));
    const bool changed = change != changes.end() && change->index == i;
    const auto bytes = changed ? bytes_of(*change++) : std::span(old).subspan(place.begin, place.size);
    copied = place.begin + place.size;
    place = {result.size(), bytes.size()};
    append(bytes);
  }
  append(std::span(old).subspan(copied));
  return result;
}

}  // namespace

struct planner::planned {
  planned(const state::value& state, const snapshot_info& info) : planned(state, info, surveyed_tensors()) {}

  /// Whether `state` could be planned upon what is known. If not, this is of no more use.
  [[nodiscard]] bool renew(const state::value& state, const snapshot_info& info) {
    have_file_alone();
    outline_comparison comparison(shape, file->pickle_, scalars, known, storages);
    if (!comparison.matches(state)) return false;
    for (std::size_t i = 0; i < storages.size(); ++i) file->storages_[i].data = storages[i].data;
    file->renew(changed_pickle(std::move(file->pickle_), scalars, comparison), info);
    released = false;
    return true;
  }

  void release() {
    for (auto& s : storages) {
      s.tensor.reset();
      s.data = {};
    }
    for (auto& s : file->storages_) s.data = {};
    released = true;
  }

  std::vector<scalar_place> scalars;
  std::vector<described_storage> storages;
  std::vector<known_storage> known;
  outline shape;
  std::shared_ptr<encoder> file;
  bool released = false;

 private:
  planned(const state::value& state, const snapshot_info& info, surveyed_tensors tensors)
      : file(new encoder(describe(state, tensors), info, "archive")) {}

  // What somebody else still needs is left to them.
  void have_file_alone() {
    if (file.use_count() > 1) file = std::make_shared<encoder>(*file);
    std::atomic_thread_fence(std::memory_order_acquire);  // whoever had it, on another thread, is done with it
  }

  encoder::description describe(const state::value& state, surveyed_tensors& tensors) {
    auto pickle = pickle_writer<at::Tensor, surveyed_tensors>(tensors).write(state);
    scalars = std::move(pickle.scalars);
    shape = outline(state, tensors.views());
    storages = tensors.take_storages();
    known.reserve(storages.size());
    for (const auto& s : storages) known.push_back({live_storages::identity_of(s.tensor), false});
    return {std::move(pickle.bytes), views_of(storages), tensors.take_table()};
  }
};

planner::planner() = default;
planner::~planner() = default;
planner::planner(planner&&) noexcept = default;
planner& planner::operator=(planner&&) noexcept = default;

void planner::plan(const state::value& state, snapshot_info info) {
  const c10::AutoGradMode no_grad(false);
  reused_ = false;
  auto last = std::exchange(planned_, nullptr);
  if (last && last->renew(state, info)) {
    planned_ = std::move(last);
    reused_ = true;
    return;
  }
  last.reset();
  planned_ = std::make_unique<planned>(state, info);
}

const encoder& planner::file() const {
  if (!planned_) throw std::logic_error("nothing has been planned");
  return *planned_->file;
}

std::shared_ptr<const encoder> planner::shared_file() const {
  if (!planned_) throw std::logic_error("nothing has been planned");
  return planned_->file;
}

const std::vector<described_storage>& planner::storages() const {
  static const std::vector<described_storage> none;
  if (!planned_) throw std::logic_error("nothing has been planned");
  return planned_->released ? none : planned_->storages;
}

bool planner::reused() const noexcept { return reused_; }

void planner::release() {
  if (planned_) planned_->release();
}

}  // namespace rondo::checkpoint

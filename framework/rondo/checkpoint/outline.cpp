#include "rondo/checkpoint/outline.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <variant>

#include "rondo/state/bits.hpp"

namespace rondo::checkpoint {

// ---- the first time

class outline::recorder {
 public:
  recorder(outline& to, std::span<const tensor_view> tensors) : to_(to), tensors_(tensors) {}

  void visit(const state::value& v) {
    std::visit([this](const auto& content) { record(content); }, v.data());
  }

 private:
  template <class Scalar>
  void record(const Scalar&) {
    add(kind::scalar);
  }
  void record(const state::bytes&) { add(kind::bytes); }
  void record(const std::string& text) { add_text(kind::text, text); }
  void record(const state::list& items) {
    add(kind::list, items.size());
    for (const auto& item : items) visit(item);
  }
  void record(const state::tuple& items) {
    add(kind::tuple, items.items.size());
    for (const auto& item : items.items) visit(item);
  }
  void record(const state::dict& items) {
    add(kind::dict, items.size());
    for (const auto& [key, item] : items) {
      if (key.is_integer()) {
        add(kind::integer_key);
        to_.numbers_.push_back(key.integer());
      } else {
        add_text(kind::text_key, key.text());
      }
      visit(item);
    }
  }
  void record(const at::Tensor& tensor) {
    if (!tensor.defined()) return add(kind::scalar);
    const auto& view = tensors_[next_++];
    to_.steps_.push_back(
        {kind::tensor, tensor.scalar_type(), static_cast<std::uint32_t>(view.sizes.size()), view.storage});
    to_.numbers_.push_back(view.storage_numel);
    to_.numbers_.push_back(view.storage_offset);
    to_.numbers_.insert(to_.numbers_.end(), view.sizes.begin(), view.sizes.end());
    to_.numbers_.insert(to_.numbers_.end(), view.strides.begin(), view.strides.end());
  }

  void add(kind what, std::size_t number = 0) { to_.steps_.push_back({what, at::kByte, 0, number}); }
  void add_text(kind what, std::string_view text) {
    add(what, text.size());
    to_.texts_ += text;
  }

  outline& to_;
  std::span<const tensor_view> tensors_;
  std::size_t next_ = 0;
};

outline::outline(const state::value& state, std::span<const tensor_view> tensors) {
  recorder(*this, tensors).visit(state);
}

// ---- the next time

outline_comparison::outline_comparison(const outline& last, std::span<const std::byte> pickle,
                                       std::span<const scalar_place> scalars, std::vector<known_storage>& known,
                                       std::vector<described_storage>& storages)
    : last_(last), pickle_(pickle), scalars_(scalars), known_(known), storages_(storages) {}

bool outline_comparison::matches(const state::value& state) {
  for (auto& storage : known_) storage.seen = false;
  return visit(state) && all_different();
}

bool outline_comparison::visit(const state::value& v) {
  return std::visit([this](const auto& content) { return same(content); }, v.data());
}

// None, truth values and numbers may take each other's places.
template <class Scalar>
bool outline_comparison::same(const Scalar& scalar) {
  if (next(kind::scalar) == nullptr) return false;
  take_scalar(scalar);
  return true;
}

bool outline_comparison::same(const state::bytes& bytes) {
  if (next(kind::bytes) == nullptr || bytes.data.size() > max_bytes_size) return false;
  take_scalar(bytes);
  return true;
}

bool outline_comparison::same(const std::string& text) { return same_text(kind::text, text); }

bool outline_comparison::same(const state::list& items) {
  return next_is(kind::list, items.size()) && same_items(items);
}

bool outline_comparison::same(const state::tuple& items) {
  return next_is(kind::tuple, items.items.size()) && same_items(items.items);
}

bool outline_comparison::same(const state::dict& items) {
  return next_is(kind::dict, items.size()) && std::all_of(items.begin(), items.end(), [this](const auto& item) {
           return same_key(item.first) && visit(item.second);
         });
}

bool outline_comparison::same(const at::Tensor& tensor) {
  if (!tensor.defined()) return same(std::monostate());
  const auto* step = next(kind::tensor);
  if (step == nullptr || tensor.scalar_type() != step->type || !state::has_plain_bytes(tensor)) return false;
  if (!is_pending(tensor)) return same_geometry(tensor, *step) && same_storage(tensor, *step);
  const at::Tensor finished = carried_out(tensor);
  return same_geometry(finished, *step) && same_storage(finished, *step);
}

bool outline_comparison::same_items(const state::list& items) {
  return std::all_of(items.begin(), items.end(), [this](const state::value& item) { return visit(item); });
}

bool outline_comparison::same_key(const state::key& key) {
  if (!key.is_integer()) return same_text(kind::text_key, key.text());
  return next(kind::integer_key) != nullptr && last_.numbers()[number_++] == key.integer();
}

bool outline_comparison::same_text(kind what, std::string_view text) {
  if (!next_is(what, text.size())) return false;
  const auto known = last_.texts().substr(text_, text.size());
  text_ += text.size();
  return known == text;
}

bool outline_comparison::same_geometry(const at::Tensor& tensor, const outline::step& step) {
  const auto dimensions = static_cast<std::size_t>(step.dimensions);
  const auto sizes = tensor.sizes();
  if (sizes.size() != dimensions) return false;
  const auto numbers = std::span(last_.numbers()).subspan(number_, 2 + 2 * dimensions);
  number_ += numbers.size();
  const auto element = static_cast<std::size_t>(tensor.element_size());
  // The file leaves out the bytes behind the last whole element.
  const auto bytes = tensor.storage().nbytes();
  const auto whole = static_cast<std::size_t>(numbers[0]) * element;
  return bytes >= whole && bytes - whole < element && tensor.storage_offset() == numbers[1] &&
         std::equal(sizes.begin(), sizes.end(), numbers.begin() + 2) &&
         std::ranges::equal(tensor.strides(), numbers.subspan(2 + dimensions));
}

// A storage may be another one than last time, as long as the same tensors share it.
bool outline_comparison::same_storage(const at::Tensor& tensor, const outline::step& step) {
  const auto id = live_storages::identity_of(tensor);
  auto& known = known_[step.number];
  if (known.seen) return known.id == id;
  known.seen = true;
  if (!(known.id == id)) {
    known.id = id;
    moved_.push_back(step.number);
  }
  auto& storage = storages_[step.number];
  if (!storage.tensor.is_same(tensor)) storage.tensor = tensor;
  show_memory(storage);
  return true;
}

// Whether the storages that are others than last time are all different from each other and from the rest.
bool outline_comparison::all_different() const {
  constexpr std::size_t few = 8;
  if (moved_.size() <= few)
    return std::ranges::all_of(
        moved_, [this](std::size_t i) { return std::ranges::count(known_, known_[i].id, &known_storage::id) == 1; });
  state::position_index index;
  index.reserve(known_.size());
  for (std::size_t i = 0; i < known_.size(); ++i) {
    const auto& id = known_[i].id;
    const auto hash = live_storages::hash_of(id);
    if (index.find(hash, [&](std::size_t k) { return known_[k].id == id; }) != state::position_index::npos)
      return false;
    index.insert(hash, i);
  }
  return true;
}

const outline::step* outline_comparison::next(kind what) {
  const auto& step = last_.steps()[step_++];
  return step.what == what ? &step : nullptr;
}

bool outline_comparison::next_is(kind what, std::size_t number) {
  const auto* step = next(what);
  return step != nullptr && step->number == number;
}

template <class Scalar>
void outline_comparison::take_scalar(const Scalar& scalar) {
  one_.clear();
  one_.write(scalar);
  const auto& now = one_.bytes();
  const auto& place = scalars_[scalar_++];
  if (std::ranges::equal(now, pickle_.subspan(place.begin, place.size))) return;
  changes_.push_back({scalar_ - 1, changed_.size(), now.size()});
  changed_.insert(changed_.end(), now.begin(), now.end());
}

}  // namespace rondo::checkpoint

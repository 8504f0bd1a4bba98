#include "rondo/checkpoint/tensors.hpp"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/GradMode.h>
#include <c10/core/Storage.h>
#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>

#include "rondo/state/bits.hpp"

namespace rondo::checkpoint {

namespace {

struct type_pair {
  at::ScalarType torch;
  scalar_type file;
};

constexpr std::array<type_pair, 12> types{{
    {at::kByte, scalar_type::uint8},
    {at::kChar, scalar_type::int8},
    {at::kShort, scalar_type::int16},
    {at::kInt, scalar_type::int32},
    {at::kLong, scalar_type::int64},
    {at::kHalf, scalar_type::float16},
    {at::kFloat, scalar_type::float32},
    {at::kDouble, scalar_type::float64},
    {at::kComplexFloat, scalar_type::complex64},
    {at::kComplexDouble, scalar_type::complex128},
    {at::kBool, scalar_type::boolean},
    {at::kBFloat16, scalar_type::bfloat16},
}};

std::optional<scalar_type> file_type(at::ScalarType type) {
  for (const auto& pair : types)
    if (pair.torch == type) return pair.file;
  return std::nullopt;
}

at::ScalarType torch_type(scalar_type type) {
  for (const auto& pair : types)
    if (pair.file == type) return pair.torch;
  throw state_error("", fmt::format("no tensor has the element type {}", name(type)));
}

// ---- To the file ----

class describer {
 public:
  tree visit(const state::value& v) {
    return std::visit([this](const auto& content) { return convert(content); }, v.data());
  }

  std::vector<described_storage> storages;

 private:
  /// A file can show a storage under one dtype only, so each dtype makes a storage of its own.
  struct storage_id {
    const void* storage;
    at::ScalarType type;
    bool operator==(const storage_id&) const = default;
  };
  struct storage_id_hash {
    std::size_t operator()(const storage_id& id) const noexcept {
      return std::hash<const void*>()(id.storage) * 31 + static_cast<std::size_t>(id.type);
    }
  };

  template <class Plain>
  tree convert(const Plain& plain) {
    if constexpr (std::is_same_v<Plain, std::monostate>)
      return {};
    else
      return plain;
  }

  tree convert(const state::list& items) {
    tree::list result;
    result.reserve(items.size());
    for (std::size_t i = 0; i < items.size(); ++i) result.push_back(below(std::to_string(i), items[i]));
    return result;
  }
  tree convert(const state::tuple& items) { return tree::tuple{std::move(convert(items.items).as<tree::list>())}; }
  tree convert(const state::dict& items) {
    tree::dict result;
    result.reserve(items.size());
    for (const auto& [key, item] : items) result.insert_or_assign(key, below(key.str(), item));
    return result;
  }

  tree convert(const at::Tensor& given) {
    if (!given.defined()) return {};
    if (const char* why = nullptr; !state::has_plain_bytes(given, &why)) throw state_error(path_, why);
    const auto type = file_type(given.scalar_type());
    if (!type)
      throw state_error(path_, fmt::format("PyTorch's files know no dtype {}; convert the tensor to another one",
                                           c10::toString(given.scalar_type())));
    const at::Tensor tensor = given.is_conj() || given.is_neg() ? given.resolve_conj().resolve_neg() : given;

    tensor_descriptor result;
    result.dtype = *type;
    result.storage_key = key_of(tensor);
    result.storage_numel = static_cast<std::int64_t>(tensor.storage().nbytes()) / element_size(*type);
    result.storage_offset = tensor.storage_offset();
    result.sizes = tensor.sizes().vec();
    result.strides = tensor.strides().vec();
    return result;
  }

  const std::string& key_of(const at::Tensor& tensor) {
    const storage_id id{tensor.storage().unsafeGetStorageImpl(), tensor.scalar_type()};
    const auto [known, is_new] = index_.try_emplace(id, storages.size());
    if (is_new) add_storage(tensor);
    return storages[known->second].key;
  }

  void add_storage(const at::Tensor& tensor) {
    described_storage added;
    added.key = std::to_string(storages.size());
    added.name = path_;
    added.tensor = tensor;
    const std::size_t whole = tensor.storage().nbytes();
    // The bytes behind the last whole element belong to a view under another dtype.
    const std::size_t size = whole - whole % tensor.element_size();
    const at::Storage* memory = &tensor.storage();
    if (!tensor.device().is_cpu() && size != 0) {
      added.copy = bytes_of(tensor).cpu();
      memory = &added.copy.storage();
    }
    if (size != 0) added.data = {static_cast<const std::byte*>(memory->data()), size};
    storages.push_back(std::move(added));
  }

  static at::Tensor bytes_of(const at::Tensor& tensor) {
    const auto size = static_cast<std::int64_t>(tensor.storage().nbytes());
    return at::empty({0}, tensor.options().dtype(at::kByte)).set_(tensor.storage(), 0, {size}, {1});
  }

  tree below(std::string_view key, const state::value& v) {
    const std::size_t length = path_.size();
    if (length != 0) path_ += '.';
    path_ += key;
    tree result = visit(v);
    path_.resize(length);
    return result;
  }

  std::string path_;
  std::unordered_map<storage_id, std::size_t, storage_id_hash> index_;
};

// ---- From the file ----

class materializer {
 public:
  explicit materializer(const reader& file) : file_(file) {}

  state::value visit(const tree& v) {
    return std::visit([this](const auto& content) { return convert(content); }, v.data());
  }

 private:
  template <class Plain>
  state::value convert(const Plain& plain) {
    if constexpr (std::is_same_v<Plain, std::monostate>)
      return {};
    else
      return plain;
  }
  state::value convert(const tree::list& items) {
    state::list result;
    result.reserve(items.size());
    for (const tree& item : items) result.push_back(visit(item));
    return result;
  }
  state::value convert(const tree::tuple& items) {
    return state::tuple{std::move(convert(items.items).as<state::list>())};
  }
  state::value convert(const tree::dict& items) {
    state::dict result;
    result.reserve(items.size());
    for (const auto& [key, item] : items) result.insert_or_assign(key, visit(item));
    return result;
  }
  state::value convert(const tensor_descriptor& described) {
    const at::Tensor& whole = storage_of(described);
    at::Tensor view = at::empty({0}, whole.options());
    return view.set_(whole.storage(), described.storage_offset, described.sizes, described.strides);
  }

  /// The storage as a flat tensor that owns a copy of the bytes.
  const at::Tensor& storage_of(const tensor_descriptor& described) {
    const std::span<const std::byte> bytes = file_.storage(described);  // checks this view, so always asked
    at::Tensor& whole = storages_[{described.storage_key, described.dtype, described.storage_numel}];
    if (!whole.defined()) {
      whole = at::empty({described.storage_numel}, at::TensorOptions(torch_type(described.dtype)));
      if (!bytes.empty()) std::memcpy(whole.data_ptr(), bytes.data(), bytes.size());
    }
    return whole;
  }

  const reader& file_;
  std::map<std::tuple<std::string, scalar_type, std::int64_t>, at::Tensor> storages_;
};

std::optional<std::int64_t> as_integer(std::string_view text) {
  std::int64_t number = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (failure != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

const tree* child(const tree& node, std::string_view key) {
  const auto number = as_integer(key);
  if (const auto* items = node.get_if<tree::dict>()) {
    if (const tree* found = items->find(key)) return found;
    return number ? items->find(*number) : nullptr;
  }
  const auto* items = node.get_if<tree::list>();
  if (const auto* fixed = node.get_if<tree::tuple>()) items = &fixed->items;
  if (items == nullptr || !number || *number < 0 || static_cast<std::size_t>(*number) >= items->size()) return nullptr;
  return &(*items)[static_cast<std::size_t>(*number)];
}

/// Keys may hold dots themselves ("0.weight"), so every way to cut the path is tried, longest key first.
const tree* find(const tree& node, std::string_view path) {
  if (path.empty()) return &node;
  for (std::size_t length = path.size(); length != std::string_view::npos && length != 0;
       length = path.rfind('.', length - 1)) {
    const tree* next = child(node, path.substr(0, length));
    if (next == nullptr) continue;
    if (length == path.size()) return next;
    if (const tree* found = find(*next, path.substr(length + 1))) return found;
  }
  return nullptr;
}

}  // namespace

std::vector<storage> described::views() const {
  std::vector<storage> all;
  all.reserve(storages.size());
  for (const auto& s : storages) all.push_back({s.key, s.data});
  return all;
}

described describe(const state::value& state) {
  const c10::AutoGradMode no_grad(false);
  describer work;
  described result;
  result.tree = work.visit(state);
  result.storages = std::move(work.storages);
  return result;
}

state::value materialize(const reader& file) {
  const c10::AutoGradMode no_grad(false);
  return materializer(file).visit(file.state());
}

at::Tensor load_tensor(const reader& file, std::string_view name) {
  const tree* found = find(file.state(), name);
  if (found == nullptr)
    throw state_error(std::string(name), fmt::format("'{}' holds nothing of this name", file.where()));
  const auto* described = found->get_if<tensor_descriptor>();
  if (described == nullptr)
    throw state_error(std::string(name), fmt::format("expected Tensor, found {}", found->type_name()));
  const std::span<const std::byte> bytes = file.storage(*described);
  const at::TensorOptions options(torch_type(described->dtype));
  at::Tensor result = at::empty(described->sizes, options);
  if (result.numel() == 0) return result;
  // LibTorch knows no read-only tensors; this one is only read.
  auto* const first = const_cast<std::byte*>(bytes.data()) + described->storage_offset * element_size(described->dtype);
  const c10::AutoGradMode no_grad(false);
  return result.copy_(at::from_blob(first, described->sizes, described->strides, options));
}

}  // namespace rondo::checkpoint

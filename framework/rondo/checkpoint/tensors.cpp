#include "rondo/checkpoint/tensors.hpp"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/Storage.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mman.h>

#include <array>
#include <charconv>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>

#include "rondo/checkpoint/crc32.hpp"
#include "rondo/checkpoint/live_storages.hpp"
#include "rondo/checkpoint/parallel_read.hpp"
#include "rondo/checkpoint/verify.hpp"
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

  live_storages storages;

 private:
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
    const auto view = storages.add(given, path_);
    tensor_descriptor result;
    result.dtype = view.dtype;
    result.storage_key = view.storage_key;
    result.storage_numel = view.storage_numel;
    result.storage_offset = view.storage_offset;
    result.sizes.assign(view.sizes.begin(), view.sizes.end());
    result.strides.assign(view.strides.begin(), view.strides.end());
    return result;
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
};

/// Shows the bytes of a storage that is not the CPU's by a copy.
void copy_to_cpu(described_storage& storage) {
  const at::Tensor& t = storage.tensor;
  const auto size = static_cast<std::int64_t>(t.storage().nbytes());
  storage.copy = at::empty({0}, t.options().dtype(at::kByte)).set_(t.storage(), 0, {size}, {1}).cpu();
  storage.data = {static_cast<const std::byte*>(storage.copy.storage().data()), static_cast<std::size_t>(storage.size)};
}

// ---- From the file ----

/// Memory of the file's bytes, which are to be read into it. In huge pages where it is large, because giving out small
/// ones takes longer than reading.
at::Tensor allocate(const tensor_descriptor& described) {
  const at::Tensor memory = at::empty({described.storage_numel}, at::TensorOptions(torch_type(described.dtype)));
  constexpr std::uintptr_t huge_page = std::uintptr_t{2} << 20;
  const auto begin = (reinterpret_cast<std::uintptr_t>(memory.data_ptr()) + huge_page - 1) / huge_page * huge_page;
  const auto end = (reinterpret_cast<std::uintptr_t>(memory.data_ptr()) + memory.nbytes()) / huge_page * huge_page;
  // Only a hint.
  if (begin < end) static_cast<void>(::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE));
  return memory;
}

std::span<std::byte> memory_of(const at::Tensor& contiguous) {
  return {static_cast<std::byte*>(contiguous.data_ptr()), contiguous.nbytes()};
}

/// The bytes of a tensor's storage on their way out of a checkpoint.
class record_loader {
 public:
  explicit record_loader(const reader& file) : file_(file) {}

  /// Throws `format_error` for a tensor that the file cannot hold.
  void check(const tensor_descriptor& described) const { static_cast<void>(file_.storage(described)); }

  /// Memory for the storage of a tensor that has been checked, and the plan to read it.
  [[nodiscard]] at::Tensor storage(const tensor_descriptor& described) {
    at::Tensor whole = allocate(described);
    add(described, memory_of(whole));
    return whole;
  }

  /// Plans to read the storage's bytes from `first` on into `to`. The tensor has been checked.
  void add(const tensor_descriptor& described, std::span<std::byte> to, std::uint64_t first = 0) {
    const auto& place = entry_of(described);
    const auto record = file_.storage(described);
    const auto offset = static_cast<std::uint64_t>(record.data() - file_.records().file().data());
    loads_.push_back({&place, parts_.size()});
    // What is not wanted is read for the checksum of the record.
    parts_.push_back({offset, first, nullptr});
    parts_.push_back({offset + first, to.size(), to.data()});
    parts_.push_back({offset + first + to.size(), place.size - first - to.size(), nullptr});
  }

  /// Names of the records that are planned to be read.
  [[nodiscard]] record_names names() const {
    record_names result;
    for (const auto& load : loads_) result.insert(load.record->path.substr(file_.root().size() + 1));
    return result;
  }

  /// Reads everything planned. With checksums, throws `format_error` for the first record that is damaged, with
  /// `consequence` added to what it says.
  void run(read_checksums checksums, const char* consequence = "") {
    if (checksums == read_checksums::skip)
      std::erase_if(parts_, [](const read_part& part) { return part.to == nullptr; });
    read_parts(
        parts_, [this](std::uint64_t offset, std::span<std::byte> out) { file_.read(offset, out); },
        at::get_num_threads(), checksums);
    if (checksums == read_checksums::skip || !file_.records().has_checksums()) return;
    for (const auto& [record, first_part] : loads_)
      if (checksum_of(first_part) != record->crc32)
        throw format_error(file_.where(), record->header_offset,
                           fmt::format("record '{}' is damaged: wrong checksum{}", record->path, consequence));
  }

 private:
  struct load {
    const archive::entry* record;
    std::size_t first_part;
  };

  [[nodiscard]] const archive::entry& entry_of(const tensor_descriptor& described) const {
    const auto path = fmt::format("{}/{}", file_.root(), storage_record(described.storage_key));
    if (const auto* found = file_.records().find(path)) return *found;
    throw format_error(file_.where(), 0, fmt::format("there is no record '{}'", path));
  }

  [[nodiscard]] std::uint32_t checksum_of(std::size_t first_part) const {
    std::uint32_t result = 0;
    for (const auto& part : std::span(parts_).subspan(first_part, 3))
      result = joined_crc32(result, part.crc32, part.size);
    return result;
  }

  const reader& file_;
  std::vector<load> loads_;
  std::vector<read_part> parts_;
};

/// The same for a safetensors file.
class safetensors_loader {
 public:
  explicit safetensors_loader(const safetensors_file& file) : file_(file) {}

  void check(const tensor_descriptor& described) const { static_cast<void>(file_.storage(described)); }
  [[nodiscard]] at::Tensor storage(const tensor_descriptor& described) {
    at::Tensor whole = allocate(described);
    const auto offset = static_cast<std::uint64_t>(file_.storage(described).data() - file_.file().data());
    const auto to = memory_of(whole);
    parts_.push_back({offset, to.size(), to.data()});
    return whole;
  }
  void run() {
    read_parts(
        parts_, [this](std::uint64_t offset, std::span<std::byte> out) { file_.read(offset, out); },
        at::get_num_threads(), read_checksums::skip);
  }

 private:
  const safetensors_file& file_;
  std::vector<read_part> parts_;
};

/// Leaves the bytes where they are.
class record_viewer {
 public:
  explicit record_viewer(const reader& file) : file_(file) {}

  void check(const tensor_descriptor& described) const { static_cast<void>(file_.storage(described)); }
  [[nodiscard]] at::Tensor storage(const tensor_descriptor& described) const {
    // LibTorch knows no read-only tensors; this one is only read.
    auto* const bytes = const_cast<std::byte*>(file_.storage(described).data());
    return at::from_blob(bytes, {described.storage_numel}, at::TensorOptions(torch_type(described.dtype)));
  }

 private:
  const reader& file_;
};

at::Tensor view_of(const at::Tensor& whole, const tensor_descriptor& described) {
  at::Tensor view = at::empty({0}, whole.options());
  return view.set_(whole.storage(), described.storage_offset, described.sizes, described.strides);
}

/// Builds a state whose tensors view the storages that the loader gives.
template <class Loader>
class materializer {
 public:
  explicit materializer(Loader& loader) : loader_(loader) {}

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
    return state::tuple{std::move(convert(items.items).template as<state::list>())};
  }
  state::value convert(const tree::dict& items) {
    state::dict result;
    result.reserve(items.size());
    for (const auto& [key, item] : items) result.insert_or_assign(key, visit(item));
    return result;
  }
  state::value convert(const tensor_descriptor& described) {
    loader_.check(described);  // every view, also of a storage that is known
    at::Tensor& whole = storages_[{described.storage_key, described.dtype, described.storage_numel}];
    if (!whole.defined()) whole = loader_.storage(described);
    return view_of(whole, described);
  }

  Loader& loader_;
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

// ---- From the file into tensors that exist ----

struct destination {
  std::string name;
  at::Tensor target;
  const tensor_descriptor* source = nullptr;
};

/// Pairs every destination with what the file has under its name.
class matcher {
 public:
  explicit matcher(const reader& file) : file_(file) {}

  std::vector<destination> match(const state::dict& destinations) && {
    visit(destinations, "");
    if (!problems_.empty())
      throw state_error(
          problems_.size() == 1 ? first_name_ : "",
          fmt::format("'{}' does not fit what it is to be loaded into ({} problem{}; nothing was changed): {}",
                      file_.where(), problems_.size(), problems_.size() == 1 ? "" : "s", fmt::join(problems_, "; ")));
    return std::move(found_);
  }

 private:
  void visit(const state::dict& items, const std::string& prefix) {
    for (const auto& [key, item] : items) {
      const std::string name = prefix + key.str();
      if (const auto* nested = item.get_if<state::dict>())
        visit(*nested, name + ".");
      else if (const auto* target = item.get_if<at::Tensor>())
        add(name, *target);
      else
        report(name, fmt::format("expected a Tensor to load into, found {}", item.type_name()));
    }
  }

  void add(const std::string& name, const at::Tensor& target) {
    const tree* node = find(file_.state(), name);
    if (node == nullptr) return report(name, "is missing in the file");
    const auto* source = node->get_if<tensor_descriptor>();
    if (source == nullptr) return report(name, fmt::format("the file has {} there, no Tensor", node->type_name()));
    if (auto problem = mismatch(target, *source); !problem.empty()) return report(name, problem);
    found_.push_back({name, target, source});
  }

  static std::string mismatch(const at::Tensor& target, const tensor_descriptor& source) {
    if (const char* why = nullptr; !target.defined() || !state::has_plain_bytes(target, &why))
      return fmt::format("the destination is {}", target.defined() ? why : "undefined");
    if (target.is_inference() && !c10::InferenceMode::is_enabled())
      return "the destination is an inference tensor, which may not be changed";
    if (overlaps_itself(target)) return "elements of the destination share memory (an expanded tensor)";
    if (target.sizes() != at::IntArrayRef(source.sizes))
      return fmt::format("expected shape [{}], found [{}]", fmt::join(target.sizes(), ", "),
                         fmt::join(source.sizes, ", "));
    if (!c10::canCast(torch_type(source.dtype), target.scalar_type()))
      return fmt::format("expected dtype {}, found {}", c10::toString(target.scalar_type()),
                         c10::toString(torch_type(source.dtype)));
    return {};
  }

  static bool overlaps_itself(const at::Tensor& t) {
    if (t.numel() == 0) return false;
    for (std::int64_t d = 0; d < t.dim(); ++d)
      if (t.size(d) > 1 && t.stride(d) == 0) return true;
    return false;
  }

  void report(const std::string& name, const std::string& problem) {
    if (problems_.empty()) first_name_ = name;
    problems_.push_back(fmt::format("{}: {}", name, problem));
  }

  const reader& file_;
  std::vector<destination> found_;
  std::vector<std::string> problems_;
  std::string first_name_;
};

bool is_contiguous(const tensor_descriptor& t) {
  std::int64_t expected = 1;
  for (std::size_t d = t.sizes.size(); d-- > 0;) {
    if (t.sizes[d] == 0) return true;
    if (t.sizes[d] != 1 && t.strides[d] != expected) return false;
    expected *= t.sizes[d];
  }
  return true;
}

/// Reads all destinations: in place where nothing else is needed, the others by way of their whole storage.
class in_place_loading {
 public:
  in_place_loading(const reader& file, std::vector<destination> all) : file_(file), direct_(file) {
    std::unordered_map<std::string_view, std::size_t> readers;
    std::unordered_map<const void*, std::size_t> writers;
    for (const auto& d : all) {
      direct_.check(*d.source);
      ++readers[d.source->storage_key];
      ++writers[d.target.storage().unsafeGetStorageImpl()];
    }
    for (auto& d : all) {
      // Two that share memory, here or there, are not read at the same time.
      const bool alone = readers[d.source->storage_key] == 1 && writers[d.target.storage().unsafeGetStorageImpl()] == 1;
      if (alone && fits_in_place(d))
        add_in_place(d);
      else
        by_storage_[{storage_record(d.source->storage_key), d.source->dtype, d.source->storage_numel}].push_back(d);
    }
  }

  /// Names of the records that will be read.
  [[nodiscard]] record_names names() const {
    record_names result = direct_.names();
    for (const auto& [storage, unused] : by_storage_) result.insert(std::get<0>(storage));
    return result;
  }

  void run(read_checksums checksums) {
    constexpr const char* consequence = "; the tensors that it was loaded into are partly overwritten";
    for (const auto& target : in_place_) target.unsafeGetTensorImpl()->bump_version();
    direct_.run(checksums, consequence);
    for (const auto& [unused, views] : by_storage_) {
      const at::Tensor whole = allocate(*views.front().source);
      record_loader loader(file_);
      loader.add(*views.front().source, memory_of(whole));
      loader.run(checksums, consequence);
      for (const auto& d : views) d.target.copy_(view_of(whole, *d.source));
    }
  }

 private:
  static bool fits_in_place(const destination& d) {
    return d.target.device().is_cpu() && d.target.is_contiguous() && !d.target.is_conj() && !d.target.is_neg() &&
           d.target.scalar_type() == torch_type(d.source->dtype) && is_contiguous(*d.source);
  }

  void add_in_place(const destination& d) {
    // The offset of an empty view may lead anywhere.
    const auto first = d.target.numel() == 0 ? 0 : d.source->storage_offset * element_size(d.source->dtype);
    direct_.add(*d.source, memory_of(d.target), static_cast<std::uint64_t>(first));
    in_place_.push_back(d.target);
  }

  const reader& file_;
  record_loader direct_;
  std::vector<at::Tensor> in_place_;
  std::map<std::tuple<std::string, scalar_type, std::int64_t>, std::vector<destination>> by_storage_;
};

}  // namespace

std::optional<scalar_type> file_type(at::ScalarType type) noexcept {
  for (const auto& pair : types)
    if (pair.torch == type) return pair.file;
  return std::nullopt;
}

at::Tensor carried_out(const at::Tensor& t) { return t.resolve_conj().resolve_neg(); }

void show_memory(described_storage& storage) {
  const at::Tensor& t = storage.tensor;
  storage.data = {};
  if (t.device().is_cpu() && storage.size != 0)
    storage.data = {static_cast<const std::byte*>(t.storage().data()), static_cast<std::size_t>(storage.size)};
}

std::size_t live_storages::hash_of(const identity& id) noexcept {
  return std::hash<const void*>()(id.storage) * 31 + static_cast<std::size_t>(id.type);
}

tensor_view live_storages::add(const at::Tensor& given, const std::string& path) {
  if (const char* why = nullptr; !state::has_plain_bytes(given, &why)) throw state_error(path, why);
  const auto type = file_type(given.scalar_type());
  if (!type)
    throw state_error(path, fmt::format("PyTorch's files know no dtype {}; convert the tensor to another one",
                                        c10::toString(given.scalar_type())));
  at::Tensor resolved;
  if (is_pending(given)) resolved = carried_out(given);
  const at::Tensor& tensor = resolved.defined() ? resolved : given;

  const auto id = identity_of(tensor);
  auto number = index_.find(hash_of(id), [&](std::size_t i) { return identities_[i] == id; });
  if (number == state::position_index::npos) {
    number = identities_.size();
    index_.insert(hash_of(id), number);
    identities_.push_back(id);
    add_storage(tensor, path);
  }
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  return {*type,
          number,
          storages_[number].key,
          static_cast<std::int64_t>(tensor.storage().nbytes()) / element_size(*type),
          tensor.storage_offset(),
          {sizes.data(), sizes.size()},
          {strides.data(), strides.size()}};
}

void live_storages::add_storage(const at::Tensor& tensor, const std::string& path) {
  auto& added = storages_.emplace_back();
  added.key = std::to_string(storages_.size() - 1);
  added.name = path;
  added.tensor = tensor;
  const std::size_t whole = tensor.storage().nbytes();
  // The bytes behind the last whole element belong to a view under another dtype.
  added.size = whole - whole % tensor.element_size();
  show_memory(added);
}

std::vector<storage> described::views() const {
  std::vector<storage> all;
  all.reserve(storages.size());
  for (const auto& s : storages) all.push_back({s.key, s.data, s.size});
  return all;
}

described describe(const state::value& state) {
  const c10::AutoGradMode no_grad(false);
  describer work;
  described result;
  result.tree = work.visit(state);
  result.storages = std::move(work.storages).take();
  for (auto& storage : result.storages)
    if (storage.data.empty() && storage.size != 0) copy_to_cpu(storage);
  return result;
}

state::value materialize(const reader& file) {
  const c10::AutoGradMode no_grad(false);
  record_loader loader(file);
  state::value result = materializer(loader).visit(file.state());
  loader.run(read_checksums::skip);
  return result;
}

state::value materialize_verified(const reader& file) {
  const c10::AutoGradMode no_grad(false);
  record_loader loader(file);
  state::value result = materializer(loader).visit(file.state());
  verify_except(file, loader.names());
  loader.run(read_checksums::compute);
  return result;
}

state::value view_state(const reader& file) {
  const c10::AutoGradMode no_grad(false);
  record_viewer viewer(file);
  return materializer(viewer).visit(file.state());
}

state::value materialize(const safetensors_file& file) {
  const c10::AutoGradMode no_grad(false);
  safetensors_loader loader(file);
  state::value result = materializer(loader).visit(file.state());
  loader.run();
  return result;
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

void load_into(const reader& file, const state::dict& destinations, load_checks checks) {
  const c10::AutoGradMode no_grad(false);
  in_place_loading loading(file, matcher(file).match(destinations));
  if (checks == load_checks::whole_file) verify_except(file, loading.names());
  loading.run(checks == load_checks::none ? read_checksums::skip : read_checksums::compute);
}

}  // namespace rondo::checkpoint

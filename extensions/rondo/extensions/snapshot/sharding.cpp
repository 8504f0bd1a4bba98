#include "rondo/extensions/snapshot/sharding.hpp"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/intrusive_ptr.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include "rondo/checkpoint/live_storages.hpp"
#include "rondo/checkpoint/tensors.hpp"
#include "rondo/state/bits.hpp"
#include "rondo/state/position_index.hpp"
#include "rondo/state/sharded_tensor.hpp"

namespace rondo::extensions {

namespace {

using checkpoint::box_view;
using checkpoint::pieced_tensor;
using checkpoint::tree;
using state::sharded_tensor;

constexpr std::int64_t smallest_in_pieces = 4096;  // bytes; sharded tensors are in pieces whatever their size
constexpr std::int64_t smallest_piece = 16 * 1024;
constexpr std::int64_t pieces_of_tensor = 512;
constexpr std::int64_t receipt_version = 1;

// ---- What is kept in pieces ----

/// A place in the state where a tensor is kept in pieces.
struct leaf {
  std::string path;
  const at::Tensor* whole = nullptr;    // the same on all ranks
  std::optional<sharded_tensor> parts;  // where `whole` is null
  at::ScalarType dtype = at::kFloat;
  at::IntArrayRef sizes;
  std::int64_t bytes = 0;
  std::size_t first = 0;  // the first leaf that is the same tensor
  std::uint64_t fingerprint = 0;

  [[nodiscard]] std::int64_t rows() const { return sizes.empty() ? 1 : sizes[0]; }
};

std::int64_t byte_size(at::IntArrayRef sizes, at::ScalarType dtype) {
  return checkpoint::volume({sizes.data(), sizes.size()}).value_or(0) *
         static_cast<std::int64_t>(c10::elementSize(dtype));
}

std::string text_of(at::IntArrayRef sizes) { return fmt::format("[{}]", fmt::join(sizes, ", ")); }

std::string text_of(const leaf& l) {
  return fmt::format("{}{} {}", l.whole == nullptr ? "sharded " : "", c10::toString(l.dtype), text_of(l.sizes));
}

std::string text_of(const box_view& box) {
  return fmt::format("[{}] from [{}] on", fmt::join(box.sizes, ", "), fmt::join(box.offsets, ", "));
}

// FNV-1a: ranks may run on other machines, so that it must be the same everywhere.
class hasher {
 public:
  void add(std::string_view text) {
    for (const char c : text) state_ = (state_ ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  }
  void add(std::int64_t number) {
    for (int shift = 0; shift < 64; shift += 8)
      state_ = (state_ ^ (static_cast<std::uint64_t>(number) >> shift & 0xff)) * 0x100000001b3u;
  }
  [[nodiscard]] std::uint32_t result() const { return static_cast<std::uint32_t>(state_ ^ state_ >> 32); }

 private:
  std::uint64_t state_ = 0xcbf29ce484222325u;
};

bool is_whole_in_pieces(const at::Tensor& t) {
  return t.defined() && t.numel() * static_cast<std::int64_t>(t.element_size()) >= smallest_in_pieces;
}

bool is_same_tensor(const at::Tensor& a, const at::Tensor& b) {
  return a.is_alias_of(b) && a.storage_offset() == b.storage_offset() && a.scalar_type() == b.scalar_type() &&
         a.sizes() == b.sizes() && a.strides() == b.strides() && a.is_conj() == b.is_conj() && a.is_neg() == b.is_neg();
}

/// Finds the leaves, in the order of the tree.
class survey {
 public:
  explicit survey(const state::value& state) { visit(state); }

  std::vector<leaf> leaves;

 private:
  void visit(const state::value& v) {
    if (const auto* tensor = v.get_if<at::Tensor>()) {
      if (is_whole_in_pieces(*tensor)) add(*tensor);
      return;
    }
    if (const auto* dict = v.get_if<state::dict>()) {
      if (sharded_tensor::is(v)) return add_sharded(v);
      for (const auto& [key, item] : *dict) key.is_integer() ? below(key.str(), item) : below(key.text(), item);
      return;
    }
    const auto* items = v.get_if<state::list>();
    if (const auto* tuple = v.get_if<state::tuple>()) items = &tuple->items;
    for (std::size_t i = 0; items != nullptr && i < items->size(); ++i) below(std::to_string(i), (*items)[i]);
  }

  void below(std::string_view key, const state::value& v) {
    const auto length = path_.size();
    if (length != 0) path_ += '.';
    path_ += key;
    visit(v);
    path_.resize(length);
  }

  void add(const at::Tensor& tensor) {
    leaf l;
    l.path = path_;
    l.whole = &tensor;
    l.dtype = tensor.scalar_type();
    l.sizes = tensor.sizes();
    require_storable(tensor);
    append(std::move(l));
  }

  void add_sharded(const state::value& v) {
    leaf l;
    l.path = path_;
    try {
      l.parts = sharded_tensor::from(v);
    } catch (const state_error& e) {
      throw e.under(path_);
    }
    l.dtype = l.parts->dtype;
    l.sizes = l.parts->sizes;
    if (!checkpoint::volume(l.parts->sizes))
      throw state_error(path_, fmt::format("a tensor {} is impossible", text_of(l.sizes)));
    for (const auto& piece : l.parts->pieces) require_storable(piece.tensor);
    append(std::move(l));
  }

  void require_storable(const at::Tensor& tensor) const {
    if (const char* why = nullptr; !state::has_plain_bytes(tensor, &why)) throw state_error(path_, why);
    if (!checkpoint::file_type(tensor.scalar_type()))
      throw state_error(path_, fmt::format("PyTorch's files know no dtype {}; convert the tensor to another one",
                                           c10::toString(tensor.scalar_type())));
  }

  void append(leaf l) {
    l.bytes = byte_size(l.sizes, l.dtype);
    l.first = l.whole == nullptr ? leaves.size() : first_of(*l.whole);
    hasher name;
    name.add(l.path);
    hasher shape;
    shape.add(std::int64_t{l.whole == nullptr});
    shape.add(static_cast<std::int64_t>(l.dtype));
    shape.add(static_cast<std::int64_t>(l.first));
    for (const auto size : l.sizes) shape.add(size);
    l.fingerprint = std::uint64_t{name.result()} << 32 | shape.result();
    leaves.push_back(std::move(l));
  }

  std::size_t first_of(const at::Tensor& tensor) {
    const auto hash = std::hash<const void*>()(tensor.storage().unsafeGetStorageImpl()) * 31 +
                      static_cast<std::size_t>(tensor.storage_offset());
    const auto known = known_.find(hash, [&](std::size_t i) { return is_same_tensor(*leaves[i].whole, tensor); });
    if (known != state::position_index::npos) return known;
    known_.insert(hash, leaves.size());
    return leaves.size();
  }

  std::string path_;
  state::position_index known_;
};

/// How many pieces a part of these sizes is cut into.
std::int64_t piece_count(const leaf& l, at::IntArrayRef part) {
  const auto rows = part.empty() ? 1 : part[0];
  const auto wanted = byte_size(part, l.dtype) / std::max(smallest_piece, l.bytes / pieces_of_tensor);
  return std::clamp<std::int64_t>(wanted, 1, std::max<std::int64_t>(rows, 1));
}

/// The first row of piece `piece` of `count`.
std::int64_t first_row(std::int64_t rows, std::int64_t piece, std::int64_t count) {
  return rows / count * piece + rows % count * piece / count;
}

// ---- A rank's share ----

/// Where the line of all tensors that are the same on all ranks is cut.
class line {
 public:
  line(const std::vector<leaf>& leaves, int world_size) : ranks_(world_size) {
    for (std::size_t i = 0; i < leaves.size(); ++i)
      if (leaves[i].whole != nullptr && leaves[i].first == i) total_ += leaves[i].bytes;
  }

  /// The rows of the next tensor on the line from which rank `rank` writes.
  [[nodiscard]] std::int64_t first_row_of(int rank, const leaf& l) const {
    const auto cut = first_row(total_, rank, ranks_);
    const auto row = l.bytes / l.rows();
    if (rank == ranks_ || cut >= at_ + l.bytes) return l.rows();
    if (cut <= at_) return 0;
    return (cut - at_ + row / 2) / row;
  }
  void step_over(const leaf& l) { at_ += l.bytes; }

 private:
  std::int64_t ranks_;
  std::int64_t total_ = 0;
  std::int64_t at_ = 0;
};

void release_tensor(void* impl) { c10::raw::intrusive_ptr::decref(static_cast<at::TensorImpl*>(impl)); }

/// A tensor of `sizes` over memory of `base`, which it keeps alive.
at::Tensor window(const at::Tensor& base, char* data, at::IntArrayRef sizes) {
  auto* const impl = base.unsafeGetTensorImpl();
  c10::raw::intrusive_ptr::incref(impl);
  const auto options = at::TensorOptions(base.scalar_type()).device(base.device());
  auto result = at::for_blob(data, sizes)
                    .context(impl, release_tensor)
                    .target_device(base.device())
                    .options(options)
                    .make_tensor();
  if (!base.is_inference()) result.unsafeGetTensorImpl()->set_version_counter(impl->version_counter());
  return result;
}

bool is_plain(const at::Tensor& t) { return t.is_contiguous() && !checkpoint::is_pending(t); }

}  // namespace

/// A part of a tensor as it was cut.
struct sharer::cut_part {
  at::Tensor base;
  const char* data;
  std::vector<std::int64_t> sizes;
  std::vector<at::Tensor> pieces;

  /// Whether nothing but the content is another one in the part of `now` of these sizes that begins at `begin`. A
  /// tensor of the same storage with another version counter is one that somebody has set apart.
  [[nodiscard]] bool is_of(const at::Tensor& now, const char* begin, const std::vector<std::int64_t>& now_sizes) const {
    return data == begin && sizes == now_sizes && base.is_alias_of(now) && base.scalar_type() == now.scalar_type() &&
           base._version() == now._version();
  }
};

class sharer::builder {
 public:
  builder(sharer& owner, const storages& resting, const std::vector<leaf>& leaves, int rank, int world_size)
      : owner_(owner), resting_(resting) {
    put(receipt_version);
    put(rank);
    put(world_size);
    put(static_cast<std::int64_t>(leaves.size()));
    for (const auto& l : leaves) put(static_cast<std::int64_t>(l.fingerprint));
  }

  /// Rows of a tensor that is the same on all ranks.
  void add_rows(std::size_t number, const leaf& l, std::int64_t begin, std::int64_t end) {
    offsets_.assign(l.sizes.size(), 0);
    sizes_.assign(l.sizes.begin(), l.sizes.end());
    if (sizes_.empty()) return add(number, l, *l.whole, 0);
    offsets_[0] = begin;
    sizes_[0] = end - begin;
    if (is_plain(*l.whole)) return add(number, l, *l.whole, begin * (l.bytes / l.rows()));
    add(number, l, l.whole->narrow(0, begin, end - begin), 0);
  }

  /// A part that this rank has.
  void add_part(std::size_t number, const leaf& l, const state::tensor_piece& piece) {
    offsets_ = piece.offsets;
    sizes_ = piece.tensor.sizes().vec();
    add(number, l, piece.tensor, 0);
  }

  [[nodiscard]] share take() && {
    if (known_ != owner_.known_.size()) forget_resting();
    owner_.known_.resize(known_);
    if (!owner_.resting_pieces_) owner_.resting_pieces_ = storages_of_known();
    const auto* const bytes = reinterpret_cast<const char*>(receipt_.data());
    result_.receipt.assign(bytes, receipt_.size() * sizeof(std::int64_t));
    return std::move(result_);
  }

 private:
  /// The part that `offsets_` and `sizes_` tell, whose bytes begin `skip` bytes behind the first element of `from`.
  void add(std::size_t number, const leaf& l, const at::Tensor& from, std::int64_t skip) {
    put(static_cast<std::int64_t>(number));
    for (const auto offset : offsets_) put(offset);
    for (const auto size : sizes_) put(size);
    const bool plain = is_plain(from);
    const auto base = plain ? from : checkpoint::carried_out(from).contiguous();
    auto* const data = static_cast<char*>(base.data_ptr()) + skip;
    if (!base.is_inference() && resting_.contains(base.storage().unsafeGetStorageImpl()))
      return hand_out(known_part(l, base, data));
    hand_out(cut(l, base, data));
  }

  void hand_out(const std::vector<at::Tensor>& pieces) {
    for (const auto& piece : pieces) result_.pieces.emplace_back(piece);
  }

  const std::vector<at::Tensor>& known_part(const leaf& l, const at::Tensor& base, char* data) {
    auto& all = owner_.known_;
    const auto at = known_++;
    if (at < all.size() && all[at].is_of(base, data, sizes_)) return all[at].pieces;
    forget_resting();
    if (at == all.size()) all.emplace_back();
    all[at] = {base, data, sizes_, {}};
    all[at].pieces = cut(l, base, data);
    return all[at].pieces;
  }

  std::vector<at::Tensor> cut(const leaf& l, const at::Tensor& base, char* data) {
    const auto count = piece_count(l, sizes_);
    const auto rows = sizes_.empty() ? 1 : sizes_[0];
    const auto row_bytes = byte_size(sizes_, l.dtype) / rows;
    const c10::InferenceMode as_base(base.is_inference());
    std::vector<at::Tensor> pieces;
    pieces.reserve(static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i) {
      const auto begin = first_row(rows, i, count);
      if (!sizes_.empty()) sizes_[0] = first_row(rows, i + 1, count) - begin;
      pieces.push_back(window(base, data + begin * row_bytes, sizes_));
    }
    return pieces;
  }

  void forget_resting() { owner_.resting_pieces_.reset(); }

  [[nodiscard]] std::shared_ptr<const storages> storages_of_known() const {
    auto all = std::make_shared<storages>();
    for (const auto& part : owner_.known_)
      for (const auto& piece : part.pieces) all->insert(piece.storage().unsafeGetStorageImpl());
    return all;
  }

  void put(std::int64_t number) { receipt_.push_back(number); }

  sharer& owner_;
  const storages& resting_;
  std::size_t known_ = 0;  // parts in storages that rest, so far
  share result_;
  std::vector<std::int64_t> receipt_;
  std::vector<std::int64_t> offsets_;
  std::vector<std::int64_t> sizes_;
};

sharer::sharer() = default;
sharer::~sharer() = default;

namespace {

// ---- The index ----

/// A part of a tensor that a rank writes, as its receipt tells.
struct written_part {
  int rank;
  std::int64_t first_number;
  std::vector<std::int64_t> offsets;
  std::vector<std::int64_t> sizes;

  [[nodiscard]] box_view box() const { return {offsets, sizes}; }
};

/// Reads the ranks' receipts.
class receipts_reader {
 public:
  explicit receipts_reader(const std::vector<leaf>& leaves) : leaves_(leaves), parts_(leaves.size()) {}

  void read(const std::string& receipt, int rank, std::size_t world_size) {
    rank_ = rank;
    at_ = 0;
    numbers_.resize(receipt.size() / sizeof(std::int64_t));
    std::memcpy(numbers_.data(), receipt.data(), numbers_.size() * sizeof(std::int64_t));
    const auto version = next();
    const auto its_rank = next();
    const auto its_size = next();
    if (version != receipt_version)
      throw state_error("", fmt::format("rank {} runs another version of Rondo than the saver", rank));
    if (its_rank != rank || its_size != static_cast<std::int64_t>(world_size))
      throw state_error("", fmt::format("rank {} of {} was expected, found the receipt of rank {} of {}", rank,
                                        world_size, its_rank, its_size));
    require_same_tensors();
    for (std::int64_t number = 0; at_ < numbers_.size();) number = read_part(number);
  }

  /// By leaf; in the order of ranks.
  [[nodiscard]] const std::vector<std::vector<written_part>>& parts() const { return parts_; }

 private:
  std::int64_t next() {
    if (at_ == numbers_.size()) throw state_error("", fmt::format("the receipt of rank {} ends too early", rank_));
    return numbers_[at_++];
  }

  void require_same_tensors() {
    const auto count = static_cast<std::size_t>(next());
    const auto begin = at_;
    at_ += std::min(count, numbers_.size() - at_);
    if (at_ - begin != count) static_cast<void>(next());
    const auto theirs = std::span(numbers_).subspan(begin, count);
    const auto [ours, other] = std::ranges::mismatch(leaves_, theirs, {}, &leaf::fingerprint,
                                                     [](std::int64_t n) { return static_cast<std::uint64_t>(n); });
    if (ours == leaves_.end() && other == theirs.end()) return;
    throw different(ours, theirs.subspan(static_cast<std::size_t>(other - theirs.begin())));
  }

  /// `theirs` begins where the lists of tensors begin to differ.
  [[nodiscard]] state_error different(std::vector<leaf>::const_iterator ours,
                                      std::span<const std::int64_t> theirs) const {
    constexpr auto advice = "all ranks must save the same tensors, in the same order";
    if (ours == leaves_.end())
      return {"", fmt::format("rank {} has {} more tensors than the saver, behind '{}'; {}", rank_, theirs.size(),
                              leaves_.empty() ? std::string() : leaves_.back().path, advice)};
    const auto name_of = [](std::uint64_t fingerprint) { return fingerprint >> 32; };
    const auto name = name_of(ours->fingerprint);
    const auto found =
        std::ranges::find(theirs, name, [&](std::int64_t n) { return name_of(static_cast<std::uint64_t>(n)); });
    if (found == theirs.end())
      return {ours->path,
              fmt::format("is missing on rank {}, and is {} on the saver; {}", rank_, text_of(*ours), advice)};
    if (found != theirs.begin())
      return {ours->path, fmt::format("rank {} has other tensors before this one than the saver; {}", rank_, advice)};
    return {ours->path,
            fmt::format("has other sizes or another dtype on rank {} than on the saver, where it is {}, or is "
                        "sharded or tied to other tensors on one of them only; {}",
                        rank_, text_of(*ours), advice)};
  }

  std::int64_t read_part(std::int64_t number) {
    const auto index = static_cast<std::size_t>(next());
    if (index >= leaves_.size())
      throw state_error("", fmt::format("rank {} tells of a tensor that there is not", rank_));
    const auto& l = leaves_[index];
    written_part part{rank_, number, {}, {}};
    for (std::size_t d = 0; d < l.sizes.size(); ++d) part.offsets.push_back(next());
    for (std::size_t d = 0; d < l.sizes.size(); ++d) part.sizes.push_back(next());
    number += piece_count(l, part.sizes);
    parts_[index].push_back(std::move(part));
    return number;
  }

  const std::vector<leaf>& leaves_;
  std::vector<std::vector<written_part>> parts_;
  std::vector<std::int64_t> numbers_;
  std::size_t at_ = 0;
  int rank_ = 0;
};

void require_complete(const leaf& l, const std::vector<written_part>& parts) {
  std::vector<box_view> boxes;
  for (const auto& part : parts) boxes.push_back(part.box());
  const auto fault = checkpoint::coverage_fault_of({l.sizes.data(), l.sizes.size()}, boxes);
  if (!fault) return;
  const auto text = [&](std::size_t i) { return fmt::format("rank {} has {}", parts[i].rank, text_of(boxes[i])); };
  using kind = checkpoint::coverage_fault::kind;
  if (fault->what == kind::outside)
    throw state_error(l.path, fmt::format("{}, which is outside of {}", text(fault->first), text_of(l.sizes)));
  if (fault->what == kind::overlap)
    throw state_error(l.path,
                      fmt::format("{} and {}, which overlap; each element of a sharded tensor belongs to one rank",
                                  text(fault->first), text(fault->second)));
  std::string all;
  for (std::size_t i = 0; i < parts.size() && i < 8; ++i) all += (i == 0 ? "" : ", ") + text(i);
  throw state_error(l.path,
                    fmt::format("the ranks have {} of the {} elements of {}: {}{}", fault->covered,
                                checkpoint::volume({l.sizes.data(), l.sizes.size()}).value_or(0), text_of(l.sizes),
                                parts.empty() ? "no rank has any" : all, parts.size() > 8 ? ", …" : ""));
}

at::Tensor table_of(const leaf& l, std::vector<written_part> parts) {
  std::ranges::stable_sort(parts, {}, &written_part::offsets);
  const auto columns = static_cast<std::int64_t>(2 + 2 * l.sizes.size());
  std::int64_t rows = 0;
  for (const auto& part : parts) rows += piece_count(l, part.sizes);
  auto table = at::empty({rows, columns}, at::kLong);
  auto* to = table.data_ptr<std::int64_t>();
  for (const auto& part : parts) {
    const auto count = piece_count(l, part.sizes);
    for (std::int64_t i = 0; i < count; ++i, to += columns) {
      to[0] = part.rank;
      to[1] = part.first_number + i;
      std::ranges::copy(part.offsets, to + 2);
      std::ranges::copy(part.sizes, to + 2 + part.sizes.size());
      if (part.sizes.empty()) continue;
      const auto begin = first_row(part.sizes[0], i, count);
      to[2] += begin;
      to[2 + part.sizes.size()] = first_row(part.sizes[0], i + 1, count) - begin;
    }
  }
  return table;
}

/// Builds the tree of "complete".
class indexer {
 public:
  indexer(const std::vector<leaf>& leaves, std::vector<at::Tensor> tables)
      : leaves_(leaves), tables_(std::move(tables)) {}

  state::value visit(const state::value& v) {
    if (const auto* tensor = v.get_if<at::Tensor>()) return is_whole_in_pieces(*tensor) ? next() : v;
    if (const auto* items = v.get_if<state::list>()) return list_of(*items);
    if (const auto* tuple = v.get_if<state::tuple>()) return state::tuple{list_of(tuple->items)};
    const auto* dict = v.get_if<state::dict>();
    if (dict == nullptr) return v;
    if (sharded_tensor::is(v)) return next();
    state::dict result;
    result.reserve(dict->size());
    for (const auto& [key, item] : *dict) result.insert_or_assign(key, visit(item));
    return result;
  }

 private:
  state::list list_of(const state::list& items) {
    state::list result;
    result.reserve(items.size());
    for (const auto& item : items) result.push_back(visit(item));
    return result;
  }

  state::value next() {
    const auto& l = leaves_[next_++];
    state::tuple sizes;
    for (const auto size : l.sizes) sizes.items.emplace_back(size);
    const auto dtype = checkpoint::name(checkpoint::file_type(l.dtype).value());
    state::dict about{{"sizes", std::move(sizes)}, {"dtype", dtype}, {"pieces", tables_[l.first]}};
    return state::dict{{checkpoint::sharded_key, std::move(about)}};
  }

  const std::vector<leaf>& leaves_;
  std::vector<at::Tensor> tables_;
  std::size_t next_ = 0;
};

// ---- Loading ----

at::ScalarType torch_type(checkpoint::scalar_type type) {
  constexpr std::array types{at::kByte,  at::kChar,   at::kShort,        at::kInt,           at::kLong, at::kHalf,
                             at::kFloat, at::kDouble, at::kComplexFloat, at::kComplexDouble, at::kBool, at::kBFloat16};
  return *std::ranges::find(types, type, [](at::ScalarType t) { return checkpoint::file_type(t); });
}

const state::value* child(const state::value* of, const state::key& key) {
  const auto* dict = of != nullptr ? of->get_if<state::dict>() : nullptr;
  return dict != nullptr ? dict->find(key) : nullptr;
}

const state::list* items_of(const state::value* v) {
  if (v == nullptr) return nullptr;
  if (const auto* tuple = v->get_if<state::tuple>()) return &tuple->items;
  return v->get_if<state::list>();
}

/// Puts tensors into the places of those in pieces, plans what must be read for them, and reads it.
class resolver {
 public:
  explicit resolver(const checkpoint::sharded_reader& from) : from_(from) {}

  /// `loaded` is what `node` stands for in the file "complete".
  void visit(state::value& loaded, const tree& node, const state::value* wanted) {
    if (checkpoint::is_in_pieces(node)) {
      loaded = resolved(node, wanted);
      return;
    }
    if (auto* dict = loaded.get_if<state::dict>()) {
      const auto& nodes = node.as<tree::dict>();
      auto below_node = nodes.begin();
      for (auto& [key, item] : *dict) below(key.str(), item, (below_node++)->second, child(wanted, key));
      return;
    }
    auto* items = loaded.get_if<state::list>();
    if (auto* tuple = loaded.get_if<state::tuple>()) items = &tuple->items;
    if (items == nullptr) return;
    const auto& nodes = node.is<tree::tuple>() ? node.as<tree::tuple>().items : node.as<tree::list>();
    const auto* others = items_of(wanted);
    for (std::size_t i = 0; i < items->size(); ++i)
      below(std::to_string(i), (*items)[i], nodes[i],
            others != nullptr && i < others->size() ? &(*others)[i] : nullptr);
  }

  void read() const { from_.read(plan_, at::get_num_threads()); }

 private:
  void below(const std::string& key, state::value& loaded, const tree& node, const state::value* wanted) {
    const auto length = path_.size();
    if (length != 0) path_ += '.';
    path_ += key;
    visit(loaded, node, wanted);
    path_.resize(length);
  }

  state::value resolved(const tree& node, const state::value* wanted) {
    auto tensor = from_.pieces_of(node, path_);
    if (wanted != nullptr && sharded_tensor::is(*wanted)) {
      auto parts = parts_wanted(*wanted);
      if (parts.sizes == tensor.sizes) return parts_of(std::move(tensor), std::move(parts));
    }
    return whole(std::move(tensor));
  }

  [[nodiscard]] sharded_tensor parts_wanted(const state::value& wanted) const {
    try {
      return sharded_tensor::from(wanted);
    } catch (const state_error& e) {
      throw e.under(path_);
    }
  }

  state::value parts_of(pieced_tensor tensor, sharded_tensor wanted) {
    const auto& kept = tensors_.emplace_back(std::move(tensor));
    wanted.dtype = torch_type(kept.dtype);
    for (auto& piece : wanted.pieces) piece.tensor = planned(kept, piece.offsets, piece.tensor.sizes().vec());
    return wanted.to_value();
  }

  at::Tensor whole(pieced_tensor tensor) {
    if (tensor.count() == 0) return at::empty(tensor.sizes, at::TensorOptions(torch_type(tensor.dtype)));
    auto& known = whole_[{tensor.rank(0), tensor.number(0)}];
    if (known.source != nullptr && is_same(*known.source, tensor)) return known.tensor;
    known.source = &tensors_.emplace_back(std::move(tensor));
    const auto& sizes = known.source->sizes;
    known.tensor = planned(*known.source, std::vector<std::int64_t>(sizes.size(), 0), sizes);
    return known.tensor;
  }

  at::Tensor planned(const pieced_tensor& from, std::vector<std::int64_t> offsets, std::vector<std::int64_t> sizes) {
    auto to = at::empty(sizes, at::TensorOptions(torch_type(from.dtype)));
    const std::span<std::byte> memory(static_cast<std::byte*>(to.data_ptr()), to.nbytes());
    if (!memory.empty()) plan_.push_back({&from, std::move(offsets), std::move(sizes), memory});
    return to;
  }

  static bool is_same(const pieced_tensor& a, const pieced_tensor& b) {
    return a.dtype == b.dtype && a.sizes == b.sizes && a.table == b.table;
  }

  struct known_tensor {
    const pieced_tensor* source = nullptr;
    at::Tensor tensor;
  };

  const checkpoint::sharded_reader& from_;
  std::string path_;
  std::deque<pieced_tensor> tensors_;
  std::map<std::pair<int, std::int64_t>, known_tensor> whole_;  // by the first piece
  std::vector<checkpoint::wanted_box> plan_;
};

/// The tree with `change(tensor)` in the place of each tensor but the parts of sharded ones.
template <class Change>
state::value with_tensors(const state::value& v, const Change& change) {
  if (const auto* tensor = v.get_if<at::Tensor>()) return change(*tensor);
  if (const auto* dict = v.get_if<state::dict>()) {
    if (sharded_tensor::is(v)) return v;
    state::dict result;
    result.reserve(dict->size());
    for (const auto& [key, item] : *dict) result.insert_or_assign(key, with_tensors(item, change));
    return result;
  }
  const auto* items = items_of(&v);
  if (items == nullptr) return v;
  state::list result;
  result.reserve(items->size());
  for (const auto& item : *items) result.push_back(with_tensors(item, change));
  if (v.get_if<state::tuple>() != nullptr) return state::tuple{std::move(result)};
  return result;
}

state::dict without(const state::dict& from, std::string_view key) {
  state::dict result;
  result.reserve(from.size());
  for (const auto& [k, item] : from)
    if (k != state::key(key)) result.insert_or_assign(k, item);
  return result;
}

/// Takes away what only says to which snapshot the ranks' files belong.
void remove_marks(state::value& state) {
  auto& root = state.as<state::dict>();
  auto& ours = root.find("rondo")->as<state::dict>();
  ours = without(ours, "sharded");
  if (ours.empty()) root = without(root, "rondo");
}

}  // namespace

state::value with_owner(const state::value& state, const storages& spread, bool is_owner) {
  const auto own = [&](const at::Tensor& tensor) -> state::value {
    if (!is_whole_in_pieces(tensor)) return tensor;
    if (tensor.has_storage() && spread.contains(tensor.storage().unsafeGetStorageImpl())) return tensor;
    sharded_tensor result{tensor.sizes().vec(), tensor.scalar_type(), {}};
    if (is_owner) result.pieces.push_back({std::vector<std::int64_t>(result.sizes.size(), 0), tensor});
    return result.to_value();
  };
  return with_tensors(state, own);
}

state::value outline_of(const state::value& state) {
  const c10::AutoGradMode no_grad(false);
  const auto copy = [](const at::Tensor& tensor) -> state::value {
    if (!tensor.defined() || is_whole_in_pieces(tensor)) return tensor;
    return tensor.detach().to(at::kCPU, tensor.scalar_type(), false, true);
  };
  return with_tensors(state, copy);
}

bool has_sharded(const state::value& state) {
  if (sharded_tensor::is(state)) return true;
  if (const auto* dict = state.get_if<state::dict>())
    return std::ranges::any_of(*dict, [](const auto& entry) { return has_sharded(entry.second); });
  const auto* items = items_of(&state);
  return items != nullptr && std::ranges::any_of(*items, has_sharded);
}

share share_of(const state::value& state, int rank, int world_size) {
  return sharer().share_of(state, rank, world_size);
}

share sharer::share_of(const state::value& state, int rank, int world_size, const storages& resting) {
  const c10::AutoGradMode no_grad(false);
  const auto leaves = std::move(survey(state).leaves);
  builder result(*this, resting, leaves, rank, world_size);
  line all(leaves, world_size);
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    const auto& l = leaves[i];
    if (l.first != i) continue;
    if (l.whole != nullptr) {
      const auto begin = all.first_row_of(rank, l);
      const auto end = all.first_row_of(rank + 1, l);
      if (begin < end) result.add_rows(i, l, begin, end);
      all.step_over(l);
    } else {
      for (const auto& piece : l.parts->pieces)
        if (piece.tensor.numel() != 0) result.add_part(i, l, piece);
    }
  }
  return std::move(result).take();
}

state::value index_of(const state::value& state, const std::vector<std::string>& receipts) {
  const auto leaves = std::move(survey(state).leaves);
  receipts_reader reader(leaves);
  for (std::size_t rank = 0; rank < receipts.size(); ++rank)
    reader.read(receipts[rank], static_cast<int>(rank), receipts.size());
  std::vector<at::Tensor> tables(leaves.size());
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    if (leaves[i].first != i) continue;
    require_complete(leaves[i], reader.parts()[i]);
    tables[i] = table_of(leaves[i], reader.parts()[i]);
  }
  return indexer(leaves, std::move(tables)).visit(state);
}

state::value load_sharded(const checkpoint::sharded_reader& from, const state::value& wanted) {
  const c10::AutoGradMode no_grad(false);
  auto state = checkpoint::materialize(from.index());
  resolver work(from);
  work.visit(state, from.state(), &wanted);
  work.read();
  remove_marks(state);
  return state;
}

state::value read_sharded(const std::filesystem::path& directory, const state::value& wanted) {
  return load_sharded(checkpoint::sharded_reader::open(directory), wanted);
}

}  // namespace rondo::extensions

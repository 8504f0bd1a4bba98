#include "rondo/distributed/consolidate.hpp"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rondo/checkpoint/boxes.hpp"
#include "rondo/distributed/packing.hpp"
#include "rondo/error.hpp"
#include "rondo/state/bits.hpp"
#include "rondo/state/sharded_tensor.hpp"

namespace rondo::distributed {

namespace {

using numbers = std::vector<std::int64_t>;

/// Parts of this size and more travel alone, without being copied into a message first.
constexpr std::int64_t travels_alone = std::int64_t{1} << 20;
constexpr std::int64_t message_limit = std::int64_t{8} << 20;

// ---- What a rank tells the others of its sharded tensors ----

struct part {
  numbers offsets;
  numbers sizes;
};

struct leaf {
  std::string path;
  at::ScalarType dtype = at::kFloat;
  numbers sizes;
  std::vector<part> parts;
  /// Of the first part; -1 without parts.
  std::int64_t device = -1;
};

class table_writer {
 public:
  void number(std::int64_t n) { text_.append(reinterpret_cast<const char*>(&n), sizeof n); }
  void all(const numbers& values) {
    number(static_cast<std::int64_t>(values.size()));
    for (const auto n : values) number(n);
  }
  void text(std::string_view s) {
    number(static_cast<std::int64_t>(s.size()));
    text_ += s;
  }
  std::string take() { return std::move(text_); }

 private:
  std::string text_;
};

/// Throws `state_error` where the table ends too early.
class table_reader {
 public:
  explicit table_reader(std::string_view text) : rest_(text) {}

  std::int64_t number() {
    std::int64_t n = 0;
    std::memcpy(&n, taken(sizeof n).data(), sizeof n);
    return n;
  }
  std::size_t count() { return static_cast<std::size_t>(std::max<std::int64_t>(number(), 0)); }
  numbers all() {
    numbers values;
    for (auto left = count(); left > 0; --left) values.push_back(number());
    return values;
  }
  std::string text() { return std::string(taken(count())); }

 private:
  std::string_view taken(std::size_t size) {
    if (size > rest_.size()) throw state_error("", "a rank's table of sharded tensors ends too early");
    const auto result = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return result;
  }

  std::string_view rest_;
};

/// What one rank has said.
struct table {
  /// Why it has no table, and where.
  std::string problem;
  std::string problem_path;
  std::vector<leaf> leaves;
};

std::string packed(const table& mine) {
  table_writer out;
  out.text(mine.problem);
  out.text(mine.problem_path);
  out.number(static_cast<std::int64_t>(mine.leaves.size()));
  for (const auto& one : mine.leaves) {
    out.text(one.path);
    out.number(static_cast<std::int64_t>(one.dtype));
    out.all(one.sizes);
    out.number(one.device);
    out.number(static_cast<std::int64_t>(one.parts.size()));
    for (const auto& [offsets, sizes] : one.parts) {
      out.all(offsets);
      out.all(sizes);
    }
  }
  return out.take();
}

table unpacked(std::string_view text) {
  table_reader in(text);
  table result;
  result.problem = in.text();
  result.problem_path = in.text();
  for (auto left = in.count(); left > 0; --left) {
    leaf one;
    one.path = in.text();
    one.dtype = static_cast<at::ScalarType>(in.number());
    one.sizes = in.all();
    one.device = in.number();
    for (auto parts = in.count(); parts > 0; --parts) {
      auto offsets = in.all();
      auto sizes = in.all();
      one.parts.push_back({std::move(offsets), std::move(sizes)});
    }
    result.leaves.push_back(std::move(one));
  }
  return result;
}

// ---- The tree ----

std::string below(const std::string& path, const std::string& key) { return path.empty() ? key : path + "." + key; }

/// Calls `visit(path, node)` for every sharded tensor, in the order of the tree.
template <class Value, class Visit>
void for_sharded(Value& node, const std::string& path, Visit& visit) {
  if (state::sharded_tensor::is(node)) return visit(path, node);
  if (auto* dict = node.template get_if<state::dict>()) {
    for (auto& [key, item] : *dict) for_sharded(item, below(path, key.str()), visit);
    return;
  }
  auto* items = node.template get_if<state::list>();
  if (auto* tuple = node.template get_if<state::tuple>()) items = &tuple->items;
  if (items == nullptr) return;
  for (std::size_t i = 0; i < items->size(); ++i) for_sharded((*items)[i], below(path, std::to_string(i)), visit);
}

state::sharded_tensor checked_part(const std::string& path, const state::value& node) {
  try {
    auto one = state::sharded_tensor::from(node);
    if (!checkpoint::volume(one.sizes))
      throw state_error("", fmt::format("cannot have the sizes [{}]", fmt::join(one.sizes, ", ")));
    for (const auto& piece : one.pieces)
      if (const char* why = nullptr; !state::has_plain_bytes(piece.tensor, &why)) throw state_error("", why);
    return one;
  } catch (const state_error& e) {
    throw e.under(path);
  }
}

leaf description_of(const std::string& path, const state::sharded_tensor& one) {
  leaf result{path, one.dtype, one.sizes, {}, -1};
  for (const auto& piece : one.pieces) result.parts.push_back({piece.offsets, piece.tensor.sizes().vec()});
  if (!one.pieces.empty()) result.device = static_cast<std::int64_t>(one.pieces[0].tensor.device().type());
  return result;
}

/// This rank's sharded tensors, and what the others have to know of them.
struct inventory {
  std::vector<state::sharded_tensor> tensors;
  table told;
};

inventory inventory_of(const state::value& tree) {
  inventory mine;
  auto add = [&](const std::string& path, const state::value& node) {
    mine.tensors.push_back(checked_part(path, node));
    mine.told.leaves.push_back(description_of(path, mine.tensors.back()));
  };
  try {
    for_sharded(tree, "", add);
  } catch (const state_error& e) {
    // The others must hear of it, because they wait.
    mine.told = {e.what(), e.key(), {}};
  }
  return mine;
}

// ---- Whether the tables fit: from the same tables, every rank comes to the same result. ----

std::string shape_of(const leaf& one) {
  return fmt::format("{} [{}]", c10::toString(one.dtype), fmt::join(one.sizes, ", "));
}

void require_same(const table& first, const table& other, std::size_t rank) {
  const auto common = std::min(first.leaves.size(), other.leaves.size());
  for (std::size_t i = 0; i < common; ++i) {
    const auto& here = first.leaves[i];
    const auto& there = other.leaves[i];
    if (here.path != there.path)
      throw state_error(here.path,
                        fmt::format("is a sharded tensor on rank 0, where rank {} has '{}'", rank, there.path));
    if (here.dtype != there.dtype || here.sizes != there.sizes)
      throw state_error(here.path,
                        fmt::format("is {} on rank 0, and {} on rank {}", shape_of(here), shape_of(there), rank));
  }
  if (first.leaves.size() > common)
    throw state_error(first.leaves[common].path,
                      fmt::format("is a sharded tensor on rank 0, and missing on rank {}", rank));
  if (other.leaves.size() > common)
    throw state_error(other.leaves[common].path,
                      fmt::format("is a sharded tensor on rank {}, and missing on rank 0", rank));
}

void require_coverage(const std::vector<table>& tables, std::size_t index) {
  const auto& whole = tables[0].leaves[index];
  std::vector<checkpoint::box_view> boxes;
  std::vector<std::size_t> ranks;
  for (std::size_t rank = 0; rank < tables.size(); ++rank)
    for (const auto& [offsets, sizes] : tables[rank].leaves[index].parts) {
      boxes.push_back({offsets, sizes});
      ranks.push_back(rank);
    }
  const auto fault = checkpoint::coverage_fault_of(whole.sizes, boxes);
  if (!fault) return;
  using kind = checkpoint::coverage_fault::kind;
  switch (fault->what) {
    case kind::outside:
      throw state_error(whole.path, fmt::format("a part of rank {} leads outside", ranks[fault->first]));
    case kind::overlap:
      throw state_error(whole.path,
                        fmt::format("parts of rank {} and rank {} overlap", ranks[fault->first], ranks[fault->second]));
    case kind::gap:
      throw state_error(whole.path, fmt::format("the parts of all ranks hold {} of its {} elements", fault->covered,
                                                checkpoint::volume(whole.sizes).value_or(0)));
  }
}

void require_fit(const std::vector<table>& tables) {
  for (std::size_t rank = 0; rank < tables.size(); ++rank)
    if (!tables[rank].problem.empty())
      throw state_error(tables[rank].problem_path, fmt::format("on rank {}: {}", rank, tables[rank].problem));
  for (std::size_t rank = 1; rank < tables.size(); ++rank) require_same(tables[0], tables[rank], rank);
  for (std::size_t i = 0; i < tables[0].leaves.size(); ++i) require_coverage(tables, i);
}

std::vector<table> all_tables(const std::vector<std::string>& texts) {
  std::vector<table> tables;
  for (const auto& text : texts) tables.push_back(unpacked(text));
  require_fit(tables);
  return tables;
}

// ---- The parts ----

at::Tensor whole_tensor(const std::vector<table>& tables, std::size_t index) {
  const auto& first = tables[0].leaves[index];
  auto device = at::kCPU;
  for (const auto& one : tables)
    if (one.leaves[index].device >= 0) {
      device = static_cast<at::DeviceType>(one.leaves[index].device);
      break;
    }
  return at::empty(first.sizes, at::TensorOptions(first.dtype).device(device));
}

at::Tensor place_of(const part& box, at::Tensor whole) {
  for (std::size_t d = 0; d < box.sizes.size(); ++d)
    whole = whole.narrow(static_cast<std::int64_t>(d), box.offsets[d], box.sizes[d]);
  return whole;
}

/// Places in whole tensors that get their elements by one broadcast.
struct message {
  int root = 0;
  std::vector<at::Tensor> places;
  std::int64_t size = 0;
};

/// In the order in which all ranks send them.
std::vector<message> messages_for(const std::vector<table>& tables, const std::vector<at::Tensor>& wholes) {
  std::vector<message> all;
  for (std::size_t rank = 0; rank < tables.size(); ++rank) {
    const auto root = static_cast<int>(rank);
    message open{root, {}, 0};
    for (std::size_t i = 0; i < wholes.size(); ++i)
      for (const auto& box : tables[rank].leaves[i].parts) {
        auto place = place_of(box, wholes[i]);
        const auto size = detail::packed_size(place);
        if (size == 0) continue;
        if (size >= travels_alone) {
          all.push_back({root, {std::move(place)}, size});
          continue;
        }
        if (!open.places.empty() && (open.size + size > message_limit || open.places[0].device() != place.device()))
          all.push_back(std::exchange(open, message{root, {}, 0}));
        open.places.push_back(std::move(place));
        open.size += size;
      }
    if (!open.places.empty()) all.push_back(std::move(open));
  }
  return all;
}

void put_own_parts(const inventory& mine, const std::vector<at::Tensor>& wholes) {
  const c10::AutoGradMode no_grad(false);
  for (std::size_t i = 0; i < wholes.size(); ++i)
    for (const auto& piece : mine.tensors[i].pieces)
      place_of({piece.offsets, piece.tensor.sizes().vec()}, wholes[i]).copy_(piece.tensor.detach());
}

bool goes_directly(const message& one) { return one.places.size() == 1 && one.places[0].is_contiguous(); }

/// What is broadcast: on the root, with the parts in it.
at::Tensor buffer_of(const message& one, bool is_root) {
  const c10::AutoGradMode no_grad(false);
  if (goes_directly(one)) return detail::as_bytes(one.places[0]);
  const auto buffer = at::zeros({one.size}, one.places[0].options().dtype(at::kByte));
  if (!is_root) return buffer;
  std::int64_t offset = 0;
  for (const auto& place : one.places) {
    detail::place_in_message(buffer, offset, place).copy_(place);
    offset += detail::packed_size(place);
  }
  return buffer;
}

void take_out(const message& one, const at::Tensor& buffer) {
  if (goes_directly(one)) return;
  const c10::AutoGradMode no_grad(false);
  std::int64_t offset = 0;
  for (auto place : one.places) {
    place.copy_(detail::place_in_message(buffer, offset, place));
    offset += detail::packed_size(place);
  }
}

}  // namespace

task<state::value> consolidate(state::value tree, rank_group group) {
  auto mine = inventory_of(tree);
  auto text = packed(mine.told);
  const auto texts = co_await group.all_gather(std::move(text));
  const auto tables = all_tables(texts);

  std::vector<at::Tensor> wholes;
  for (std::size_t i = 0; i < mine.tensors.size(); ++i) wholes.push_back(whole_tensor(tables, i));
  put_own_parts(mine, wholes);
  if (group.world_size() > 1) {
    const auto messages = messages_for(tables, wholes);
    for (const auto& one : messages) {
      const bool is_root = one.root == group.rank();
      const auto buffer = buffer_of(one, is_root);
      co_await group.broadcast(buffer, one.root);
      if (!is_root) take_out(one, buffer);
    }
  }

  std::size_t next = 0;
  auto replace = [&](const std::string&, state::value& node) { node = wholes[next++]; };
  for_sharded(tree, "", replace);
  co_return tree;
}

}  // namespace rondo::distributed

#include "sharded.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <thread>
#include <utility>

#include "input.hpp"
#include "rondo/error.hpp"

namespace rondo::tool {

namespace {

using checkpoint::pieced_tensor;
using checkpoint::tensor_descriptor;
using checkpoint::tree;

constexpr std::uint64_t rows_at_a_time = std::uint64_t{8} << 20;  // bytes

int thread_count() { return static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 8u)); }

std::vector<std::int64_t> contiguous_strides(const std::vector<std::int64_t>& sizes) {
  std::vector<std::int64_t> strides(sizes.size(), 1);
  for (std::size_t d = sizes.size(); d-- > 1;) strides[d - 1] = strides[d] * std::max<std::int64_t>(sizes[d], 1);
  return strides;
}

class whole_builder {
 public:
  explicit whole_builder(const checkpoint::sharded_reader& from) : from_(from) {}

  whole_state build() && {
    result_.state = visit(from_.state());
    return std::move(result_);
  }

 private:
  tree visit(const tree& node) {
    if (checkpoint::is_in_pieces(node)) return whole(from_.pieces_of(node, path_));
    if (const auto* tensor = node.get_if<tensor_descriptor>()) return small(*tensor);
    if (const auto* items = node.get_if<tree::list>()) return list_of(*items);
    if (const auto* tuple = node.get_if<tree::tuple>()) return tree::tuple{list_of(tuple->items)};
    if (const auto* dict = node.get_if<tree::dict>()) return dict_of(*dict);
    return node;
  }

  tree::list list_of(const tree::list& items) {
    tree::list result;
    for (std::size_t i = 0; i < items.size(); ++i) result.push_back(below(std::to_string(i), items[i]));
    return result;
  }

  tree::dict dict_of(const tree::dict& items) {
    tree::dict result;
    result.reserve(items.size());
    for (const auto& [key, item] : items) {
      if (&items == from_.state().get_if<tree::dict>() && key == state::key("rondo")) {
        // "sharded" only says to which snapshot the ranks' files belong.
        auto ours = without_marks(item.as<tree::dict>());
        if (!ours.empty()) result.insert_or_assign(key, std::move(ours));
      } else {
        result.insert_or_assign(key, below(key.str(), item));
      }
    }
    return result;
  }

  tree::dict without_marks(const tree::dict& ours) {
    tree::dict result;
    for (const auto& [key, item] : ours)
      if (key != state::key("sharded")) result.insert_or_assign(key, below("rondo." + key.str(), item));
    return result;
  }

  tree below(const std::string& key, const tree& node) {
    const auto length = path_.size();
    if (length != 0) path_ += '.';
    path_ += key;
    auto result = visit(node);
    path_.resize(length);
    return result;
  }

  std::string new_key() const { return std::to_string(result_.storages.size()); }

  tree small(tensor_descriptor tensor) {
    auto& key = small_[tensor.storage_key];
    if (key.empty()) {
      key = new_key();
      const auto bytes = from_.index().storage(tensor);
      result_.storages.push_back({key, bytes.size(), bytes, std::nullopt});
    }
    tensor.storage_key = key;
    return tensor;
  }

  tree whole(pieced_tensor tensor) {
    tensor_descriptor result;
    result.dtype = tensor.dtype;
    result.storage_numel = checkpoint::volume(tensor.sizes).value_or(0);
    result.sizes = tensor.sizes;
    result.strides = contiguous_strides(tensor.sizes);
    result.storage_key = key_of(std::move(tensor));
    return result;
  }

  // Leaves with the same pieces were one tensor, and share a storage.
  std::string key_of(pieced_tensor tensor) {
    if (tensor.count() > 0) {
      const auto [known, is_new] =
          first_pieces_.try_emplace({tensor.rank(0), tensor.number(0)}, result_.storages.size());
      if (!is_new) {
        const auto& other = result_.storages[known->second];
        if (other.pieces->dtype == tensor.dtype && other.pieces->sizes == tensor.sizes &&
            other.pieces->table == tensor.table)
          return other.key;
      }
    }
    auto key = new_key();
    const auto size = tensor.byte_size();
    result_.storages.push_back({key, size, {}, std::move(tensor)});
    return key;
  }

  const checkpoint::sharded_reader& from_;
  whole_state result_;
  std::string path_;
  std::map<std::string, std::string> small_;  // keys in "complete" to new ones
  std::map<std::pair<int, std::int64_t>, std::size_t> first_pieces_;
};

}  // namespace

std::optional<std::filesystem::path> sharded_directory(const std::filesystem::path& named) {
  std::error_code failed;
  const auto target = std::filesystem::canonical(named, failed);
  if (failed || !checkpoint::is_sharded(target)) return std::nullopt;
  const bool is_link = std::filesystem::is_symlink(std::filesystem::symlink_status(named, failed));
  return is_link ? target : named;
}

sharded_check check_sharded(const std::filesystem::path& directory) {
  sharded_check found;
  const auto check = [&](const checkpoint::reader& file) {
    found.records += file.records().entries().size();
    found.bytes += file.records().file().size();
    const auto problems = problems_of(file);
    found.problems.insert(found.problems.end(), problems.begin(), problems.end());
  };
  check(checkpoint::reader::open(directory / checkpoint::sharded_index));
  if (!found.problems.empty()) return found;
  const auto snapshot = checkpoint::sharded_reader::open(directory);
  for (int rank = 0; rank < snapshot.world_size(); ++rank) {
    try {
      check(snapshot.rank_file(rank));
    } catch (const error& problem) {
      found.problems.emplace_back(problem.what());
    }
  }
  if (!found.problems.empty()) return found;
  try {
    snapshot.require_all();
  } catch (const error& problem) {
    found.problems.emplace_back(problem.what());
  }
  return found;
}

std::uint64_t size_of(const checkpoint::sharded_reader& snapshot) {
  std::uint64_t sum = snapshot.index().records().file().size();
  for (int rank = 0; rank < snapshot.world_size(); ++rank) {
    std::error_code missing;
    const auto size = std::filesystem::file_size(snapshot.directory() / std::to_string(rank), missing);
    if (!missing) sum += size;
  }
  return sum;
}

const pieced_tensor* whole_state::pieces_of(const tensor_descriptor& tensor) const {
  const auto& storage = storages.at(static_cast<std::size_t>(std::stoull(tensor.storage_key)));
  return storage.pieces ? &*storage.pieces : nullptr;
}

std::span<const std::byte> whole_state::data_of(const tensor_descriptor& tensor) const {
  return storages.at(static_cast<std::size_t>(std::stoull(tensor.storage_key))).data;
}

whole_state whole_state_of(const checkpoint::sharded_reader& snapshot) { return whole_builder(snapshot).build(); }

row_stream::row_stream(const checkpoint::sharded_reader& from, const pieced_tensor& tensor)
    : from_(from), tensor_(tensor) {
  const auto rows = tensor.sizes.empty() ? 1 : tensor.sizes[0];
  row_bytes_ = rows == 0 ? 0 : tensor.byte_size() / static_cast<std::uint64_t>(rows);
  cuts_.push_back(0);
  std::vector<std::pair<std::int64_t, std::int64_t>> ranges;  // of rows
  for (std::size_t i = 0; i < tensor.count() && !tensor.sizes.empty(); ++i) {
    const auto box = tensor.box(i);
    ranges.emplace_back(box.offsets[0], box.offsets[0] + box.sizes[0]);
  }
  std::ranges::sort(ranges);
  std::int64_t end = 0;
  for (const auto& [begin, range_end] : ranges) {
    const auto since_cut = static_cast<std::uint64_t>(begin - cuts_.back()) * row_bytes_;
    if (begin >= end && begin > cuts_.back() && since_cut >= rows_at_a_time) cuts_.push_back(begin);
    end = std::max(end, range_end);
  }
  cuts_.push_back(rows);
}

void row_stream::read(std::uint64_t offset, std::span<std::byte> out) {
  while (!out.empty()) {
    if (offset < loaded_offset_ || offset >= loaded_offset_ + loaded_.size()) load(offset);
    const auto begin = static_cast<std::size_t>(offset - loaded_offset_);
    const auto count = std::min(out.size(), loaded_.size() - begin);
    std::copy_n(loaded_.begin() + static_cast<std::ptrdiff_t>(begin), count, out.begin());
    out = out.subspan(count);
    offset += count;
  }
}

void row_stream::load(std::uint64_t offset) {
  const auto row = static_cast<std::int64_t>(offset / row_bytes_);
  const auto next = std::ranges::upper_bound(cuts_, row);
  const auto begin = *std::prev(next);
  std::vector<std::int64_t> offsets(tensor_.sizes.size(), 0);
  auto sizes = tensor_.sizes;
  if (!sizes.empty()) {
    offsets[0] = begin;
    sizes[0] = *next - begin;
  }
  loaded_.resize(static_cast<std::size_t>(static_cast<std::uint64_t>(*next - begin) * row_bytes_));
  loaded_offset_ = static_cast<std::uint64_t>(begin) * row_bytes_;
  const checkpoint::wanted_box wanted{&tensor_, std::move(offsets), std::move(sizes), loaded_};
  from_.read(std::span(&wanted, 1), thread_count());
}

}  // namespace rondo::tool

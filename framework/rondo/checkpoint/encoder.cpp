#include "rondo/checkpoint/encoder.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "rondo/checkpoint/crc32.hpp"
#include "rondo/checkpoint/little_endian.hpp"
#include "rondo/checkpoint/pickle.hpp"
#include "rondo/error.hpp"

namespace rondo::checkpoint {

namespace {

// Half of a small L2 cache, so that a piece is still there when the sink reads what the checksum has just read.
constexpr std::size_t piece_size = 256 * 1024;
constexpr std::size_t joined_size = 256 * 1024;

std::span<const std::byte> as_bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

std::string storage_record(const std::string& key) { return "data/" + key; }

// Checks every tensor of a tree against the storages that there are, and notes which record it lives in.
class tensor_walk {
 public:
  tensor_walk(const std::vector<storage>& storages, std::map<std::string, std::string>& records) : records_(records) {
    for (const auto& item : storages) {
      if (item.key.empty() || item.key.find('/') != std::string::npos)
        throw option_error("storage key", fmt::format("'{}'", item.key), "a name that is not empty and holds no '/'");
      storages_.emplace(item.key, known_storage{item.data.size(), nullptr});
    }
  }

  void visit(const tree& node, const std::string& path) {
    if (const auto* tensor = node.get_if<tensor_descriptor>()) return check(*tensor, path);
    if (const auto* list = node.get_if<tree::list>()) return visit_items(*list, path);
    if (const auto* tuple = node.get_if<tree::tuple>()) return visit_items(tuple->items, path);
    if (const auto* dict = node.get_if<tree::dict>())
      for (const auto& [key, value] : *dict) visit(value, join(path, key.str()));
  }

 private:
  struct known_storage {
    std::uint64_t size;
    const tensor_descriptor* first_view;
  };

  static std::string join(const std::string& path, const std::string& key) {
    return path.empty() ? key : path + "." + key;
  }
  void visit_items(const tree::list& items, const std::string& path) {
    for (std::size_t i = 0; i < items.size(); ++i) visit(items[i], join(path, std::to_string(i)));
  }
  void check(const tensor_descriptor& tensor, const std::string& path) {
    const auto at = storages_.find(tensor.storage_key);
    if (at == storages_.end())
      throw state_error(path, fmt::format("its storage '{}' is not among those given", tensor.storage_key));
    auto& [size, first_view] = at->second;
    const auto expected = static_cast<std::uint64_t>(tensor.storage_numel * element_size(tensor.dtype));
    if (size != expected)
      throw state_error(path,
                        fmt::format("its storage '{}' has {} bytes instead of {}", tensor.storage_key, size, expected));
    if (!first_view) first_view = &tensor;
    // Python gives a storage the dtype under which it meets it first.
    if (first_view->dtype != tensor.dtype)
      throw state_error(path, fmt::format("its storage '{}' is viewed both as {} and as {}", tensor.storage_key,
                                          name(first_view->dtype), name(tensor.dtype)));
    records_.emplace(path, storage_record(tensor.storage_key));
  }

  std::unordered_map<std::string_view, known_storage> storages_;
  std::map<std::string, std::string>& records_;
};

// Gives small pieces to the sink together, large ones as they are.
class joining_sink {
 public:
  explicit joining_sink(const byte_sink& sink) : sink_(sink) { joined_.reserve(joined_size); }

  /// For the planner's pieces, which are appended to it directly.
  std::vector<std::byte>& joined() {
    if (joined_.size() >= joined_size / 2) flush();
    return joined_;
  }
  void write(std::span<const std::byte> bytes) {
    if (bytes.size() <= joined_size / 4) {
      auto& out = joined();
      out.insert(out.end(), bytes.begin(), bytes.end());
      return;
    }
    flush();
    sink_(bytes);
  }
  void flush() {
    if (joined_.empty()) return;
    sink_(joined_);
    joined_.clear();
  }

 private:
  const byte_sink& sink_;
  std::vector<std::byte> joined_;
};

std::uint32_t write_data(joining_sink& out, std::span<const std::byte> data) {
  std::uint32_t checksum = 0;
  while (!data.empty()) {
    const auto piece = data.first(std::min(piece_size, data.size()));
    checksum = crc32(piece, checksum);
    out.write(piece);
    data = data.subspan(piece.size());
  }
  return checksum;
}

manifest describe(const tree& state, const std::vector<storage>& storages, snapshot_info info) {
  manifest result;
  result.info = std::move(info);
  tensor_walk(storages, result.tensors).visit(state, "");
  return result;
}

}  // namespace

encoder::encoder(const tree& state, std::vector<storage> storages, snapshot_info info, std::string_view root)
    : pickle_(encode_pickle(state)),
      storages_(std::move(storages)),
      manifest_(describe(state, storages_, std::move(info))),
      plan_(root, record_sizes()) {}

std::vector<encoder::source> encoder::sources() const {
  std::vector<source> result;
  result.reserve(storages_.size() + 3);
  result.push_back({"data.pkl", pickle_});
  result.push_back({"byteorder", as_bytes("little")});
  for (const auto& item : storages_) result.push_back({storage_record(item.key), item.data});
  result.push_back({"version", as_bytes("3\n")});
  return result;
}

std::vector<record_size> encoder::record_sizes() const {
  manifest about = manifest_;
  std::vector<record_size> sizes;
  for (auto& item : sources()) {
    about.records.push_back({item.name, item.data.size(), 0});
    sizes.push_back({std::move(item.name), item.data.size()});
  }
  sizes.push_back({std::string(manifest_record), to_json(about).size()});
  return sizes;
}

void encoder::write(const byte_sink& sink) const {
  joining_sink out(sink);
  std::vector<std::uint32_t> checksums;
  const auto write_record = [&](std::span<const std::byte> data) {
    const auto& place = plan_.records()[checksums.size()];
    plan_.append_header(out.joined(), place);
    checksums.push_back(write_data(out, data));
    plan_.append_descriptor(out.joined(), place, checksums.back());
  };

  manifest about = manifest_;
  for (auto& item : sources()) {
    write_record(item.data);
    about.records.push_back({std::move(item.name), item.data.size(), checksums.back()});
  }
  write_record(as_bytes(to_json(about)));
  plan_.append_directory(out.joined(), checksums);
  out.flush();
}

}  // namespace rondo::checkpoint

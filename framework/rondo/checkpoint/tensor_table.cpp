#include "rondo/checkpoint/tensor_table.hpp"

#include <functional>

#include "rondo/checkpoint/manifest.hpp"

namespace rondo::checkpoint {

void tensor_table::add(std::string_view path, std::string_view storage_key) {
  const auto hash = std::hash<std::string_view>()(path);
  const auto known = index_.find(hash, [&](std::size_t i) { return this->path(i) == path; });
  if (known != state::position_index::npos) return;
  index_.insert(hash, ends_.size());
  manifest_json::append_tensor(json_, ends_.empty(), path, storage_record(storage_key));
  paths_ += path;
  ends_.push_back(paths_.size());
}

std::string_view tensor_table::path(std::size_t i) const {
  const auto begin = i == 0 ? 0 : ends_[i - 1];
  return std::string_view(paths_).substr(begin, ends_[i] - begin);
}

}  // namespace rondo::checkpoint

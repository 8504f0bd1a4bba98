#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "rondo/state/position_index.hpp"

namespace rondo::checkpoint {

/// The manifest's table from the dotted paths of tensors to their records, in the making.
class tensor_table {
 public:
  /// Adds a tensor unless there is one of this path: keys may hold dots themselves, so paths may read alike.
  void add(std::string_view path, std::string_view storage_key);
  /// What stands between the table's braces.
  [[nodiscard]] std::string take() && { return std::move(json_); }

 private:
  [[nodiscard]] std::string_view path(std::size_t i) const;

  std::string json_;
  std::string paths_;
  std::vector<std::size_t> ends_;
  state::position_index index_;
};

}  // namespace rondo::checkpoint

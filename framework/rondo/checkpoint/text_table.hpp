#pragma once

#include <cstddef>
#include <functional>
#include <string_view>
#include <vector>

#include "rondo/state/position_index.hpp"

namespace rondo::checkpoint {

/// Gives equal texts equal numbers: 0, 1, 2, … in the order in which they first come. The texts stay the caller's.
class text_table {
 public:
  struct place {
    std::size_t number;
    bool is_new;
  };

  static constexpr std::size_t npos = state::position_index::npos;

  [[nodiscard]] std::size_t find(std::string_view text) const { return find(text, hash_of(text)); }
  place add(std::string_view text) {
    const auto hash = hash_of(text);
    const auto known = find(text, hash);
    if (known != npos) return {known, false};
    index_.insert(hash, texts_.size());
    texts_.push_back(text);
    return {texts_.size() - 1, true};
  }
  void reserve(std::size_t count) {
    texts_.reserve(count);
    index_.reserve(count);
  }

 private:
  [[nodiscard]] static std::size_t hash_of(std::string_view text) { return std::hash<std::string_view>()(text); }
  [[nodiscard]] std::size_t find(std::string_view text, std::size_t hash) const {
    return index_.find(hash, [&](std::size_t i) { return texts_[i] == text; });
  }

  std::vector<std::string_view> texts_;
  state::position_index index_;
};

}  // namespace rondo::checkpoint

#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

namespace rondo::state {

/// Finds by hash where in a sequence something stands. The index knows positions and hashes only; the sequence and what
/// is equal in it are the owner's. One block of memory: many times faster than a table of nodes when there are 100,000
/// names.
class position_index {
 public:
  static constexpr std::size_t npos = std::numeric_limits<std::size_t>::max();

  position_index() = default;
  position_index(const position_index&) = default;
  position_index& operator=(const position_index&) = default;
  /// What was moved from is empty.
  position_index(position_index&& other) noexcept
      : places_(std::exchange(other.places_, {})), count_(std::exchange(other.count_, 0)) {}
  position_index& operator=(position_index&& other) noexcept {
    places_ = std::exchange(other.places_, {});
    count_ = std::exchange(other.count_, 0);
    return *this;
  }

  [[nodiscard]] bool empty() const noexcept { return count_ == 0; }

  void reserve(std::size_t count) {
    std::size_t places = smallest;
    while (places / 2 < count) places *= 2;
    if (places > places_.size()) rehash(places);
  }

  /// The position with this hash for which `is_it(position)` holds, or npos.
  template <class Predicate>
  [[nodiscard]] std::size_t find(std::size_t hash, Predicate is_it) const {
    if (places_.empty()) return npos;
    const auto mark = mixed(hash);
    for (std::size_t at = mark & mask();; at = (at + 1) & mask()) {
      const place& here = places_[at];
      if (here.position == none) return npos;
      if (here.mark == mark && is_it(std::size_t{here.position})) return here.position;
    }
  }

  /// `position` must not be in the index. Throws std::length_error beyond 2^32 - 2 positions.
  void insert(std::size_t hash, std::size_t position) {
    if (position >= none) throw std::length_error("more than 2^32 - 2 names");
    if ((count_ + 1) * 2 > places_.size()) rehash(places_.empty() ? smallest : places_.size() * 2);
    put({mixed(hash), static_cast<std::uint32_t>(position)});
    ++count_;
  }

  void clear() noexcept {
    places_.clear();
    count_ = 0;
  }

 private:
  static constexpr std::size_t smallest = 32;
  static constexpr std::uint32_t none = std::numeric_limits<std::uint32_t>::max();
  struct place {
    std::uint32_t mark = 0;
    std::uint32_t position = none;
  };

  // Hashes of numbers and pointers are often the numbers themselves.
  [[nodiscard]] static std::uint32_t mixed(std::size_t hash) noexcept {
    return static_cast<std::uint32_t>(static_cast<std::uint64_t>(hash) * 0x9e3779b97f4a7c15u >> 32);
  }
  [[nodiscard]] std::size_t mask() const noexcept { return places_.size() - 1; }

  void put(place item) noexcept {
    std::size_t at = item.mark & mask();
    while (places_[at].position != none) at = (at + 1) & mask();
    places_[at] = item;
  }
  void rehash(std::size_t places) {
    std::vector<place> old(places);
    old.swap(places_);
    for (const place& item : old)
      if (item.position != none) put(item);
  }

  std::vector<place> places_;
  std::size_t count_ = 0;
};

}  // namespace rondo::state

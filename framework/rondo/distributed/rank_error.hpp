#pragma once

#include <string>
#include <vector>

#include "rondo/error.hpp"

namespace rondo::distributed {

/// Ranks did not do what the others waited for: they are gone, late, or do something else. The group cannot be used any
/// more; a new start of all ranks can go on from the newest snapshot.
class rank_error : public error {
 public:
  rank_error(const std::string& what, std::vector<int> ranks) : error(what), ranks_(std::move(ranks)) {}

  /// Those that were missing, in ascending order.
  [[nodiscard]] const std::vector<int>& ranks() const noexcept { return ranks_; }

 private:
  std::vector<int> ranks_;
};

}  // namespace rondo::distributed

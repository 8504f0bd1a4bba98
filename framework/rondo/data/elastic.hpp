#pragma once

#include <cstdint>

#include "rondo/state/value.hpp"

namespace rondo::data {

/// Where a pass goes on in a pipeline that deals its samples out differently.
struct moved_position {
  std::int64_t position = 0;  ///< in elements of the present pipeline
  std::int64_t repeated = 0;  ///< samples that come once more, because no present element begins where the stored one did
};

/// The place in the present pipeline of the sample with which the next element of the stored one begins. Both are states
/// of a `pass`. They may differ in the size of `batch` and in the number of ranks of `distributed`, whose ranks have all
/// come to the same element; the place is the same for all ranks then. Throws `state_error` for what is not the state of
/// a pass.
[[nodiscard]] moved_position position_in(const state::value& present, const state::value& stored);

}  // namespace rondo::data

#pragma once

#include <cstddef>
#include <functional>
#include <span>

#include "rondo/writing/file_system.hpp"

namespace at {
class Tensor;
}
namespace rondo::state {
template <class Tensor>
class basic_value;
using value = basic_value<at::Tensor>;
}  // namespace rondo::state

namespace rondo::writing {

/// A format of the user's own (pytorch-pfn-extras: a writer's `savefun`): writes `state` to a file at `temporary`, a
/// path at which nothing exists, and leaves it there closed. The file is then synced and given its name as any other.
///
/// It runs where its writer works. The state is one instant; its tensors may refer to the writer's memory, so they are
/// valid during the call, and are neither kept nor changed. What it throws is the snapshot's error.
using savefun = std::function<void(const path& temporary, const state::value& state)>;

/// The same for a checkpoint in staging memory whose checksums nobody has computed.
using image_savefun = std::function<void(const path& temporary, std::span<const std::byte> image)>;

}  // namespace rondo::writing

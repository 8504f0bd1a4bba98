#pragma once

#include "rondo/async/task.hpp"
#include "rondo/distributed/rank_group.hpp"
#include "rondo/state/value.hpp"

namespace rondo::distributed {

/// The tree with the whole tensor in the place of every sharded one (`state::sharded_tensor`), on all ranks: what an
/// ordinary snapshot holds, and what optimizers without ranks and Python load. Everything else stays as it is on each
/// rank; nothing aliases the parts.
///
/// Every rank calls it, with trees that have the same sharded tensors in the same order; which parts each rank has is
/// found out. The parts travel one after the other, so that beside the result a rank needs the memory of one message (a
/// few MiB, or the largest part if that is no run of bytes in the whole tensor). Whole tensors are on the kind of
/// device that the parts are on.
///
/// Throws `state_error`, the same on all ranks, which names path and rank when the ranks' sharded tensors are not the
/// same, are none, or leave gaps or overlap; `rank_error` when a rank is gone or late. The parts must not change until
/// it completes. Cancellation waits for the message that is under way; the other ranks then wait in vain.
[[nodiscard]] task<state::value> consolidate(state::value tree, rank_group group);

}  // namespace rondo::distributed

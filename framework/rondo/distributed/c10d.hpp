#pragma once

#include <torch/version.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#if TORCH_VERSION_MAJOR >= 2
#include <torch/csrc/distributed/c10d/Backend.hpp>
#endif

#include "rondo/distributed/rank_group.hpp"

/// For whoever brings a backend or a store of PyTorch's distributed engine. Needs a LibTorch whose c10d headers are
/// installed.
namespace rondo::distributed {

/// What c10d calls a backend: Gloo, NCCL, MPI, UCC, or one's own.
#if TORCH_VERSION_MAJOR >= 2
using c10d_backend = c10d::Backend;
#else
using c10d_backend = c10d::ProcessGroup;
#endif

/// A group whose tensors travel through `backend`, all of whose ranks are there; `store` is one that all of them share
/// (a TCPStore or FileStore, say), in which Rondo uses keys that begin with "rondo/". `who.master_addr` is rank 0's
/// machine; who.rank and who.world_size must be the backend's. Blocks until all ranks have met. Give it the timeout of
/// `options`: a rank that hangs within an operation is found when the backend gives up. Throws as
/// `rank_group::connect`.
[[nodiscard]] rank_group over(c10::intrusive_ptr<c10d_backend> backend, c10::intrusive_ptr<c10d::Store> store,
                              const launch& who, const group_options& options = {});

}  // namespace rondo::distributed

#pragma once

#include <torch/version.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#if TORCH_VERSION_MAJOR >= 2
#include <torch/csrc/distributed/c10d/Backend.hpp>
#endif

#include <functional>

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

/// Makes a backend for rank `rank` of `world_size`, all of which share `store`.
using backend_maker =
    std::function<c10::intrusive_ptr<c10d_backend>(c10::intrusive_ptr<c10d::Store> store, int rank, int world_size)>;

/// The same with a backend that `make` makes, for this group and for each one that is split off it: without, those
/// exchange no tensors. `make` runs on threads of its own, in parts of the store of their own, and is left to itself
/// when ranks fail or `connect_timeout` is over: it must own what it uses.
[[nodiscard]] rank_group over(backend_maker make, c10::intrusive_ptr<c10d::Store> store, const launch& who,
                              const group_options& options = {});

}  // namespace rondo::distributed

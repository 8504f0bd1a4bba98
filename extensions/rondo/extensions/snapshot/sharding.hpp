#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "rondo/checkpoint/sharded.hpp"
#include "rondo/state/value.hpp"

/// Between the states of several ranks and the files of a sharded snapshot (checkpoint/sharded.hpp). Nothing here talks
/// to other ranks.
///
/// Kept in pieces are tensors of 4 KiB and more, and sharded tensors (`state::sharded_tensor`) of any size. Of sharded
/// ones each rank writes what it has. The others are the same on all ranks; they are spread evenly: in the order of the
/// tree they form one line of bytes, which is cut into as many equal parts as there are ranks, at whole rows of the
/// first dimension. Leaves that are the same tensor (tied weights) are written once. What a rank writes of a tensor is
/// cut once more, into pieces of whole rows and about 1/512 of the whole tensor, but no less than 16 KiB, so that other
/// numbers of ranks read little more than what they need.
namespace rondo::extensions {

using storages = std::unordered_set<const c10::StorageImpl*>;

/// Tensors that only rank `owner` writes, all rows of them, because the others may have other values in them: those of
/// 4 KiB and more in `state` whose storages are not in `spread`. In the result each of them is a sharded tensor, of
/// which the owner, for whom `is_owner` is true, has the whole and the others nothing.
[[nodiscard]] state::value with_owner(const state::value& state, const storages& spread, bool is_owner);

/// The state with copies, on the CPU, of the tensors that are not kept in pieces, for an `index_of` later on.
[[nodiscard]] state::value outline_of(const state::value& state);

/// Whether there is a sharded tensor anywhere in the state.
[[nodiscard]] bool has_sharded(const state::value& state);

/// What one rank writes.
struct share {
  /// The pieces, each a tensor with a storage of its own over the memory of the state, on the same device and with the
  /// same version counter: no bytes are copied unless a tensor is not contiguous or has a conjugation or negation
  /// pending. The memory lives as long as the pieces do.
  state::list pieces;
  /// What the saver must know: which tensors this rank has, and which parts of them it writes. Binary.
  std::string receipt;
};

/// Makes one rank's shares of one state after another, such as those of a training's snapshots. Not tied to a thread,
/// but to one at a time.
class sharer {
 public:
  sharer();
  ~sharer();
  sharer(const sharer&) = delete;
  sharer& operator=(const sharer&) = delete;

  /// The share of rank `rank` in a state, of which all ranks have the same tensors in the same order. Takes about a
  /// microsecond for each tensor and piece; pieces of storages in `resting` are made once, for as long as nothing about
  /// their tensor but its content changes, and keep its memory until the next share. Throws `state_error` with the path
  /// of a tensor that files cannot hold.
  [[nodiscard]] share share_of(const state::value& state, int rank, int world_size, const storages& resting = {});

  /// The storages of the last share's pieces whose memory is that of storages that rest.
  [[nodiscard]] std::shared_ptr<const storages> resting_pieces() const noexcept { return resting_pieces_; }

 private:
  struct cut_part;
  class builder;

  std::vector<cut_part> known_;  // parts in storages that rest
  std::shared_ptr<const storages> resting_pieces_;
};

/// The same for a single state.
[[nodiscard]] share share_of(const state::value& state, int rank, int world_size);

/// The tree of "complete": `state` with tables of all ranks' pieces in the place of what is kept in pieces. `receipts`
/// are those of all ranks, by rank. Throws `state_error` naming path and rank when the ranks' tensors are not the same,
/// or when the parts of a sharded tensor leave a gap or overlap.
[[nodiscard]] state::value index_of(const state::value& state, const std::vector<std::string>& receipts);

/// The state in a sharded snapshot, as this rank wants it: where `wanted`, the present state, has a sharded tensor of
/// the same sizes at the same path, the result has one with exactly these parts (of the dtype that was saved);
/// everywhere else the whole tensor. Tensors are on the CPU and own their memory. Leaves that were one tensor are one
/// again. `wanted` may be null and may have other keys. Read are only the pieces that are needed, each once, on up to
/// `at::get_num_threads()` threads; all that is read is verified. Throws as `checkpoint::sharded_reader` does.
[[nodiscard]] state::value load_sharded(const checkpoint::sharded_reader& from, const state::value& wanted);

/// The same from the directory.
[[nodiscard]] state::value read_sharded(const std::filesystem::path& directory, const state::value& wanted);

}  // namespace rondo::extensions

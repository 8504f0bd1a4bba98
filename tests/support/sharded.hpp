#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "rondo/checkpoint/tensors.hpp"
#include "rondo/extensions/snapshot/sharding.hpp"
#include "rondo/state/sharded_tensor.hpp"
#include "rondo/state/value.hpp"
#include "support/checkpoint.hpp"

namespace rondo::testing {

/// A checkpoint file as every snapshot writes it.
inline void save(const std::filesystem::path& path, const state::value& state, checkpoint::snapshot_info info = {}) {
  const auto all = checkpoint::describe(state);
  write_to_file(path.string(), write_to_memory(checkpoint::encoder(all.tree, all.views(), std::move(info))));
}

/// The directory that ranks with these states write, rank 0 being the saver.
inline void save_sharded(const std::filesystem::path& directory, const std::vector<state::value>& of_ranks,
                         std::int64_t attempt = 1) {
  std::filesystem::create_directories(directory);
  const auto world_size = static_cast<int>(of_ranks.size());
  std::vector<std::string> receipts;
  for (int rank = 0; rank < world_size; ++rank) {
    auto part = extensions::share_of(of_ranks[static_cast<std::size_t>(rank)], rank, world_size);
    receipts.push_back(part.receipt);
    state::dict mark{{"attempt", attempt}, {"rank", rank}, {"world_size", world_size}};
    save(directory / std::to_string(rank), state::dict{{"pieces", part.pieces}, {"rondo", std::move(mark)}});
  }
  auto index = extensions::index_of(of_ranks[0], receipts);
  index.as<state::dict>()["rondo"] =
      state::dict{{"sharded", state::dict{{"attempt", attempt}, {"world_size", world_size}}}};
  save(directory / checkpoint::sharded_index, index, {7, 2, false, {}, 1, "snapshot"});
}

/// Rank `rank`'s rows of a tensor that is spread over ranks by rows, as equally as it goes.
inline state::value rows_of(const at::Tensor& whole, int rank, int world_size) {
  state::sharded_tensor result{whole.sizes().vec(), whole.scalar_type(), {}};
  const auto begin = whole.size(0) * rank / world_size;
  const auto end = whole.size(0) * (rank + 1) / world_size;
  std::vector<std::int64_t> offsets(result.sizes.size(), 0);
  offsets[0] = begin;
  if (begin < end) result.pieces.push_back({offsets, whole.narrow(0, begin, end - begin)});
  return result.to_value();
}

}  // namespace rondo::testing

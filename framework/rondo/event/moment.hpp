#pragma once

#include <cstdint>
#include <optional>

namespace rondo {

class observations;
class summary;

/// The other ranks of a training, as a trigger asks them. All ranks ask the same questions in the same order; a call
/// blocks until all have, and throws `distributed::rank_error` when one does not.
class rank_link {
 public:
  virtual ~rank_link() = default;
  /// What rank 0 says.
  [[nodiscard]] virtual bool first_says(bool mine) const = 0;
  /// The summaries of all ranks as one, with the same bits on each.
  [[nodiscard]] virtual summary joined(const summary& mine) const = 0;
};

/// Where training stands, as a trigger sees it: after `iteration` iterations, `iteration_in_epoch` of them in the epoch
/// with the index `epoch_index`. At the last iteration of an epoch `epoch_end` is true and `epoch_index` is still that
/// epoch.
struct moment {
  std::int64_t iteration = 0;           ///< iterations done since the very beginning, over all resumes
  std::int64_t epoch_index = 0;         ///< index of the epoch that the last iteration belongs to, from 0
  std::int64_t iteration_in_epoch = 0;  ///< iterations of that epoch done
  bool epoch_end = false;               ///< the last iteration ended its epoch
  std::optional<std::int64_t>
      epoch_length;           ///< iterations per epoch; unknown in the first epoch of a range without a size
  double elapsed_time = 0.0;  ///< seconds of training, over all resumes
  const observations* observed = nullptr;  ///< what has been reported in this iteration
  const rank_link* ranks = nullptr;        ///< null for a process alone

  /// Epochs finished.
  [[nodiscard]] std::int64_t epoch() const noexcept { return epoch_index + (epoch_end ? 1 : 0); }
};

}  // namespace rondo

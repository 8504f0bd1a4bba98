#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "rondo/distributed/launch.hpp"
#include "rondo/distributed/rank_group.hpp"

namespace rondo::distributed {

/// Messages of LibTorch end with a backtrace.
[[nodiscard]] inline std::string without_backtrace(const std::string& what) {
  return what.substr(0, what.find("\nException raised from"));
}

/// What carries tensors between ranks. Used by one thread at a time.
class tensor_backend {
 public:
  /// Called once, on any thread, when the operation is over.
  using finished = std::function<void(std::exception_ptr failed)>;
  /// Called afterwards on the thread that goes on with the tensors: a device's streams wait for them.
  using synchronize = std::function<void()>;

  virtual ~tensor_backend() = default;
  virtual synchronize all_reduce(at::Tensor tensor, reduce_op op, finished then) = 0;
  virtual synchronize broadcast(at::Tensor tensor, int root, finished then) = 0;
  /// `all` holds a tensor like `mine` for each rank.
  virtual synchronize all_gather(std::vector<at::Tensor> all, at::Tensor mine, finished then) = 0;
  /// One for some of the ranks, all of which call it with the same `name`; `who` says which of them this is. Blocks
  /// until all have; any thread. Null if it cannot. Throws `rank_error`.
  virtual std::shared_ptr<tensor_backend> split(roll_call& roll, const std::string& name, const launch& who,
                                                const group_options& options) = 0;
  /// The group has failed: nothing waits any more for what is under way.
  virtual void abandon() noexcept = 0;
};

/// Where the ranks of one start learn where rank 0 listens; then their backend for tensors. Made by
/// `rank_group::connect`.
struct rendezvous {
  std::shared_ptr<roll_call> roll;
  std::shared_ptr<tensor_backend> tensors;
};

/// With c10d. Throws as `rank_group::connect`.
[[nodiscard]] rendezvous meet_with_c10d(const launch& who, const group_options& options);

}  // namespace rondo::distributed

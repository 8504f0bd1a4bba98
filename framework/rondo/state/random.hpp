#pragma once

#include "rondo/state/value.hpp"

namespace rondo::state {

/// The states of LibTorch's default generators, as Python's `torch.get_rng_state()` and
/// `torch.cuda.get_rng_state_all()` give them: {"cpu": uint8 tensor, "cuda": [one uint8 tensor per device]}; "cuda" is
/// there only where devices are. The tensors are copies.
[[nodiscard]] dict random_state();

/// Puts the default generators into the states that `random_state` gave, so that they go on with the same numbers.
/// States of CUDA devices that this machine lacks are passed over; devices that `state` lacks keep theirs.
/// Throws `state_error` when a state is not one; then no generator has changed. Any thread.
void load_random_state(const value& state);

/// The default generators as a stateful object.
struct random_generators {
  [[nodiscard]] dict state_dict() const { return random_state(); }
  void load_state_dict(const value& state) { load_random_state(state); }
};

}  // namespace rondo::state

#pragma once

#include <cstdint>

#include "rondo/state/value.hpp"

namespace rondo {

/// Seeds every default generator of LibTorch: that of the CPU, and those of the accelerators that are there. Each then
/// gives the numbers that it gives in Python after `torch.manual_seed(seed)`. Any thread.
///
/// That is everything that Rondo and LibTorch draw from by themselves. The stages of a data pipeline have seeds of
/// their own (`data::shuffle(seed)`), and so has a generator of yours, which you may give to `loop::remember`.
/// `std::rand` is left alone: nothing here uses it, and its state can be neither saved nor restored, so that no resumed
/// training could go on with its numbers.
void seed_everything(std::uint64_t seed);

namespace state {

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

}  // namespace state
}  // namespace rondo

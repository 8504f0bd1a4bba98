#pragma once

#include <ATen/CPUGeneratorImpl.h>

#include "rondo/data/random.hpp"

namespace rondo::data {

/// A generator of the CPU for LibTorch's own random functions, `at::rand({3}, torch_generator(random))`, seeded with
/// the next number of `random`. Its numbers are those of LibTorch's Mersenne twister, of whose seed only the low 32
/// bits count. Making one costs about as much as 600 random numbers: make one per element and not one per number.
[[nodiscard]] inline at::Generator torch_generator(random_sequence& random) {
  return at::detail::createCPUGenerator(random());
}

}  // namespace rondo::data

#pragma once

#include <c10/core/Device.h>

#include <string>
#include <vector>

#include "rondo/state/value.hpp"

/// What the last bits of a result depend on besides the program and its data.
namespace rondo::state {

/// The present one, for training on `device`:
///
/// * "libtorch": its version, such as "1.13.0";
/// * "device": the type of the device, "cpu" or "cuda";
/// * "threads": how many LibTorch uses inside an operation. Another number changes the order of sums;
/// * "cpu": the instructions that LibTorch's kernels use, such as "AVX2" ("" if it does not say);
/// * "deterministic": whether operations without a deterministic way are refused.
///
/// Any thread; LibTorch's number of threads is that of the calling one.
[[nodiscard]] dict environment_state(c10::Device device = c10::kCPU);

/// How the present environment differs from a stored one, in words for people, one per difference: "4 threads then, 2
/// now". Only what both know is compared. Throws `state_error` when `stored` is no dict.
[[nodiscard]] std::vector<std::string> environment_differences(const value& stored, c10::Device device = c10::kCPU);

}  // namespace rondo::state

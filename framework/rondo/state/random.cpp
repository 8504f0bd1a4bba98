#include "rondo/state/random.hpp"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/core/Generator.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <torch/cuda.h>

#include <mutex>
#include <utility>
#include <vector>

#include "rondo/state/bits.hpp"

namespace rondo {

void seed_everything(std::uint64_t seed) { at::manual_seed(seed); }

namespace state {

namespace {

// The handle is shared, so a copy refers to the same generator.
at::Generator cpu_generator() { return at::globalContext().defaultGenerator(at::Device(at::kCPU)); }

at::Generator cuda_generator(std::size_t device) {
  return at::globalContext().defaultGenerator(at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device)));
}

at::Tensor state_of(at::Generator generator) {
  const std::scoped_lock lock(generator.mutex());
  return generator.get_state();
}

void set_state(at::Generator generator, const at::Tensor& state) {
  const std::scoped_lock lock(generator.mutex());
  generator.set_state(state);
}

/// A generator of the same kind, to try a state on. Made afresh for the CPU, because LibTorch 1.13 leaks clones.
at::Generator spare_generator(at::Generator generator) {
  if (generator.device().is_cpu()) return at::make_generator<at::CPUGeneratorImpl>();
  const std::scoped_lock lock(generator.mutex());
  return generator.clone();
}

/// The state as a tensor of its own that a generator of this kind accepts. LibTorch checks only while it sets a state,
/// so a copy of the generator tries it.
at::Tensor checked(at::Generator generator, const value& state, const std::string& key) {
  const at::Tensor* given = state.get_if<at::Tensor>();
  if (given == nullptr) throw state_error(key, "expected a uint8 Tensor, found " + state.type_name());
  if (!has_plain_bytes(*given) || given->scalar_type() != at::kByte || given->dim() != 1)
    throw state_error(key, "a generator's state is a dense uint8 tensor of one dimension");
  at::Tensor bytes = plain_bytes(*given).clone();
  at::Generator trial = spare_generator(generator);
  try {
    set_state(trial, bytes);
  } catch (const c10::Error& e) {
    throw state_error(key, fmt::format("LibTorch refuses this generator state of {} bytes: {}", bytes.numel(),
                                       e.what_without_backtrace()));
  }
  return bytes;
}

}  // namespace

dict random_state() {
  dict states{{"cpu", state_of(cpu_generator())}};
  if (const std::size_t devices = torch::cuda::device_count(); devices > 0) {
    list cuda;
    for (std::size_t i = 0; i < devices; ++i) cuda.emplace_back(state_of(cuda_generator(i)));
    states.insert_or_assign("cuda", std::move(cuda));
  }
  return states;
}

void load_random_state(const value& state) {
  std::vector<std::pair<at::Generator, at::Tensor>> accepted;
  accepted.emplace_back(cpu_generator(), checked(cpu_generator(), state.at("cpu"), "cpu"));
  if (const value* cuda = state.as<dict>().find("cuda"); cuda != nullptr) {
    const list& states = state.get<list>("cuda");
    const std::size_t devices = std::min<std::size_t>(states.size(), torch::cuda::device_count());
    for (std::size_t i = 0; i < devices; ++i)
      accepted.emplace_back(cuda_generator(i), checked(cuda_generator(i), states[i], fmt::format("cuda.{}", i)));
  }
  for (const auto& [generator, bytes] : accepted) set_state(generator, bytes);
}

}  // namespace state
}  // namespace rondo

#pragma once

#include <bit>
#include <cstdint>
#include <limits>

/// Random numbers for data pipelines that are the same on every platform, compiler and standard library, unlike the
/// standard distributions and `std::shuffle`, whose results each library chooses for itself.
namespace rondo::data {

/// A bijection on 64 bits in which every input bit changes every output bit with a probability near one half.
/// Source: G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, with the
/// constants of the reference implementation of splitmix64 (S. Vigna, public domain).
[[nodiscard]] constexpr std::uint64_t mix_bits(std::uint64_t x) noexcept {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31);
}

/// The seed of one stream of random numbers among many: one per (seed, epoch, index). Neighbouring arguments give
/// unrelated seeds, and so do exchanged ones. Defined as h(h(h(seed, 0), epoch), index), where
/// h(x, y) = mix_bits((x ^ y) + g) and g = 0x9e3779b97f4a7c15, all modulo 2^64. A random augmentation that takes its
/// numbers from `random_sequence(sample_seed(seed, place.epoch, place.index))` is the same after a resume. Index -1
/// belongs to `shuffle`, -2 to `weighted`.
[[nodiscard]] constexpr std::uint64_t sample_seed(std::uint64_t seed, std::int64_t epoch, std::int64_t index) noexcept {
  constexpr std::uint64_t g = 0x9e3779b97f4a7c15U;
  std::uint64_t mixed = mix_bits(seed + g);
  mixed = mix_bits((mixed ^ static_cast<std::uint64_t>(epoch)) + g);
  return mix_bits((mixed ^ static_cast<std::uint64_t>(index)) + g);
}

/// A counter-based random number generator (SplitMix64): the number at position i is mix_bits(seed + (i + 1) * g), g as
/// above, so that any position is reached in constant time. A standard `uniform_random_bit_generator`; for integers in
/// a range use `below`, for floating point `uniform`, whose results are specified too. Not for cryptography.
class random_sequence {
 public:
  using result_type = std::uint64_t;

  constexpr explicit random_sequence(std::uint64_t seed = 0) noexcept : seed_(seed) {}

  [[nodiscard]] static constexpr result_type min() noexcept { return 0; }
  [[nodiscard]] static constexpr result_type max() noexcept { return std::numeric_limits<result_type>::max(); }

  /// The number at `position`, counted from 0; leaves the generator as it is.
  [[nodiscard]] constexpr result_type at(std::uint64_t position) const noexcept {
    return mix_bits(seed_ + (position + 1) * 0x9e3779b97f4a7c15U);
  }

  /// The next number.
  constexpr result_type operator()() noexcept { return at(position_++); }

  /// An integer in [0, bound), each with the same probability; `bound` is at least 1. Takes the low bits of as many
  /// numbers as it needs until they fall below `bound`: one or two on average.
  constexpr std::uint64_t below(std::uint64_t bound) noexcept {
    const std::uint64_t mask = bound <= 1 ? 0 : max() >> std::countl_zero(bound - 1);
    std::uint64_t drawn = (*this)() & mask;
    while (drawn >= bound && mask != 0) drawn = (*this)() & mask;
    return drawn;
  }

  /// A multiple of 2^-53 in [0, 1).
  constexpr double uniform() noexcept { return static_cast<double>((*this)() >> 11) * 0x1.0p-53; }

 private:
  std::uint64_t seed_;
  std::uint64_t position_ = 0;
};

}  // namespace rondo::data

#include "rondo/data/weighted.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "rondo/data/random.hpp"
#include "rondo/error.hpp"

namespace rondo::data {

namespace {

/// Node i has the children 2 i and 2 i + 1; the root is node 1.
class sum_tree {
 public:
  explicit sum_tree(std::span<const double> weights)
      : leaves_(std::bit_ceil(std::max<std::size_t>(weights.size(), 1))), sums_(2 * leaves_) {
    std::copy(weights.begin(), weights.end(), sums_.begin() + static_cast<std::ptrdiff_t>(leaves_));
    for (std::size_t node = leaves_ - 1; node > 0; --node) add_children(node);
  }

  /// The leaf that `part` of the whole sum, from 0 to below 1, falls on.
  [[nodiscard]] std::size_t find(double part) const {
    // Machines that multiply and subtract in one step would round differently.
    const volatile double product = part * sums_[1];
    double rest = product;
    std::size_t node = 1;
    while (node < leaves_) {
      const double left = sums_[2 * node];
      const bool goes_left = rest < left || sums_[2 * node + 1] == 0.0;
      if (!goes_left) rest -= left;
      node = 2 * node + (goes_left ? 0 : 1);
    }
    return node - leaves_;
  }

  void remove(std::size_t leaf) {
    std::size_t node = leaves_ + leaf;
    sums_[node] = 0.0;
    while (node > 1) {
      node /= 2;
      add_children(node);
    }
  }

 private:
  void add_children(std::size_t node) { sums_[node] = sums_[2 * node] + sums_[2 * node + 1]; }

  std::size_t leaves_;
  std::vector<double> sums_;
};

}  // namespace

std::vector<std::int64_t> drawn_positions(std::span<const double> weights, std::int64_t samples, bool replacement,
                                          std::uint64_t seed, std::int64_t epoch) {
  sum_tree tree(weights);
  random_sequence random(sample_seed(seed, epoch, -2));
  std::vector<std::int64_t> drawn;
  drawn.reserve(static_cast<std::size_t>(samples));
  while (static_cast<std::int64_t>(drawn.size()) < samples) {
    const auto leaf = tree.find(random.uniform());
    if (!replacement) tree.remove(leaf);
    drawn.push_back(static_cast<std::int64_t>(leaf));
  }
  return drawn;
}

namespace detail {

void check_weights(std::span<const double> weights, const weighted_options& options) {
  for (std::size_t i = 0; i < weights.size(); ++i)
    if (!std::isfinite(weights[i]) || weights[i] < 0)
      throw option_error(fmt::format("weights[{}]", i), fmt::format("{}", weights[i]), "a finite number from 0");
  const auto positive = std::count_if(weights.begin(), weights.end(), [](double weight) { return weight > 0; });
  if (positive == 0)
    throw option_error("weights", weights.empty() ? "none" : "all 0", "a list with at least one weight above 0");
  if (const double sum = std::accumulate(weights.begin(), weights.end(), 0.0); !std::isfinite(sum))
    throw option_error("weights", fmt::format("weights with the sum {}", sum), "weights with a finite sum");
  const auto samples = options.samples.value_or(static_cast<std::int64_t>(weights.size()));
  if (samples < 1) throw option_error("samples", fmt::format("{}", samples), "1 or more");
  if (!options.replacement && samples > positive)
    throw option_error("samples", fmt::format("{}", samples),
                       fmt::format("at most {} without replacement, the number of weights above 0", positive));
}

void check_weight_count(std::int64_t weights, std::int64_t elements) {
  if (weights != elements)
    throw option_error("weights", fmt::format("{} weights", weights),
                       fmt::format("{}, one for each element of the range", elements));
}

std::int64_t digest_of(std::span<const double> weights) {
  std::uint64_t digest = weights.size();
  for (const double weight : weights) digest = mix_bits(digest ^ std::bit_cast<std::uint64_t>(weight));
  return static_cast<std::int64_t>(digest);
}

void fail_resized_under_weights(std::int64_t weights, std::int64_t elements) {
  throw error(
      fmt::format("data::weighted: the range below had {} elements, as many as there are weights, and has {} now",
                  weights, elements));
}

weighted_function make_weighted(std::vector<double> weights, std::uint64_t seed, weighted_options options) {
  check_weights(weights, options);
  const auto digest = digest_of(weights);
  return {std::make_shared<const std::vector<double>>(std::move(weights)), digest, seed, options};
}

}  // namespace detail

}  // namespace rondo::data

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "rondo/data/stage.hpp"

namespace rondo::data {

struct weighted_options {
  /// How many elements are drawn for each epoch; as many as the range has if nothing is said.
  std::optional<std::int64_t> samples = std::nullopt;
  /// Whether an element can be drawn more than once in an epoch.
  bool replacement = true;
};

/// Numbers of elements drawn by weight, in the order in which they are drawn: each draw takes one of those that are
/// left with a probability proportional to its weight, all of them being left again after each draw with `replacement`.
/// Depends on its arguments only; the same on every platform with IEEE arithmetic.
///
/// The method is that of C. Wong, M. Easton, "An efficient method for weighted sampling without replacement", SIAM
/// Journal on Computing 9(1), 1980: the weights, followed by zeros up to a power of two, are the leaves of a binary
/// tree in which each other node is the sum of its two children. A draw begins at the root with x = root * u, u being
/// the next `uniform()` of `random_sequence(sample_seed(seed, epoch, -2))`, and goes to the left child when x is below
/// it or when the right child is 0, otherwise to the right child with x less the left one. Without replacement, the
/// leaf becomes 0 and the sums above it are made anew.
[[nodiscard]] std::vector<std::int64_t> drawn_positions(std::span<const double> weights, std::int64_t samples,
                                                        bool replacement, std::uint64_t seed, std::int64_t epoch);

namespace detail {

/// Throws `option_error`.
void check_weights(std::span<const double> weights, const weighted_options& options);
/// Throws `option_error` unless there is one weight for each of `elements`.
void check_weight_count(std::int64_t weights, std::int64_t elements);
/// Tells lists of weights apart.
[[nodiscard]] std::int64_t digest_of(std::span<const double> weights);
[[noreturn]] void fail_resized_under_weights(std::int64_t weights, std::int64_t elements);

using shared_weights = std::shared_ptr<const std::vector<double>>;

template <indexable Base>
class indexed_weighted : public indexed_stage<indexed_weighted<Base>, Base> {
  using stage = indexed_stage<indexed_weighted<Base>, Base>;

 public:
  static constexpr const char* stage_name = "weighted";

  indexed_weighted() = default;
  indexed_weighted(Base base, shared_weights weights, std::int64_t digest, std::uint64_t seed, weighted_options options)
      : stage(std::move(base)),
        weights_(std::move(weights)),
        digest_(digest),
        seed_(seed),
        samples_(options.samples.value_or(weight_count())),
        replacement_(options.replacement) {
    check_weight_count(weight_count(), size_of(this->below()));
    draw();
  }

  void set_epoch(std::int64_t epoch) {
    stage::set_epoch(epoch);
    if (epoch == epoch_) return;
    epoch_ = epoch;
    draw();
  }

  template <class Self, class Visitor>
  static void visit_settings(Self& self, Visitor& visitor) {
    visitor.seed("seed", self.seed_);
    visitor.number("samples", self.samples_);
    visitor.number("replacement", self.replacement_ ? 1 : 0);
    visitor.number("weights_digest", self.digest_);
  }
  void load_state_dict(const state::value& stored) {
    const auto present = seed_;
    stage::load_state_dict(stored);
    if (seed_ != present) draw();
  }

  [[nodiscard]] std::int64_t size() const { return samples_; }

  [[nodiscard]] decltype(auto) element(std::int64_t index) const {
    return this->below(drawn()[static_cast<std::size_t>(index)]);
  }

  [[nodiscard]] auto gather(std::span<const std::int64_t> positions) const requires gatherable<Base> {
    const auto& drawn = this->drawn();
    std::vector<std::int64_t> below;
    below.reserve(positions.size());
    for (const auto position : positions) below.push_back(drawn.at(static_cast<std::size_t>(position)));
    return detail::gather(this->below(), below);
  }

 private:
  [[nodiscard]] std::int64_t weight_count() const { return static_cast<std::int64_t>(weights_->size()); }

  void draw() {
    drawn_ = std::make_shared<const std::vector<std::int64_t>>(
        drawn_positions(*weights_, samples_, replacement_, seed_, epoch_));
  }

  [[nodiscard]] const std::vector<std::int64_t>& drawn() const {
    if (const auto found = size_of(this->below()); found != weight_count())
      fail_resized_under_weights(weight_count(), found);
    return *drawn_;
  }

  shared_weights weights_;
  std::int64_t digest_ = 0;
  std::uint64_t seed_ = 0;
  std::int64_t samples_ = 0;
  bool replacement_ = true;
  std::int64_t epoch_ = 0;
  std::shared_ptr<const std::vector<std::int64_t>> drawn_;
};

struct weighted_function {
  shared_weights weights;
  std::int64_t digest;
  std::uint64_t seed;
  weighted_options options;

  template <ranges::input_range Range>
    requires indexable<all_t<Range>>
  auto operator()(Range&& range) const {
    return indexed_weighted<all_t<Range>>(detail::all(std::forward<Range>(range)), weights, digest, seed, options);
  }
};

[[nodiscard]] weighted_function make_weighted(std::vector<double> weights, std::uint64_t seed,
                                              weighted_options options);

}  // namespace detail

/// `range | weighted(weights, seed)`: elements of a random access range, drawn by weight, anew for each epoch, in place
/// of its own order (see `drawn_positions`; the counterpart of Python's WeightedRandomSampler). Rare classes appear
/// more often when each element has one over the size of its class as weight, say. The epoch is 0 until `set_epoch`
/// says otherwise. Weights need not add up to 1; an element of weight 0 is never drawn.
///
/// A random access range with `samples` elements. Drawing takes a time of `samples` times the logarithm of the number
/// of weights, when the view is made and at `set_epoch`; 8 bytes per drawn element and per weight are held, shared by
/// copies. The range must keep its size: reading throws `rondo::error` if it did not.
///
/// Throws `option_error`, naming the position, for a weight that is negative or not finite; when no weight is above 0
/// or their sum is not finite; when `samples` is below 1 or, without replacement, above the number of weights above 0;
/// and, when it is applied, when the range has another number of elements than there are weights.
[[nodiscard]] inline auto weighted(std::vector<double> weights, std::uint64_t seed, weighted_options options = {}) {
  return detail::make_closure(detail::make_weighted(std::move(weights), seed, options));
}

}  // namespace rondo::data

#pragma once

#include <ATen/core/Tensor.h>

#include <concepts>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "rondo/loop/context.hpp"

/// What an `evaluator` and `evaluate` measure.
namespace rondo::metrics {

namespace detail {

template <class T>
concept number = std::is_arithmetic_v<T> || std::same_as<T, at::Tensor>;

template <class T>
concept named_numbers = requires(const T& all) {
  { all.begin()->first } -> std::convertible_to<std::string>;
  requires number<std::remove_cvref_t<decltype(all.begin()->second)>>;
  all.end();
};

template <class M>
concept takes_context = requires(M& m, context& ctx, const at::Tensor& t) {
  m.update(ctx, t, t);
};

template <class M>
concept has_sums = requires(M& m, const M& c, const at::Tensor& sums) {
  { c.sums() } -> std::convertible_to<at::Tensor>;
  m.set_sums(sums);
};

template <class M>
concept has_parts = requires(M& m, const M& c, const std::vector<std::string>& parts) {
  { c.pack() } -> std::convertible_to<std::string>;
  m.merge(parts);
};

template <class M>
concept takes_tensors = requires(M& m, const at::Tensor& t) {
  m.update(t, t);
};

template <class M>
using computed_t = std::remove_cvref_t<decltype(std::declval<M&>().compute())>;

}  // namespace detail

/// A metric sees the model's output and the target of each batch, and then gives its value. It has
///
/// * `void reset()`, called before each evaluation;
/// * `void update(const at::Tensor& output, const at::Tensor& target)`, or the same with a `context&` before them,
/// without
///   gradients. Keep sums as tensors and read them in `compute`, so that no batch waits for the device;
/// * `compute()`, which gives a number (or a tensor of one element), reported under `std::string name() const`; or
/// several
///   with their names, such as a `std::map<std::string, double>` (no `name` then).
///
/// With several ranks, each measures its share of the samples. What `compute` gives is then taken as a mean over
/// samples: reported is the mean over the ranks, weighted by their samples. A metric that is no such mean (a count, an
/// F1 score) says how its ranks belong together:
///
/// * `at::Tensor sums() const`, counts and sums that add up over samples, of the same shape and dtype (int64 or
/// float64)
///   on all ranks, also on one that has seen no sample;
/// * `void set_sums(const at::Tensor&)`, after which `compute` tells of these.
///
/// or, where that is no tensor of a shape that is known before:
///
/// * `std::string pack() const`, what this rank knows, in any form;
/// * `void merge(const std::vector<std::string>& parts)`, after which `compute` and `pack` tell of what these know
///   together. `additive` has both.
template <class M>
concept metric = std::move_constructible<M> && requires(M& m) {
  m.reset();
  m.compute();
} &&(detail::takes_context<M> || requires(M & m, const at::Tensor& t) { m.update(t, t); }) &&
    (detail::named_numbers<detail::computed_t<M>> || (detail::number<detail::computed_t<M>> && requires(const M& m) {
       { m.name() } -> std::convertible_to<std::string>;
     }));

}  // namespace rondo::metrics

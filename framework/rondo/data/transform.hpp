#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <optional>
#include <range/v3/utility/semiregular_box.hpp>
#include <type_traits>
#include <utility>

#include "rondo/data/random.hpp"
#include "rondo/data/sample_error.hpp"
#include "rondo/data/stage.hpp"
#include "rondo/data/torch_generator.hpp"

namespace rondo::data {

/// Where an element stands: together with a seed, all that a reproducible random augmentation depends on.
struct place {
  /// As given to `set_epoch`; 0 before.
  std::int64_t epoch = 0;
  /// Counted from 0 within the epoch, in the order of iteration.
  std::int64_t index = 0;

  friend bool operator==(const place&, const place&) = default;
};

namespace detail {

template <class Function, class Element>
concept transforms = std::invocable<Function&, Element> || std::invocable<Function&, Element, place>;

template <class Function, class Element>
auto apply(Function& function, Element&& element, place where) {
  try {
    if constexpr (std::invocable<Function&, Element>)
      return std::invoke(function, std::forward<Element>(element));
    else
      return std::invoke(function, std::forward<Element>(element), where);
  } catch (...) {
    throw_sample_error(where.epoch, where.index);
  }
}

template <class Function, class Element>
using applied_t = decltype(detail::apply(std::declval<Function&>(), std::declval<Element>(), place()));

/// A function with random numbers of its own for each element.
template <class Function>
struct seeded_function {
  Function function;
  std::uint64_t seed;

  template <class Element>
    requires std::invocable<Function&, Element, random_sequence&>
  auto operator()(Element&& element, place where) {
    random_sequence random(sample_seed(seed, where.epoch, where.index));
    return std::invoke(function, std::forward<Element>(element), random);
  }
};

template <class Function>
inline constexpr bool is_seeded = false;
template <class Function>
inline constexpr bool is_seeded<seeded_function<Function>> = true;

/// Makes any function copy-assignable, as a view has to be.
template <class Function>
class stored_function {
 public:
  stored_function() = default;
  explicit stored_function(Function function) : function_(std::move(function)) {}

  [[nodiscard]] Function& get() const { return function_; }

  template <class Visitor>
  void visit_settings(Visitor& visitor) const {
    if constexpr (is_seeded<Function>) visitor.seed("seed", get().seed);
  }

 private:
  mutable ranges::semiregular_box_t<Function> function_;
};

template <indexable Base, class Function>
class indexed_transform : public indexed_stage<indexed_transform<Base, Function>, Base> {
  using stage = indexed_stage<indexed_transform<Base, Function>, Base>;

 public:
  indexed_transform() = default;
  indexed_transform(Base base, Function function) : stage(std::move(base)), function_(std::move(function)) {}

  static constexpr const char* stage_name = "transform";
  template <class Self, class Visitor>
  static void visit_settings(Self& self, Visitor& visitor) {
    self.function_.visit_settings(visitor);
  }

  void set_epoch(std::int64_t epoch) {
    stage::set_epoch(epoch);
    epoch_ = epoch;
  }

  [[nodiscard]] std::int64_t size() const { return size_of(this->below()); }

  [[nodiscard]] auto element(std::int64_t index) const {
    return detail::apply(function_.get(), this->below(index), place{epoch_, index});
  }

 private:
  stored_function<Function> function_;
  std::int64_t epoch_ = 0;
};

template <ranges::input_range Base, class Function>
class streamed_transform
    : public stream_stage<streamed_transform<Base, Function>, Base,
                          applied_t<Function, ranges::range_reference_t<Base>>, stream_cardinality<Base>> {
  using value = applied_t<Function, ranges::range_reference_t<Base>>;
  using stage = stream_stage<streamed_transform<Base, Function>, Base, value, stream_cardinality<Base>>;

 public:
  streamed_transform() = default;
  streamed_transform(Base base, Function function) : stage(std::move(base)), function_(std::move(function)) {}

  static constexpr const char* stage_name = "transform";
  template <class Self, class Visitor>
  static void visit_settings(Self& self, Visitor& visitor) {
    self.function_.visit_settings(visitor);
  }

  void set_epoch(std::int64_t epoch) {
    stage::set_epoch(epoch);
    epoch_ = epoch;
  }

  [[nodiscard]] std::int64_t size() const requires sized<Base> { return size_of(this->below()); }

  [[nodiscard]] std::optional<value> produce() {
    if (!this->reading().next()) return std::nullopt;
    return detail::apply(function_.get(), *this->reading(), place{epoch_, this->index()});
  }

 private:
  stored_function<Function> function_;
  std::int64_t epoch_ = 0;
};

template <class Function>
struct transform_function {
  Function function;

  template <ranges::input_range Range>
    requires transforms<Function, element_t<all_t<Range>>>
  auto operator()(Range&& range) const {
    using base = all_t<Range>;
    if constexpr (indexable<base>)
      return indexed_transform<base, Function>(detail::all(std::forward<Range>(range)), function);
    else
      return streamed_transform<base, Function>(detail::all(std::forward<Range>(range)), function);
  }
};

}  // namespace detail

/// `range | transform(f)`: `f(element)` or `f(element, place)` for every element, whatever the elements are: examples
/// before `batch`, whole batches (much faster) after it. `f` returns what takes the element's place. Sized when the
/// range is, and random access when it is both; `f` runs each time an element is read, so it should depend on its
/// arguments only. For random numbers see below.
///
/// What `f` throws becomes the cause of a `sample_error` with the element's place, unless it says that an operation was
/// cancelled.
template <class Function>
[[nodiscard]] auto transform(Function function) {
  return detail::make_closure(detail::transform_function<Function>{std::move(function)});
}

/// `range | transform(f, seed)`: `f(element, random)` for every element, for random augmentation. `random` is a
/// `random_sequence&` with numbers for this element alone, `random_sequence(sample_seed(seed, epoch, index))`, so
/// results depend neither on the order in which elements are made nor on how many workers make them. LibTorch's random
/// functions take their numbers from `torch_generator(random)`. The seed is part of the state of the pipeline.
/// Otherwise like `transform(f)`.
template <class Function>
[[nodiscard]] auto transform(Function function, std::uint64_t seed) {
  return detail::make_closure(
      detail::transform_function<detail::seeded_function<Function>>{{std::move(function), seed}});
}

}  // namespace rondo::data

#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <optional>
#include <range/v3/utility/semiregular_box.hpp>
#include <type_traits>
#include <utility>

#include "rondo/data/stage.hpp"

namespace rondo::data {

/// Where an element stands: together with a seed, all that a reproducible random augmentation depends on.
struct place {
  /// As given to `set_epoch`; 0 before.
  std::int64_t epoch = 0;
  /// Counted from 0 within the epoch, in the order of iteration.
  std::int64_t index = 0;
};

namespace detail {

template <class Function, class Element>
concept transforms = std::invocable<Function&, Element> || std::invocable<Function&, Element, place>;

template <class Function, class Element>
auto apply(Function& function, Element&& element, place where) {
  if constexpr (std::invocable<Function&, Element>)
    return std::invoke(function, std::forward<Element>(element));
  else
    return std::invoke(function, std::forward<Element>(element), where);
}

template <class Function, class Element>
using applied_t = decltype(detail::apply(std::declval<Function&>(), std::declval<Element>(), place()));

/// Makes any function copy-assignable, as a view has to be.
template <class Function>
class stored_function {
 public:
  stored_function() = default;
  explicit stored_function(Function function) : function_(std::move(function)) {}

  [[nodiscard]] Function& get() const { return function_; }

 private:
  mutable ranges::semiregular_box_t<Function> function_;
};

template <indexable Base, class Function>
class indexed_transform : public indexed_stage<indexed_transform<Base, Function>, Base> {
  using stage = indexed_stage<indexed_transform<Base, Function>, Base>;

 public:
  indexed_transform() = default;
  indexed_transform(Base base, Function function) : stage(std::move(base)), function_(std::move(function)) {}

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

  void set_epoch(std::int64_t epoch) {
    stage::set_epoch(epoch);
    epoch_ = epoch;
  }

  [[nodiscard]] std::int64_t size() const requires sized<Base> { return size_of(this->below()); }

  void start() {
    this->restart();
    index_ = 0;
  }

  [[nodiscard]] std::optional<value> produce() {
    if (!this->reading().next()) return std::nullopt;
    return detail::apply(function_.get(), *this->reading(), place{epoch_, index_++});
  }

 private:
  stored_function<Function> function_;
  std::int64_t epoch_ = 0;
  std::int64_t index_ = 0;
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
/// arguments only: a random augmentation takes its numbers from `random_sequence(sample_seed(seed, place.epoch,
/// place.index))`.
template <class Function>
[[nodiscard]] auto transform(Function function) {
  return detail::make_closure(detail::transform_function<Function>{std::move(function)});
}

}  // namespace rondo::data

#pragma once

#include <cstddef>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "rondo/data/example.hpp"
#include "rondo/data/fields.hpp"
#include "rondo/error.hpp"

namespace rondo::data {

namespace detail {

template <class Batch>
concept has_data_and_target = requires(const Batch& batch) {
  batch.data;
  batch.target;
};

template <class Batch>
constexpr std::size_t count_parts() {
  if constexpr (is_tuple<Batch>)
    return std::tuple_size_v<Batch>;
  else if constexpr (plain_struct<Batch>)
    return std::tuple_size_v<fields_t<Batch>>;
  else
    return 0;
}

template <class Batch>
concept ends_with_target = !has_data_and_target<Batch> && count_parts<Batch>() >= 2;

template <ends_with_target Batch>
auto parts_of(const Batch& batch) {
  if constexpr (is_tuple<Batch>)
    return std::apply([](const auto&... fields) { return std::tie(fields...); }, batch);
  else
    return fields_of(batch);
}

/// A struct whose target is called so, but stands elsewhere, would be taken apart in the wrong way.
template <ends_with_target Batch>
void require_target_last(const Batch& batch) {
  if constexpr (requires { batch.target; }) {
    const auto& last = std::get<count_parts<Batch>() - 1>(parts_of(batch));
    if (static_cast<const void*>(&batch.target) != static_cast<const void*>(&last))
      throw error("a batch without a member `data` has a member `target` that is not its last one: put it there");
  }
}

}  // namespace detail

/// Batches that say what goes into the model and what should come out: those with members `data` and `target`; pairs
/// and tuples, and structs with other members, whose last part is the target and whose others are the inputs.
template <class Batch>
concept labelled = detail::has_data_and_target<Batch> || detail::ends_with_target<Batch>;

/// What should come out.
template <labelled Batch>
[[nodiscard]] decltype(auto) target_of(const Batch& batch) {
  if constexpr (detail::has_data_and_target<Batch>)
    return (batch.target);
  else
    return std::get<detail::count_parts<Batch>() - 1>(detail::parts_of(batch));
}

/// What goes into the model: `data`, or the only part but the last, or a tuple of all but the last. Throws
/// `error` where a struct has a member `target` that is not the last one.
template <labelled Batch>
[[nodiscard]] decltype(auto) input_of(const Batch& batch) {
  if constexpr (detail::has_data_and_target<Batch>) {
    return (batch.data);
  } else {
    detail::require_target_last(batch);
    const auto parts = detail::parts_of(batch);
    if constexpr (detail::count_parts<Batch>() == 2)
      return std::get<0>(parts);
    else
      return [&]<std::size_t... I>(std::index_sequence<I...>) {
        return std::tuple<std::remove_cvref_t<decltype(std::get<I>(parts))>...>(std::get<I>(parts)...);
      }
    (std::make_index_sequence<detail::count_parts<Batch>() - 1>());
  }
}

template <class Batch>
using input_t = std::remove_cvref_t<decltype(input_of(std::declval<const Batch&>()))>;
template <class Batch>
using target_t = std::remove_cvref_t<decltype(target_of(std::declval<const Batch&>()))>;

}  // namespace rondo::data

#pragma once

#include <ATen/Functions.h>

#include <cstddef>
#include <utility>
#include <vector>

#include "rondo/data/example.hpp"

namespace rondo::data {

namespace detail {

template <class T>
struct stackable_type : std::is_same<T, at::Tensor> {};
template <plain_struct T>
struct stackable_type<T> : stackable_type<fields_t<T>> {};
template <class Data>
struct stackable_type<torch::data::Example<Data, void>> : stackable_type<Data> {};
template <class Data, class Target>
struct stackable_type<torch::data::Example<Data, Target>>
    : std::conjunction<stackable_type<Data>, stackable_type<Target>> {};
template <class First, class Second>
struct stackable_type<std::pair<First, Second>> : std::conjunction<stackable_type<First>, stackable_type<Second>> {};
template <class First, class... More>
struct stackable_type<std::tuple<First, More...>> : std::conjunction<stackable_type<First>, stackable_type<More>...> {};

/// Tensors, and examples, pairs, tuples and plain structs of nothing else.
template <class T>
concept stackable = stackable_type<T>::value;

template <class Item, class Project>
auto project(const std::vector<Item>& items, Project project) {
  std::vector<std::remove_cvref_t<decltype(project(items.front()))>> fields;
  fields.reserve(items.size());
  for (const auto& item : items) fields.push_back(project(item));
  return fields;
}

template <stackable T>
T stack(const std::vector<T>& items) {
  if constexpr (std::same_as<T, at::Tensor>) {
    if (!items.front().defined()) return {};
    return at::stack(items);
  } else if constexpr (has_target<T>) {
    return {stack(project(items, [](const T& item) { return item.data; })),
            stack(project(items, [](const T& item) { return item.target; }))};
  } else if constexpr (is_example<T>) {
    return {stack(project(items, [](const T& item) { return item.data; }))};
  } else if constexpr (plain_struct<T>) {
    return [&]<std::size_t... I>(std::index_sequence<I...>) {
      return T{stack(project(items, [](const T& item) { return std::get<I>(fields_of(item)); }))...};
    }
    (std::make_index_sequence<std::tuple_size_v<fields_t<T>>>());
  } else {
    return [&]<std::size_t... I>(std::index_sequence<I...>) {
      return T(stack(project(items, [](const T& item) { return std::get<I>(item); }))...);
    }
    (std::make_index_sequence<std::tuple_size_v<T>>());
  }
}

}  // namespace detail

/// Makes one batch of at least one item: tensors are stacked along a new first dimension, and so is every tensor of
/// examples, pairs, tuples and plain structs that hold nothing but tensors; items of any other type stay what they are,
/// in a `std::vector`. Throws LibTorch's error when shapes differ. Undefined tensors (examples without target) give an
/// undefined tensor.
template <class Item>
[[nodiscard]] auto collate(std::vector<Item> items) {
  if constexpr (detail::stackable<Item>)
    return detail::stack(items);
  else
    return items;
}

}  // namespace rondo::data

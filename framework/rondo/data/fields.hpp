#pragma once

#include <cstddef>
#include <tuple>
#include <type_traits>
#include <utility>

/// The members of structs that have nothing but members: what lets batches of a type of one's own be taken apart.
namespace rondo::data::detail {

inline constexpr std::size_t most_fields = 12;

/// Stands for the initial value of any member.
struct any_value {
  template <class T>
  operator T() const;
};

template <class T, std::size_t... I>
constexpr bool takes_values(std::index_sequence<I...>) {
  return requires { T{(static_cast<void>(I), any_value())...}; };
}

template <class T, std::size_t Count = most_fields + 1>
constexpr std::size_t count_fields() {
  if constexpr (Count == 0 || takes_values<T>(std::make_index_sequence<Count>()))
    return Count;
  else
    return count_fields<T, Count - 1>();
}

template <class T>
concept tuple_like = requires {
  std::tuple_size<T>::value;
};

/// Structs with 1 to 12 public members and neither constructors nor bases. Members that are C arrays are not counted
/// right.
template <class T>
concept plain_struct = std::is_aggregate_v<T> && !std::is_array_v<T> && !std::is_empty_v<T> && !tuple_like<T> &&
                       count_fields<T>() >= 1 && count_fields<T>() <= most_fields;

/// References to the members, in their order.
template <class T>
  requires plain_struct<std::remove_const_t<T>>
constexpr auto fields_of(T& value) {
  constexpr auto count = count_fields<std::remove_const_t<T>>();
  if constexpr (count == 1) {
    auto& [a] = value;
    return std::tie(a);
  } else if constexpr (count == 2) {
    auto& [a, b] = value;
    return std::tie(a, b);
  } else if constexpr (count == 3) {
    auto& [a, b, c] = value;
    return std::tie(a, b, c);
  } else if constexpr (count == 4) {
    auto& [a, b, c, d] = value;
    return std::tie(a, b, c, d);
  } else if constexpr (count == 5) {
    auto& [a, b, c, d, e] = value;
    return std::tie(a, b, c, d, e);
  } else if constexpr (count == 6) {
    auto& [a, b, c, d, e, f] = value;
    return std::tie(a, b, c, d, e, f);
  } else if constexpr (count == 7) {
    auto& [a, b, c, d, e, f, g] = value;
    return std::tie(a, b, c, d, e, f, g);
  } else if constexpr (count == 8) {
    auto& [a, b, c, d, e, f, g, h] = value;
    return std::tie(a, b, c, d, e, f, g, h);
  } else if constexpr (count == 9) {
    auto& [a, b, c, d, e, f, g, h, i] = value;
    return std::tie(a, b, c, d, e, f, g, h, i);
  } else if constexpr (count == 10) {
    auto& [a, b, c, d, e, f, g, h, i, j] = value;
    return std::tie(a, b, c, d, e, f, g, h, i, j);
  } else if constexpr (count == 11) {
    auto& [a, b, c, d, e, f, g, h, i, j, k] = value;
    return std::tie(a, b, c, d, e, f, g, h, i, j, k);
  } else {
    auto& [a, b, c, d, e, f, g, h, i, j, k, l] = value;
    return std::tie(a, b, c, d, e, f, g, h, i, j, k, l);
  }
}

/// What the members' types are, as a tuple.
template <class T>
struct field_types;
template <class... References>
struct field_types<std::tuple<References...>> {
  using type = std::tuple<std::remove_cvref_t<References>...>;
};
template <class T>
using fields_t = typename field_types<decltype(fields_of(std::declval<T&>()))>::type;

}  // namespace rondo::data::detail

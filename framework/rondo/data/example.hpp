#pragma once

#include <torch/data/example.h>

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "rondo/data/fields.hpp"

namespace rondo::data {

/// One sample, or a batch of samples stacked along the first dimension: `data` goes into the model, `target` is what
/// should come out. LibTorch's own type, so that its data sets and transforms fit.
using example = torch::data::Example<>;

namespace detail {

template <class T>
inline constexpr bool is_example = false;
template <class Data, class Target>
inline constexpr bool is_example<torch::data::Example<Data, Target>> = true;

template <class T>
inline constexpr bool is_vector = false;
template <class T, class Allocator>
inline constexpr bool is_vector<std::vector<T, Allocator>> = true;

template <class T>
inline constexpr bool is_tuple = false;
template <class First, class Second>
inline constexpr bool is_tuple<std::pair<First, Second>> = true;
template <class... Fields>
inline constexpr bool is_tuple<std::tuple<Fields...>> = true;

template <class T>
inline constexpr bool is_array = false;
template <class T, std::size_t Size>
inline constexpr bool is_array<std::array<T, Size>> = true;

template <class T>
inline constexpr bool is_optional = false;
template <class T>
inline constexpr bool is_optional<std::optional<T>> = true;

/// std::map, std::unordered_map and their like.
template <class T>
concept is_map = requires(T& map) {
  typename T::mapped_type;
  map.begin()->second;
};

template <class T>
concept has_target = is_example<T> && !std::is_void_v<typename T::TargetType>;

// Only these two names are looked up by argument, so that a user's free function beside the batch type is found.
void to_device() = delete;
void item_count() = delete;

template <class Batch>
concept moves_itself = requires(Batch batch, at::Device device) {
  { to_device(std::move(batch), device) } -> std::convertible_to<Batch>;
};

template <class Batch>
concept counts_itself = requires(const Batch& batch) {
  { item_count(batch) } -> std::convertible_to<std::int64_t>;
};

inline at::Tensor move_tensor(at::Tensor tensor, at::Device device) {
  if (!tensor.defined() || tensor.device() == device) return tensor;  // `to` would cost a microsecond to find that out
  // A non-blocking copy to the CPU may be read before it is complete; towards a device the stream keeps the order.
  return tensor.to(at::TensorOptions().device(device), /*non_blocking=*/!device.is_cpu());
}

template <class T>
constexpr bool is_known();

template <class... T>
constexpr bool are_known(std::type_identity<std::tuple<T...>>) {
  return (is_known<T>() && ...);
}
template <class First, class Second>
constexpr bool are_known(std::type_identity<std::pair<First, Second>>) {
  return is_known<First>() && is_known<Second>();
}

/// Whether all that may have to be moved in a `T` can be found.
template <class T>
constexpr bool is_known() {
  if constexpr (moves_itself<T> || std::same_as<T, at::Tensor> || std::is_arithmetic_v<T> || std::is_enum_v<T> ||
                std::same_as<T, std::string>)
    return true;
  else if constexpr (has_target<T>)
    return is_known<typename T::DataType>() && is_known<typename T::TargetType>();
  else if constexpr (is_example<T>)
    return is_known<typename T::DataType>();
  else if constexpr (is_tuple<T>)
    return are_known(std::type_identity<T>());
  else if constexpr (is_vector<T> || is_array<T> || is_optional<T>)
    return is_known<typename T::value_type>();
  else if constexpr (is_map<T>)
    return is_known<typename T::mapped_type>();
  else if constexpr (plain_struct<T>)
    return are_known(std::type_identity<fields_t<T>>());
  else
    return false;
}

/// Calls `change` with each part of a batch that consists of parts.
template <class Batch, class Change>
void each_part(Batch& batch, const Change& change) {
  if constexpr (is_example<Batch>) {
    change(batch.data);
    if constexpr (has_target<Batch>) change(batch.target);
  } else if constexpr (is_tuple<Batch>) {
    std::apply([&](auto&... fields) { (change(fields), ...); }, batch);
  } else if constexpr (is_vector<Batch> || is_array<Batch>) {
    if constexpr (!std::is_arithmetic_v<typename Batch::value_type>)
      for (auto& item : batch) change(item);
  } else if constexpr (is_optional<Batch>) {
    if (batch) change(*batch);
  } else if constexpr (is_map<Batch>) {
    for (auto& item : batch) change(item.second);
  } else if constexpr (is_known<Batch>() && plain_struct<Batch>) {
    std::apply([&](auto&... fields) { (change(fields), ...); }, fields_of(batch));
  }
}

struct to_device_fn {
  template <class Batch>
  Batch operator()(Batch batch, at::Device device) const {
    if constexpr (moves_itself<Batch>)
      return to_device(std::move(batch), device);
    else if constexpr (std::same_as<Batch, at::Tensor>)
      return move_tensor(std::move(batch), device);
    else
      each_part(batch, [&](auto& part) { part = (*this)(std::move(part), device); });
    return batch;
  }
};

struct item_count_fn {
  template <class Batch>
  std::int64_t operator()(const Batch& batch) const {
    if constexpr (counts_itself<Batch>) {
      return item_count(batch);
    } else if constexpr (std::same_as<Batch, at::Tensor>) {
      return batch.defined() && batch.dim() > 0 ? batch.size(0) : 1;
    } else if constexpr (is_example<Batch>) {
      return (*this)(batch.data);
    } else if constexpr (is_tuple<Batch>) {
      if constexpr (std::tuple_size_v<Batch> == 0)
        return 1;
      else
        return (*this)(std::get<0>(batch));
    } else if constexpr (is_vector<Batch> || is_array<Batch>) {
      if constexpr (std::same_as<typename Batch::value_type, at::Tensor>)
        return batch.empty() ? 0 : (*this)(batch.front());
      else
        return static_cast<std::int64_t>(batch.size());
    } else if constexpr (is_map<Batch>) {
      return batch.empty() ? 0 : (*this)(batch.begin()->second);
    } else if constexpr (is_known<Batch>() && plain_struct<Batch>) {
      return (*this)(std::get<0>(fields_of(batch)));
    } else {
      return 1;
    }
  }
};

/// Batches that can be moved and counted without being asked, or say themselves how.
template <class Batch>
concept whole_batch = (moves_itself<Batch> && counts_itself<Batch>) || (!moves_itself<Batch> && is_known<Batch>());

}  // namespace detail

/// Functions that a user's type may customise are function objects, kept apart from its own free functions.
inline namespace customisation {

/// `to_device(batch, device)` returns the batch with every tensor on `device`. Knows `at::Tensor`,
/// `torch::data::Example`, numbers and text, and pairs, tuples, vectors, arrays, optionals, maps and plain structs (no
/// constructors, no bases, up to 12 members) of what it knows; any other type passes unchanged. Copies
/// towards a device other than the CPU do not block: work that is queued later on the device's current stream sees them
/// complete. Undefined tensors stay undefined, tensors that are there already are shared. For an own type `B`, write `B
/// to_device(B, at::Device)` in its namespace.
inline constexpr detail::to_device_fn to_device{};

/// `item_count(batch)` is the number of samples in a batch: the leading dimension of a tensor (1 without dimensions),
/// of an example's data, of the first field of a pair, tuple or plain struct, of the first tensor of a vector of
/// tensors (several inputs for the same samples), of the first value of a map; the size of any other vector; 1 for an
/// unknown type. For an own type `B`, write `std::int64_t item_count(const B&)` in its namespace.
inline constexpr detail::item_count_fn item_count{};

}  // namespace customisation

/// The number of samples in a batch of examples.
[[nodiscard]] inline std::int64_t batch_size(const example& batch) { return item_count(batch); }

}  // namespace rondo::data

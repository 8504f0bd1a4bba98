#pragma once

#include <torch/data/example.h>

#include <concepts>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

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

struct to_device_fn {
  template <class Batch>
  Batch operator()(Batch batch, at::Device device) const {
    if constexpr (moves_itself<Batch>) {
      return to_device(std::move(batch), device);
    } else if constexpr (std::same_as<Batch, at::Tensor>) {
      return move_tensor(std::move(batch), device);
    } else if constexpr (is_example<Batch>) {
      batch.data = (*this)(std::move(batch.data), device);
      if constexpr (has_target<Batch>) batch.target = (*this)(std::move(batch.target), device);
    } else if constexpr (is_tuple<Batch>) {
      std::apply([&](auto&... fields) { ((fields = (*this)(std::move(fields), device)), ...); }, batch);
    } else if constexpr (is_vector<Batch>) {
      if constexpr (!std::is_arithmetic_v<typename Batch::value_type>)
        for (auto& item : batch) item = (*this)(std::move(item), device);
    }
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
    } else if constexpr (is_vector<Batch>) {
      if constexpr (std::same_as<typename Batch::value_type, at::Tensor>)
        return batch.empty() ? 0 : (*this)(batch.front());
      else
        return static_cast<std::int64_t>(batch.size());
    } else {
      return 1;
    }
  }
};

}  // namespace detail

/// Functions that a user's type may customise are function objects, kept apart from its own free functions.
inline namespace customisation {

/// `to_device(batch, device)` returns the batch with every tensor on `device`. Knows `at::Tensor`,
/// `torch::data::Example`, and pairs, tuples and vectors of what it knows; any other type passes unchanged. Copies
/// towards a device other than the CPU do not block: work that is queued later on the device's current stream sees them
/// complete. Undefined tensors stay undefined, tensors that are there already are shared. For an own type `B`, write `B
/// to_device(B, at::Device)` in its namespace.
inline constexpr detail::to_device_fn to_device{};

/// `item_count(batch)` is the number of samples in a batch: the leading dimension of a tensor (1 without dimensions),
/// of an example's data, of the first field of a pair or tuple, of the first tensor of a `std::vector<at::Tensor>`
/// (several inputs for the same samples); the size of any other vector; 1 for an unknown type. For an own type `B`,
/// write `std::int64_t item_count(const B&)` in its namespace.
inline constexpr detail::item_count_fn item_count{};

}  // namespace customisation

/// The number of samples in a batch of examples.
[[nodiscard]] inline std::int64_t batch_size(const example& batch) { return item_count(batch); }

}  // namespace rondo::data

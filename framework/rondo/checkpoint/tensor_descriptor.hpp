#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "rondo/state/tree.hpp"

/// The file codec: bytes to a table of records and a tree of tensor descriptions, and back. Free of LibTorch.
namespace rondo::checkpoint {

/// The element types that PyTorch stores under a typed storage class of their own.
enum class scalar_type : std::uint8_t {
  uint8,
  int8,
  int16,
  int32,
  int64,
  float16,
  float32,
  float64,
  complex64,
  complex128,
  boolean,
  bfloat16,
};

/// Bytes of one element.
[[nodiscard]] std::int64_t element_size(scalar_type type) noexcept;
/// PyTorch's name of the type: "float32", "bool", ...
[[nodiscard]] std::string_view name(scalar_type type) noexcept;
/// The class in module `torch` that names the type in a pickle: "FloatStorage", "BoolStorage", ...
[[nodiscard]] std::string_view storage_global(scalar_type type) noexcept;
/// Inverse of `name`.
[[nodiscard]] std::optional<scalar_type> scalar_type_from_name(std::string_view name) noexcept;
/// Inverse of `storage_global`.
[[nodiscard]] std::optional<scalar_type> scalar_type_from_storage(std::string_view global) noexcept;

/// A tensor as the pickle describes it: a strided view of a storage, whose bytes are the record `data/<storage_key>`.
/// Offset and strides count elements. Several tensors may view one storage.
struct tensor_descriptor {
  scalar_type dtype = scalar_type::float32;
  std::string storage_key;
  std::int64_t storage_numel = 0;
  std::int64_t storage_offset = 0;
  std::vector<std::int64_t> sizes;
  std::vector<std::int64_t> strides;
  bool requires_grad = false;
  /// A `torch.nn.Parameter` rather than a plain tensor.
  bool parameter = false;

  friend bool operator==(const tensor_descriptor&, const tensor_descriptor&) = default;
};

/// What is wrong with the description in itself (a negative size, an overflowing shape, a view that leaves its
/// storage, ...), or nothing. All arithmetic is checked.
[[nodiscard]] std::optional<std::string> problem_of(const tensor_descriptor& tensor);

/// The state tree with descriptions in place of tensors.
using tree = state::basic_value<tensor_descriptor>;

}  // namespace rondo::checkpoint

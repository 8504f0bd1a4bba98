#include "rondo/checkpoint/tensor_descriptor.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "rondo/checkpoint/tensor_view.hpp"

namespace rondo::checkpoint {

namespace {

struct type_row {
  std::string_view name;
  std::string_view storage;
  std::int64_t size;
};

// In the order of scalar_type.
constexpr std::array<type_row, 12> types = {{
    {"uint8", "ByteStorage", 1},
    {"int8", "CharStorage", 1},
    {"int16", "ShortStorage", 2},
    {"int32", "IntStorage", 4},
    {"int64", "LongStorage", 8},
    {"float16", "HalfStorage", 2},
    {"float32", "FloatStorage", 4},
    {"float64", "DoubleStorage", 8},
    {"complex64", "ComplexFloatStorage", 8},
    {"complex128", "ComplexDoubleStorage", 16},
    {"bool", "BoolStorage", 1},
    {"bfloat16", "BFloat16Storage", 2},
}};

const type_row& row(scalar_type type) noexcept { return types[static_cast<std::size_t>(type)]; }

std::optional<scalar_type> find(std::string_view text, std::string_view type_row::*column) noexcept {
  const auto at = std::ranges::find(types, text, column);
  if (at == types.end()) return std::nullopt;
  return static_cast<scalar_type>(at - types.begin());
}

}  // namespace

std::int64_t element_size(scalar_type type) noexcept { return row(type).size; }
std::string_view name(scalar_type type) noexcept { return row(type).name; }
std::string_view storage_global(scalar_type type) noexcept { return row(type).storage; }
std::optional<scalar_type> scalar_type_from_name(std::string_view text) noexcept { return find(text, &type_row::name); }
std::optional<scalar_type> scalar_type_from_storage(std::string_view text) noexcept {
  return find(text, &type_row::storage);
}

std::optional<std::string> problem_of(const tensor_descriptor& tensor) { return problem_of(view_of(tensor, 0)); }

std::optional<std::string> problem_of(const tensor_view& tensor) {
  if (tensor.sizes.size() != tensor.strides.size())
    return fmt::format("a tensor has {} sizes but {} strides", tensor.sizes.size(), tensor.strides.size());
  std::int64_t storage_bytes = 0;
  if (tensor.storage_numel < 0 ||
      __builtin_mul_overflow(tensor.storage_numel, element_size(tensor.dtype), &storage_bytes))
    return fmt::format("a storage of {} elements is impossible", tensor.storage_numel);
  if (tensor.storage_offset < 0) return fmt::format("a tensor has the negative offset {}", tensor.storage_offset);

  std::int64_t count = 1;
  std::int64_t last = tensor.storage_offset;
  bool too_many = false;
  bool too_far = false;
  for (std::size_t i = 0; i < tensor.sizes.size(); ++i) {
    const auto size = tensor.sizes[i];
    const auto stride = tensor.strides[i];
    if (size < 0 || stride < 0) return fmt::format("a tensor has the size {} with the stride {}", size, stride);
    too_many |= __builtin_mul_overflow(count, size, &count);
    std::int64_t reach = 0;
    too_far |= size > 0 && __builtin_mul_overflow(size - 1, stride, &reach);
    too_far |= __builtin_add_overflow(last, reach, &last);
  }
  if (too_many) return "a tensor's shape overflows 64 bits";
  // An empty tensor touches nothing: PyTorch lets its offset and strides lead anywhere.
  if (count == 0) return std::nullopt;
  if (too_far || last >= tensor.storage_numel)
    return fmt::format("a tensor reaches beyond its storage of {} elements", tensor.storage_numel);
  return std::nullopt;
}

}  // namespace rondo::checkpoint

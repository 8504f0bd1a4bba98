#include "npy.hpp"

#include <fmt/format.h>

#include "outcome.hpp"

namespace rondo::tool {

namespace {

using checkpoint::scalar_type;

constexpr std::size_t most_dimensions = 64;
constexpr std::size_t alignment = 64;

std::string_view numpy_type(scalar_type type) {
  switch (type) {
    case scalar_type::uint8:
      return "|u1";
    case scalar_type::int8:
      return "|i1";
    case scalar_type::int16:
      return "<i2";
    case scalar_type::int32:
      return "<i4";
    case scalar_type::int64:
      return "<i8";
    case scalar_type::float16:
      return "<f2";
    case scalar_type::float32:
      return "<f4";
    case scalar_type::float64:
      return "<f8";
    case scalar_type::complex64:
      return "<c8";
    case scalar_type::complex128:
      return "<c16";
    case scalar_type::boolean:
      return "|b1";
    case scalar_type::bfloat16:
      return "<u2";
  }
  throw unusable_error("a tensor of a type that NumPy files cannot hold");
}

}  // namespace

std::string npy_header(const checkpoint::tensor_descriptor& tensor) {
  if (tensor.sizes.size() > most_dimensions)
    throw unusable_error(
        fmt::format("the tensor has {} dimensions, NumPy has at most {}", tensor.sizes.size(), most_dimensions));
  std::string shape;
  for (const auto size : tensor.sizes) shape += fmt::format("{}, ", size);
  if (tensor.sizes.size() > 1) shape.resize(shape.size() - 2);
  if (tensor.sizes.size() == 1) shape.pop_back();
  auto description =
      fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}", numpy_type(tensor.dtype), shape);
  constexpr std::size_t before = 10;  // magic, version, length
  const auto end = (before + description.size() + 1 + alignment - 1) / alignment * alignment;
  description.resize(end - before - 1, ' ');
  description += '\n';
  const auto length = description.size();
  return std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(length & 0xff) + static_cast<char>(length >> 8) +
         description;
}

}  // namespace rondo::tool

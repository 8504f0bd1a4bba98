#include "rondo/state/sharded_tensor.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <utility>

#include "rondo/error.hpp"

namespace rondo::state {

namespace {

struct named_type {
  at::ScalarType type;
  std::string_view name;
};

constexpr std::array types{
    named_type{at::kByte, "uint8"},
    named_type{at::kChar, "int8"},
    named_type{at::kShort, "int16"},
    named_type{at::kInt, "int32"},
    named_type{at::kLong, "int64"},
    named_type{at::kHalf, "float16"},
    named_type{at::kFloat, "float32"},
    named_type{at::kDouble, "float64"},
    named_type{at::kComplexFloat, "complex64"},
    named_type{at::kComplexDouble, "complex128"},
    named_type{at::kBool, "bool"},
    named_type{at::kBFloat16, "bfloat16"},
};

std::string name_of(at::ScalarType type) {
  const auto* const found = std::ranges::find(types, type, &named_type::type);
  if (found == types.end())
    throw state_error("", fmt::format("a sharded tensor cannot have the dtype {}", c10::toString(type)));
  return std::string(found->name);
}

at::ScalarType type_of(const std::string& name) {
  const auto* const found = std::ranges::find(types, name, &named_type::name);
  if (found == types.end()) throw state_error("", fmt::format("a sharded tensor cannot have the dtype '{}'", name));
  return found->type;
}

tuple to_tuple(const std::vector<std::int64_t>& numbers) {
  tuple result;
  for (const auto number : numbers) result.items.emplace_back(number);
  return result;
}

std::vector<std::int64_t> to_numbers(const value& v) {
  std::vector<std::int64_t> result;
  for (const auto& item : v.as<tuple>().items) result.push_back(item.as<std::int64_t>());
  return result;
}

void require_inside(const sharded_tensor& whole, const tensor_piece& piece) {
  const auto sizes = piece.tensor.sizes();
  bool inside = sizes.size() == whole.sizes.size() && piece.offsets.size() == whole.sizes.size();
  for (std::size_t d = 0; inside && d < sizes.size(); ++d)
    inside =
        piece.offsets[d] >= 0 && piece.offsets[d] <= whole.sizes[d] && sizes[d] <= whole.sizes[d] - piece.offsets[d];
  if (!inside)
    throw state_error(
        "", fmt::format("a part of sizes [{}] from [{}] on does not lie in a tensor of sizes [{}]",
                        fmt::join(sizes, ", "), fmt::join(piece.offsets, ", "), fmt::join(whole.sizes, ", ")));
}

}  // namespace

value sharded_tensor::to_value() const {
  list parts;
  for (const auto& piece : pieces)
    parts.emplace_back(dict{{"offsets", to_tuple(piece.offsets)}, {"tensor", piece.tensor}});
  dict about{{"sizes", to_tuple(sizes)}, {"dtype", name_of(dtype)}, {"pieces", std::move(parts)}};
  return dict{{key, std::move(about)}};
}

bool sharded_tensor::is(const value& v) {
  const auto* const only = v.get_if<dict>();
  return only != nullptr && only->size() == 1 && only->contains(key);
}

sharded_tensor sharded_tensor::from(const value& v) {
  if (!is(v)) throw state_error("", fmt::format("is no sharded tensor (a dict with the one key '{}')", key));
  const auto& about = v.as<dict>().at(key);
  sharded_tensor result;
  result.sizes = to_numbers(about.at("sizes"));
  result.dtype = type_of(about.get<std::string>("dtype"));
  for (const auto& part : about.get<list>("pieces")) {
    tensor_piece piece{to_numbers(part.at("offsets")), part.get<at::Tensor>("tensor")};
    if (!piece.tensor.defined() || piece.tensor.scalar_type() != result.dtype)
      throw state_error("",
                        fmt::format("a part is {}, the sharded tensor {}",
                                    piece.tensor.defined() ? c10::toString(piece.tensor.scalar_type()) : "undefined",
                                    name_of(result.dtype)));
    require_inside(result, piece);
    result.pieces.push_back(std::move(piece));
  }
  return result;
}

}  // namespace rondo::state

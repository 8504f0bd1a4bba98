#include "values.hpp"

#include <fmt/format.h>

#include <cmath>

#include "elements.hpp"
#include "text.hpp"

namespace rondo::tool {

namespace {

using checkpoint::tensor_descriptor;
using checkpoint::tree;

constexpr std::size_t longest_text = 100;

std::string number_text(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number > 0 ? "inf" : "-inf";
  const auto text = fmt::format("{}", number);
  return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
}

}  // namespace

std::string value_text(const tree& node) {
  if (node.is_null()) return "None";
  if (const auto* flag = node.get_if<bool>()) return *flag ? "True" : "False";
  if (const auto* number = node.get_if<std::int64_t>()) return std::to_string(*number);
  if (const auto* number = node.get_if<double>()) return number_text(*number);
  if (const auto* text = node.get_if<std::string>()) return "'" + printable_beginning(*text, longest_text) + "'";
  if (const auto* bytes = node.get_if<state::bytes>()) return fmt::format("bytes, {}", human_size(bytes->data.size()));
  if (const auto* tensor = node.get_if<tensor_descriptor>()) return describe(*tensor);
  if (const auto* dict = node.get_if<tree::dict>()) return fmt::format("dict of {}", grouped(dict->size()));
  if (const auto* tuple = node.get_if<tree::tuple>()) return fmt::format("tuple of {}", grouped(tuple->items.size()));
  return fmt::format("list of {}", grouped(node.get_if<tree::list>()->size()));
}

std::string shape_text(const tensor_descriptor& tensor) {
  std::string text;
  for (const auto size : tensor.sizes) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

std::string describe(const tensor_descriptor& tensor) {
  auto text = fmt::format("{} {}  {}", name(tensor.dtype), shape_text(tensor), human_size(byte_size(tensor)));
  if (tensor.parameter) text += "  Parameter";
  if (tensor.requires_grad && !tensor.parameter) text += "  requires_grad";
  return text;
}

}  // namespace rondo::tool

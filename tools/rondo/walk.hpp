#pragma once

#include <string>

#include "rondo/checkpoint/tensor_descriptor.hpp"

namespace rondo::tool {

namespace detail {

template <class Visit>
void walk(const checkpoint::tree& node, std::string& path, Visit& visit) {
  using checkpoint::tree;
  if (!visit(path, node)) return;
  const auto length = path.size();
  const auto enter = [&](const std::string& key, const tree& child) {
    if (length != 0) path += '.';
    path += key;
    walk(child, path, visit);
    path.resize(length);
  };
  const auto* list = node.get_if<tree::list>();
  if (const auto* tuple = node.get_if<tree::tuple>()) list = &tuple->items;
  if (list)
    for (std::size_t i = 0; i < list->size(); ++i) enter(std::to_string(i), (*list)[i]);
  if (const auto* dict = node.get_if<tree::dict>())
    for (const auto& [key, child] : *dict) enter(key.str(), child);
}

}  // namespace detail

/// Calls `visit(dotted path, node)` for every node of the tree, parents before children; the root's path is empty.
/// What is below a node is visited if `visit` returns true.
template <class Visit>
void walk(const checkpoint::tree& root, Visit visit) {
  std::string path;
  detail::walk(root, path, visit);
}

/// Whether other nodes are inside the node, empty containers included.
[[nodiscard]] inline bool is_container(const checkpoint::tree& node) {
  using checkpoint::tree;
  return node.is<tree::list>() || node.is<tree::tuple>() || node.is<tree::dict>();
}

}  // namespace rondo::tool

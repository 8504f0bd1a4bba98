#include "rondo/state/value.hpp"

#include <c10/core/MemoryFormat.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "rondo/state/bits.hpp"

namespace rondo::state {

namespace {

bool equal_tensors(const at::Tensor& a, const at::Tensor& b) {
  if (!a.defined() || !b.defined()) return a.defined() == b.defined();
  if (a.scalar_type() != b.scalar_type() || a.sizes() != b.sizes()) return false;
  const at::Tensor left = plain_bytes(a);
  const at::Tensor right = plain_bytes(b);
  return left.nbytes() == 0 || std::memcmp(left.data_ptr(), right.data_ptr(), left.nbytes()) == 0;
}

struct equality {
  const value& other;

  bool operator()(const at::Tensor& a) const { return equal_tensors(a, other.as<at::Tensor>()); }
  bool operator()(double a) const {
    return std::bit_cast<std::uint64_t>(a) == std::bit_cast<std::uint64_t>(other.as<double>());
  }
  bool operator()(const list& a) const {
    const list& b = other.as<list>();
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), equal);
  }
  bool operator()(const tuple& a) const {
    const list& b = other.as<tuple>().items;
    return std::equal(a.items.begin(), a.items.end(), b.begin(), b.end(), equal);
  }
  bool operator()(const dict& a) const {
    const dict& b = other.as<dict>();
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [](const auto& x, const auto& y) { return x.first == y.first && equal(x.second, y.second); });
  }
  bool operator()(std::monostate) const { return true; }
  template <class Plain>
  bool operator()(const Plain& a) const {
    return a == other.as<Plain>();
  }
};

struct cloning {
  value operator()(const at::Tensor& t) const {
    return t.defined() ? t.detach().clone(at::MemoryFormat::Contiguous) : at::Tensor();
  }
  value operator()(const list& items) const {
    list copy;
    copy.reserve(items.size());
    for (const value& item : items) copy.push_back(clone(item));
    return copy;
  }
  value operator()(const tuple& items) const { return tuple{(*this)(items.items).as<list>()}; }
  value operator()(const dict& items) const {
    dict copy;
    copy.reserve(items.size());
    for (const auto& [key, item] : items) copy.insert_or_assign(key, clone(item));
    return copy;
  }
  value operator()(std::monostate) const { return {}; }
  template <class Plain>
  value operator()(const Plain& plain) const {
    return plain;
  }
};

}  // namespace

bool equal(const value& a, const value& b) {
  return a.data().index() == b.data().index() && std::visit(equality{b}, a.data());
}

value clone(const value& v) { return std::visit(cloning{}, v.data()); }

}  // namespace rondo::state

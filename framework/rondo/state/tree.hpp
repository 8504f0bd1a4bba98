#pragma once

#include <compare>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "rondo/error.hpp"
#include "rondo/state/position_index.hpp"

/// The state tree: what `state_dict()` returns and a checkpoint file holds. It has the shapes of Python's plain
/// objects (None, bool, int, float, str, bytes, list, tuple, dict) plus tensors. The kind of tensor is a parameter,
/// so that the file codec can work on descriptions of tensors without LibTorch.
namespace rondo::state {

/// A dict key: a string, or an integer as in Python's optimizer states.
class key {
 public:
  key(std::string text) : value_(std::move(text)) {}
  key(std::string_view text) : value_(std::string(text)) {}
  key(const char* text) : value_(std::string(text)) {}
  template <std::integral I>
    requires(!std::same_as<I, bool>)
  key(I number) : value_(static_cast<std::int64_t>(number)) {}

  [[nodiscard]] bool is_integer() const noexcept { return value_.index() == 1; }
  [[nodiscard]] std::int64_t integer() const { return std::get<std::int64_t>(value_); }
  [[nodiscard]] const std::string& text() const { return std::get<std::string>(value_); }
  /// The key as a person reads it.
  [[nodiscard]] std::string str() const { return is_integer() ? std::to_string(integer()) : text(); }

  friend bool operator==(const key&, const key&) = default;

 private:
  std::variant<std::string, std::int64_t> value_;
  friend struct key_hash;
};

struct key_hash {
  std::size_t operator()(const key& k) const noexcept {
    return std::hash<std::variant<std::string, std::int64_t>>()(k.value_);
  }
};

/// Strong type for raw bytes, so that they are never taken for a list.
struct bytes {
  std::vector<std::byte> data;
  friend bool operator==(const bytes&, const bytes&) = default;
};

template <class Tensor>
class basic_value;

/// A dict that keeps insertion order, as Python's does. Look-up is constant time on average.
template <class Tensor>
class basic_dict {
 public:
  using value_type = std::pair<key, basic_value<Tensor>>;
  using const_iterator = typename std::vector<value_type>::const_iterator;
  using iterator = typename std::vector<value_type>::iterator;

  basic_dict() = default;
  basic_dict(std::initializer_list<value_type> items) {
    for (const auto& item : items) insert_or_assign(item.first, item.second);
  }

  /// Pointer to the value, or nullptr.
  [[nodiscard]] const basic_value<Tensor>* find(const key& k) const {
    const auto at = index_of(k);
    return at == npos ? nullptr : &items_[at].second;
  }
  [[nodiscard]] basic_value<Tensor>* find(const key& k) {
    const auto at = index_of(k);
    return at == npos ? nullptr : &items_[at].second;
  }
  [[nodiscard]] bool contains(const key& k) const { return index_of(k) != npos; }
  /// Throws `state_error` naming the key and the keys that are there.
  [[nodiscard]] const basic_value<Tensor>& at(const key& k) const&;
  /// By value, because the dict is about to go.
  [[nodiscard]] basic_value<Tensor> at(const key& k) && { return std::as_const(*this).at(k); }
  /// Inserts null when the key is new.
  basic_value<Tensor>& operator[](const key& k);
  void insert_or_assign(key k, basic_value<Tensor> v);

  [[nodiscard]] std::size_t size() const noexcept { return items_.size(); }
  [[nodiscard]] bool empty() const noexcept { return items_.empty(); }
  void reserve(std::size_t n) {
    items_.reserve(n);
    if (n > linear_limit) index_.reserve(n);
  }
  const_iterator begin() const noexcept { return items_.begin(); }
  const_iterator end() const noexcept { return items_.end(); }
  iterator begin() noexcept { return items_.begin(); }
  iterator end() noexcept { return items_.end(); }

  friend bool operator==(const basic_dict& a, const basic_dict& b) { return a.items_ == b.items_; }

 private:
  static constexpr std::size_t npos = position_index::npos;
  static constexpr std::size_t linear_limit = 12;  // below this a scan is faster than a hash

  [[nodiscard]] std::size_t index_of(const key& k) const {
    if (!index_.empty()) return index_.find(key_hash()(k), [&](std::size_t i) { return items_[i].first == k; });
    for (std::size_t i = 0; i < items_.size(); ++i)
      if (items_[i].first == k) return i;
    return npos;
  }

  void append(key k, basic_value<Tensor> v);

  std::vector<value_type> items_;
  position_index index_;
};

/// One node of the tree.
template <class Tensor>
class basic_value {
 public:
  using tensor_type = Tensor;
  using list = std::vector<basic_value>;
  struct tuple {
    list items;
    friend bool operator==(const tuple&, const tuple&) = default;
  };
  using dict = basic_dict<Tensor>;
  using variant =
      std::variant<std::monostate, bool, std::int64_t, double, std::string, bytes, Tensor, list, tuple, dict>;

  basic_value() = default;
  basic_value(std::nullptr_t) {}
  basic_value(bool b) : data_(b) {}
  template <std::integral I>
    requires(!std::same_as<I, bool>)
  basic_value(I i) : data_(static_cast<std::int64_t>(i)) {}
  template <std::floating_point F>
  basic_value(F f) : data_(static_cast<double>(f)) {}
  basic_value(std::string s) : data_(std::move(s)) {}
  basic_value(std::string_view s) : data_(std::string(s)) {}
  basic_value(const char* s) : data_(std::string(s)) {}
  basic_value(bytes b) : data_(std::move(b)) {}
  basic_value(Tensor t) : data_(std::move(t)) {}
  basic_value(list l) : data_(std::move(l)) {}
  basic_value(tuple t) : data_(std::move(t)) {}
  basic_value(dict d) : data_(std::move(d)) {}

  template <class T>
  [[nodiscard]] bool is() const noexcept {
    return std::holds_alternative<T>(data_);
  }
  [[nodiscard]] bool is_null() const noexcept { return is<std::monostate>(); }

  /// Pointer to the alternative, or nullptr.
  template <class T>
  [[nodiscard]] const T* get_if() const noexcept {
    return std::get_if<T>(&data_);
  }
  template <class T>
  [[nodiscard]] T* get_if() noexcept {
    return std::get_if<T>(&data_);
  }

  /// The alternative; throws `state_error` that says what was expected and what was found.
  template <class T>
  [[nodiscard]] const T& as() const& {
    if (const T* p = get_if<T>()) return *p;
    throw state_error("", "expected " + name_of<T>() + ", found " + type_name());
  }
  template <class T>
  [[nodiscard]] T& as() & {
    return const_cast<T&>(std::as_const(*this).template as<T>());
  }
  /// By value, because the node is about to go; so are the following.
  template <class T>
  [[nodiscard]] T as() && {
    return std::move(this->template as<T>());
  }
  /// An int or a float as double. Throws `state_error` otherwise.
  [[nodiscard]] double number() const {
    if (const auto* i = get_if<std::int64_t>()) return static_cast<double>(*i);
    return as<double>();
  }

  /// Shorthand for `as<dict>().at(k)`.
  [[nodiscard]] const basic_value& at(const key& k) const& { return as<dict>().at(k); }
  [[nodiscard]] basic_value at(const key& k) && { return std::as_const(*this).at(k); }
  /// The value under `k` as `T`; a wrong type is reported with the key.
  template <class T>
  [[nodiscard]] const T& get(const key& k) const& {
    const basic_value& v = at(k);
    if (const T* p = v.template get_if<T>()) return *p;
    throw state_error(k.str(), "expected " + name_of<T>() + ", found " + v.type_name());
  }
  template <class T>
  [[nodiscard]] T get(const key& k) && {
    return std::as_const(*this).template get<T>(k);
  }

  [[nodiscard]] const variant& data() const noexcept { return data_; }
  [[nodiscard]] variant& data() noexcept { return data_; }

  /// Python's name of the node's type.
  [[nodiscard]] std::string type_name() const {
    static constexpr const char* names[] = {"None",  "bool",   "int",  "float", "str",
                                            "bytes", "Tensor", "list", "tuple", "dict"};
    return names[data_.index()];
  }

  /// Structural equality; needs an equality on `Tensor`.
  friend bool operator==(const basic_value& a, const basic_value& b)
    requires std::equality_comparable<Tensor>
  {
    return a.data_ == b.data_;
  }

 private:
  template <class T>
  static std::string name_of() {
    return basic_value(T()).type_name();
  }

  variant data_;
};

template <class Tensor>
const basic_value<Tensor>& basic_dict<Tensor>::at(const key& k) const& {
  if (const auto* v = find(k)) return *v;
  std::string known;
  std::size_t shown = 0;
  for (const auto& item : items_) {
    if (++shown > 20) {
      known += ", …";
      break;
    }
    known += (known.empty() ? "" : ", ") + item.first.str();
  }
  throw state_error(k.str(), "is missing; there are: " + (known.empty() ? std::string("no keys at all") : known));
}

template <class Tensor>
basic_value<Tensor>& basic_dict<Tensor>::operator[](const key& k) {
  const auto at = index_of(k);
  if (at != npos) return items_[at].second;
  append(k, {});
  return items_.back().second;
}

template <class Tensor>
void basic_dict<Tensor>::insert_or_assign(key k, basic_value<Tensor> v) {
  const auto at = index_of(k);
  if (at == npos)
    append(std::move(k), std::move(v));
  else
    items_[at].second = std::move(v);
}

template <class Tensor>
void basic_dict<Tensor>::append(key k, basic_value<Tensor> v) {
  items_.emplace_back(std::move(k), std::move(v));
  if (items_.size() <= linear_limit) return;
  for (std::size_t i = index_.empty() ? 0 : items_.size() - 1; i < items_.size(); ++i)
    index_.insert(key_hash()(items_[i].first), i);
}

}  // namespace rondo::state

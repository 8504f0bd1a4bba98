#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "rondo/checkpoint/live_storages.hpp"
#include "rondo/checkpoint/pickle_output.hpp"
#include "rondo/checkpoint/pickle_writer.hpp"
#include "rondo/checkpoint/tensor_view.hpp"
#include "rondo/state/value.hpp"

namespace rondo::checkpoint {

/// All of a state that decides about its file, except for scalars, bytes and the contents of tensors: in the order of
/// the tree and in a few blocks of memory, so that comparing the next state with it takes little time.
class outline {
 public:
  enum class kind : std::uint8_t { scalar, bytes, text, list, tuple, dict, text_key, integer_key, tensor };
  struct step {
    kind what;
    at::ScalarType type;
    std::uint32_t dimensions;
    std::size_t number;  ///< of items, of characters, or which storage
  };

  outline() = default;
  /// `tensors` are the views of the defined tensors in the order of the tree.
  outline(const state::value& state, std::span<const tensor_view> tensors);

  [[nodiscard]] const std::vector<step>& steps() const noexcept { return steps_; }
  /// Texts and textual keys one behind the other.
  [[nodiscard]] std::string_view texts() const noexcept { return texts_; }
  /// Integer keys, and for every tensor: elements of the storage, offset, sizes, strides.
  [[nodiscard]] const std::vector<std::int64_t>& numbers() const noexcept { return numbers_; }

 private:
  class recorder;
  std::vector<step> steps_;
  std::string texts_;
  std::vector<std::int64_t> numbers_;
};

/// A storage of the last state, and whether it has already come in this one.
struct known_storage {
  live_storages::identity id;
  bool seen;
};

/// A scalar that is another one than last time.
struct changed_scalar {
  std::size_t index;  ///< among all scalars
  std::size_t begin;  ///< where its pickle begins in `outline_comparison::changed_bytes`
  std::size_t size;
};

/// Compares a state with the outline of the one before, and takes over the tensors on the way.
class outline_comparison {
 public:
  /// `pickle` and `scalars` are the last state's.
  outline_comparison(const outline& last, std::span<const std::byte> pickle, std::span<const scalar_place> scalars,
                     std::vector<known_storage>& known, std::vector<described_storage>& storages);

  /// Whether the file is the same but for scalars and the contents of tensors. If so, `storages` and `known` are those
  /// of `state`; if not, they are of no more use.
  [[nodiscard]] bool matches(const state::value& state);

  [[nodiscard]] const std::vector<changed_scalar>& changes() const noexcept { return changes_; }
  [[nodiscard]] const std::vector<std::byte>& changed_bytes() const noexcept { return changed_; }

 private:
  using kind = outline::kind;

  [[nodiscard]] bool visit(const state::value& v);
  template <class Scalar>
  [[nodiscard]] bool same(const Scalar& scalar);
  [[nodiscard]] bool same(const state::bytes& bytes);
  [[nodiscard]] bool same(const std::string& text);
  [[nodiscard]] bool same(const state::list& items);
  [[nodiscard]] bool same(const state::tuple& items);
  [[nodiscard]] bool same(const state::dict& items);
  [[nodiscard]] bool same(const at::Tensor& tensor);
  [[nodiscard]] bool same_items(const state::list& items);
  [[nodiscard]] bool same_key(const state::key& key);
  [[nodiscard]] bool same_text(kind what, std::string_view text);
  [[nodiscard]] bool same_geometry(const at::Tensor& tensor, const outline::step& step);
  [[nodiscard]] bool same_storage(const at::Tensor& tensor, const outline::step& step);
  [[nodiscard]] bool all_different() const;

  [[nodiscard]] const outline::step* next(kind what);
  [[nodiscard]] bool next_is(kind what, std::size_t number);
  template <class Scalar>
  void take_scalar(const Scalar& scalar);

  const outline& last_;
  std::span<const std::byte> pickle_;
  std::span<const scalar_place> scalars_;
  std::vector<known_storage>& known_;
  std::vector<described_storage>& storages_;

  std::size_t step_ = 0;
  std::size_t text_ = 0;
  std::size_t number_ = 0;
  std::size_t scalar_ = 0;
  std::vector<std::size_t> moved_;
  pickle_output one_;
  std::vector<changed_scalar> changes_;
  std::vector<std::byte> changed_;
};

}  // namespace rondo::checkpoint

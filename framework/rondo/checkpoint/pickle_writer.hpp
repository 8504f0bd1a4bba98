#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "rondo/checkpoint/pickle.hpp"
#include "rondo/checkpoint/pickle_output.hpp"
#include "rondo/checkpoint/tensor_view.hpp"
#include "rondo/checkpoint/text_table.hpp"
#include "rondo/checkpoint/utf8.hpp"

namespace rondo::checkpoint {

/// Where a number, a truth value, None or bytes stand in a pickle. Others can take their place, even longer ones,
/// without anything else changing: unlike texts and tensors they are never referred to.
struct scalar_place {
  std::size_t begin;
  std::size_t size;
};

struct written_pickle {
  std::vector<std::byte> bytes;
  /// In the order of the tree.
  std::vector<scalar_place> scalars;
};

/// Writes a tree over any kind of tensor as `encode_pickle` does. `Tensors` knows what a tensor is to become:
/// `survey(tensor, path)` is called for each one in the order of the tree, then `again(tensor)` in the same order. Both
/// return an optional `tensor_view`, nothing for None; the views must be the same and stay valid to the end. Texts of
/// the tree must stay valid, too.
template <class Tensor, class Tensors>
class pickle_writer {
 public:
  using value = state::basic_value<Tensor>;

  explicit pickle_writer(Tensors& tensors) : tensors_(tensors) {}

  /// Throws as `encode_pickle` does, and what `survey` throws. To be called once.
  [[nodiscard]] written_pickle write(const value& state) {
    survey(state, 0);
    out_.reserve(expected_size_);
    out_.begin();
    write_node(state);
    out_.end();
    return {std::move(out_).take(), std::move(scalars_)};
  }

 private:
  // weights_only reads the length as a signed 32-bit number.
  static constexpr std::size_t text_limit = std::numeric_limits<std::int32_t>::max();
  // About what a tensor of two dimensions takes.
  static constexpr std::size_t tensor_size = 80;
  static constexpr std::uint32_t not_stored = std::numeric_limits<std::uint32_t>::max();
  struct usage {
    std::uint32_t uses = 0;
    std::uint32_t slot = not_stored;
  };

  // ---- first pass: checks what cannot be written and counts texts, because only those that come back earn a memo slot

  void survey(const value& node, std::size_t depth) {
    if (depth > max_tree_depth)
      throw state_error(path_, fmt::format("is nested deeper than {} levels", max_tree_depth));
    std::visit([&](const auto& content) { survey_content(content, depth); }, node.data());
  }
  template <class Scalar>
  void survey_content(const Scalar&, std::size_t) {
    expected_size_ += 1 + sizeof(double);
  }
  void survey_content(const state::bytes& raw, std::size_t) {
    if (raw.data.size() > max_bytes_size) throw state_error(path_, "bytes of 1 GiB or more do not fit; use a tensor");
    expected_size_ += raw.data.size() * 2;
  }
  void survey_content(const std::string& text, std::size_t) { survey_text(text, path_); }
  void survey_content(const Tensor& tensor, std::size_t) {
    const std::optional<tensor_view> view = tensors_.survey(tensor, std::as_const(path_));
    if (!view) return;
    if (const auto problem = problem_of(*view)) throw state_error(path_, *problem);
    if (view->storage >= storages_.size()) storages_.resize(view->storage + 1);
    if (storages_[view->storage].uses++ == 0) check_text(view->storage_key, path_);
    expected_size_ += tensor_size;
  }
  void survey_content(const typename value::list& items, std::size_t depth) {
    for (std::size_t i = 0; i < items.size(); ++i) survey_below(std::to_string(i), items[i], depth);
  }
  void survey_content(const typename value::tuple& items, std::size_t depth) { survey_content(items.items, depth); }
  void survey_content(const typename value::dict& items, std::size_t depth) {
    for (const auto& [key, item] : items) {
      if (key.is_integer()) {
        survey_below(std::to_string(key.integer()), item, depth);
      } else {
        survey_text(key.text(), path_);
        survey_below(key.text(), item, depth);
      }
    }
  }
  void survey_below(std::string_view key, const value& item, std::size_t depth) {
    const auto length = path_.size();
    if (length != 0) path_ += '.';
    path_ += key;
    survey(item, depth + 1);
    path_.resize(length);
  }
  void survey_text(std::string_view text, const std::string& path) {
    const auto [number, is_new] = texts_.add(text);
    if (is_new) {
      check_text(text, path);
      text_uses_.emplace_back();
    }
    ++text_uses_[number].uses;
    text_numbers_.push_back(number);
    expected_size_ += text.size() + 5;
  }
  static void check_text(std::string_view text, const std::string& path) {
    if (text.size() > text_limit) throw state_error(path, "text of 2 GiB or more does not fit");
    if (!is_utf8(text)) throw state_error(path, "text is not UTF-8; use state::bytes for other data");
  }

  // ---- second pass

  void write_node(const value& node) {
    std::visit([this](const auto& content) { write_content(content); }, node.data());
  }
  template <class Scalar>
  void write_content(const Scalar& scalar) {
    const auto begin = out_.size();
    out_.write(scalar);
    scalars_.push_back({begin, out_.size() - begin});
  }
  void write_content(const std::string& text) { write_text(text); }
  // As Python's protocol 2 writes bytes: text, to be encoded on loading.
  void write_content(const state::bytes& raw) {
    write_global("_codecs", "encode");
    const auto begin = out_.size();
    out_.write(raw);
    scalars_.push_back({begin, out_.size() - begin});
    write_constant(latin1_, "latin1");
    out_.put(opcode::tuple2);
    out_.put(opcode::reduce);
  }
  // MARK with APPENDS or SETITEMS even for one item: LibTorch's own unpickler knows no APPEND and SETITEM.
  void write_content(const typename value::list& items) {
    out_.put(opcode::empty_list);
    if (items.empty()) return;
    out_.put(opcode::mark);
    for (const auto& item : items) write_node(item);
    out_.put(opcode::appends);
  }
  void write_content(const typename value::dict& items) {
    out_.put(opcode::empty_dict);
    if (items.empty()) return;
    out_.put(opcode::mark);
    for (const auto& [key, item] : items) {
      key.is_integer() ? out_.write(key.integer()) : write_text(key.text());
      write_node(item);
    }
    out_.put(opcode::setitems);
  }
  void write_content(const typename value::tuple& items) {
    write_tuple(items.items, [this](const value& item) { write_node(item); });
  }
  void write_content(const Tensor& given) {
    const std::optional<tensor_view> tensor = tensors_.again(given);
    if (!tensor) return write_content(std::monostate());
    if (!tensor->parameter) return write_tensor(*tensor, tensor->requires_grad);
    write_global("torch._utils", "_rebuild_parameter");
    write_tensor(*tensor, false);
    out_.write(tensor->requires_grad);
    write_no_hooks();
    out_.put(opcode::tuple3);
    out_.put(opcode::reduce);
  }

  void write_tensor(const tensor_view& tensor, bool requires_grad) {
    write_global("torch._utils", "_rebuild_tensor_v2");
    out_.put(opcode::mark);
    out_.put(opcode::mark);
    write_constant(storage_tag_, "storage");
    write_global("torch", storage_global(tensor.dtype));
    write_used(storages_[tensor.storage], tensor.storage_key);
    write_constant(location_, "cpu");
    out_.write(tensor.storage_numel);
    out_.put(opcode::tuple);
    out_.put(opcode::binpersid);
    out_.write(tensor.storage_offset);
    write_tuple(tensor.sizes, [this](std::int64_t number) { out_.write(number); });
    write_tuple(tensor.strides, [this](std::int64_t number) { out_.write(number); });
    out_.write(requires_grad);
    write_no_hooks();
    out_.put(opcode::tuple);
    out_.put(opcode::reduce);
  }
  // A new one for every tensor: a shared one would make a hook of one tensor a hook of all.
  void write_no_hooks() {
    write_global("collections", "OrderedDict");
    out_.put(opcode::empty_tuple);
    out_.put(opcode::reduce);
  }

  template <class Items, class Write>
  void write_tuple(const Items& items, Write write_item) {
    if (items.empty()) return out_.put(opcode::empty_tuple);
    if (items.size() > 3) out_.put(opcode::mark);
    for (const auto& item : items) write_item(item);
    constexpr opcode by_size[] = {opcode::tuple1, opcode::tuple2, opcode::tuple3};
    out_.put(items.size() > 3 ? opcode::tuple : by_size[items.size() - 1]);
  }

  void write_text(std::string_view text) { write_used(text_uses_[text_numbers_[next_text_++]], text); }
  void write_used(usage& use, std::string_view text) {
    if (use.slot != not_stored) return out_.get(use.slot);
    out_.write_text(text);
    if (use.uses > 1) use.slot = out_.store();
  }
  void write_constant(std::uint32_t& slot, std::string_view text) {
    if (slot != not_stored) return out_.get(slot);
    out_.write_text(text);
    slot = out_.store();
  }
  void write_global(std::string_view module, std::string_view name) {
    for (const auto& known : globals_)
      if (known.name == name) return out_.get(known.slot);
    out_.write_global(module, name);
    globals_.push_back({name, out_.store()});
  }

  using opcode = pickle::opcode;
  struct stored_global {
    std::string_view name;  // unique without the module among the few that are written
    std::uint32_t slot;
  };

  Tensors& tensors_;
  std::string path_;
  text_table texts_;
  std::vector<usage> text_uses_;
  std::vector<std::size_t> text_numbers_;  // of every text in the order of the tree
  std::size_t next_text_ = 0;
  std::vector<usage> storages_;
  std::size_t expected_size_ = 256;

  pickle_output out_;
  std::vector<scalar_place> scalars_;
  std::vector<stored_global> globals_;
  std::uint32_t storage_tag_ = not_stored;
  std::uint32_t location_ = not_stored;
  std::uint32_t latin1_ = not_stored;
};

}  // namespace rondo::checkpoint

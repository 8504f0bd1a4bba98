#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <string_view>
#include <unordered_map>

#include "rondo/checkpoint/little_endian.hpp"
#include "rondo/checkpoint/pickle.hpp"
#include "rondo/checkpoint/pickle_opcodes.hpp"
#include "rondo/checkpoint/utf8.hpp"

namespace rondo::checkpoint {

namespace {

using pickle::opcode;

constexpr std::string_view storage_tag = "storage";
constexpr std::string_view location = "cpu";
constexpr std::string_view latin1 = "latin1";
// weights_only reads the length as a signed 32-bit number.
constexpr std::size_t text_limit = std::numeric_limits<std::int32_t>::max();

class pickle_encoder {
 public:
  std::vector<std::byte> encode(const tree& state) && {
    for (const auto text : {storage_tag, location, latin1}) texts_[text].uses = 2;
    count(state, 0);
    put(opcode::proto);
    out_.push_back(std::byte{2});
    write(state);
    put(opcode::stop);
    return std::move(out_);
  }

 private:
  static constexpr std::uint32_t not_stored = std::numeric_limits<std::uint32_t>::max();
  struct text_use {
    std::uint32_t uses = 0;
    std::uint32_t slot = not_stored;
  };

  // First pass: checks what cannot be written and counts texts, because only those that come back earn a memo slot.
  void count(const tree& node, std::size_t depth) {
    if (depth > max_tree_depth) throw state_error("", fmt::format("is nested deeper than {} levels", max_tree_depth));
    if (const auto* text = node.get_if<std::string>()) return count(*text);
    if (const auto* raw = node.get_if<state::bytes>()) {
      if (raw->data.size() > text_limit / 2) throw state_error("", "bytes of 1 GiB or more do not fit; use a tensor");
      return;
    }
    if (const auto* tensor = node.get_if<tensor_descriptor>()) {
      if (const auto problem = problem_of(*tensor)) throw state_error("", *problem);
      return count(tensor->storage_key);
    }
    if (const auto* items = node.get_if<tree::list>()) return count(*items, depth);
    if (const auto* items = node.get_if<tree::tuple>()) return count(items->items, depth);
    if (const auto* items = node.get_if<tree::dict>()) return count(*items, depth);
  }
  void count(const tree::list& items, std::size_t depth) {
    for (std::size_t i = 0; i < items.size(); ++i) count_under(state::key(i), items[i], depth);
  }
  void count(const tree::dict& items, std::size_t depth) {
    for (const auto& [key, value] : items) {
      if (!key.is_integer()) count(key.text());
      count_under(key, value, depth);
    }
  }
  void count_under(const state::key& key, const tree& value, std::size_t depth) {
    try {
      count(value, depth + 1);
    } catch (const state_error& problem) {
      throw problem.under(key.str());
    }
  }
  void count(const std::string& text) {
    const auto [entry, is_new] = texts_.try_emplace(text);
    ++entry->second.uses;
    if (!is_new) return;
    if (text.size() > text_limit) throw state_error("", "text of 2 GiB or more does not fit");
    if (!is_utf8(text)) throw state_error("", "text is not UTF-8; use state::bytes for other data");
  }

  void write(const tree& node) {
    std::visit([this](const auto& value) { write_value(value); }, node.data());
  }
  void write_value(std::monostate) { put(opcode::none); }
  void write_value(bool value) { put(value ? opcode::newtrue : opcode::newfalse); }
  void write_value(std::int64_t value) {
    if (value >= 0 && value <= 0xff) {
      put(opcode::binint1);
      append_little_endian(out_, static_cast<std::uint8_t>(value));
    } else if (value >= 0 && value <= 0xffff) {
      put(opcode::binint2);
      append_little_endian(out_, static_cast<std::uint16_t>(value));
    } else if (value >= std::numeric_limits<std::int32_t>::min() && value <= std::numeric_limits<std::int32_t>::max()) {
      put(opcode::binint);
      append_little_endian(out_, static_cast<std::uint32_t>(value));
    } else {
      // Always eight bytes: LibTorch's own unpickler knows no other length.
      put(opcode::long1);
      out_.push_back(std::byte{8});
      append_little_endian(out_, static_cast<std::uint64_t>(value));
    }
  }
  void write_value(double value) {
    put(opcode::binfloat);
    const auto bits = std::bit_cast<std::uint64_t>(value);
    for (int shift = 56; shift >= 0; shift -= 8) out_.push_back(static_cast<std::byte>(bits >> shift & 0xff));
  }
  void write_value(const std::string& value) { write_text(value); }
  // As Python's protocol 2 writes bytes: the Latin-1 characters of the same numbers, to be encoded on loading.
  void write_value(const state::bytes& value) {
    std::string characters;
    characters.reserve(value.data.size() * 2);
    for (const auto byte : value.data) {
      const auto number = std::to_integer<unsigned>(byte);
      if (number >= 0x80) characters += static_cast<char>(0xc0 | number >> 6);
      characters += static_cast<char>(number < 0x80 ? number : 0x80 | (number & 0x3f));
    }
    write_global("_codecs", "encode");
    write_new_text(characters);
    write_text(latin1);
    put(opcode::tuple2);
    put(opcode::reduce);
  }
  // MARK with APPENDS or SETITEMS even for one item: LibTorch's own unpickler knows no APPEND and SETITEM.
  void write_value(const tree::list& items) {
    put(opcode::empty_list);
    if (items.empty()) return;
    put(opcode::mark);
    for (const auto& item : items) write(item);
    put(opcode::appends);
  }
  void write_value(const tree::dict& items) {
    put(opcode::empty_dict);
    if (items.empty()) return;
    put(opcode::mark);
    for (const auto& [key, value] : items) {
      key.is_integer() ? write_value(key.integer()) : write_text(key.text());
      write(value);
    }
    put(opcode::setitems);
  }
  void write_value(const tree::tuple& value) {
    write_tuple(value.items, [this](const tree& item) { write(item); });
  }
  void write_value(const tensor_descriptor& tensor) {
    if (!tensor.parameter) return write_tensor(tensor, tensor.requires_grad);
    write_global("torch._utils", "_rebuild_parameter");
    write_tensor(tensor, false);
    write_value(tensor.requires_grad);
    write_no_hooks();
    put(opcode::tuple3);
    put(opcode::reduce);
  }

  void write_tensor(const tensor_descriptor& tensor, bool requires_grad) {
    write_global("torch._utils", "_rebuild_tensor_v2");
    put(opcode::mark);
    put(opcode::mark);
    write_text(storage_tag);
    write_global("torch", storage_global(tensor.dtype));
    write_text(tensor.storage_key);
    write_text(location);
    write_value(tensor.storage_numel);
    put(opcode::tuple);
    put(opcode::binpersid);
    write_value(tensor.storage_offset);
    write_tuple(tensor.sizes, [this](std::int64_t number) { write_value(number); });
    write_tuple(tensor.strides, [this](std::int64_t number) { write_value(number); });
    write_value(requires_grad);
    write_no_hooks();
    put(opcode::tuple);
    put(opcode::reduce);
  }
  // A new one for every tensor: a shared one would make a hook of one tensor a hook of all.
  void write_no_hooks() {
    write_global("collections", "OrderedDict");
    put(opcode::empty_tuple);
    put(opcode::reduce);
  }

  template <class Item, class Write>
  void write_tuple(const std::vector<Item>& items, Write write_item) {
    if (items.empty()) return put(opcode::empty_tuple);
    if (items.size() > 3) put(opcode::mark);
    for (const auto& item : items) write_item(item);
    constexpr opcode by_size[] = {opcode::tuple1, opcode::tuple2, opcode::tuple3};
    put(items.size() > 3 ? opcode::tuple : by_size[items.size() - 1]);
  }

  void write_text(std::string_view text) {
    auto& use = texts_.find(text)->second;
    if (use.slot != not_stored) return write_get(use.slot);
    write_new_text(text);
    if (use.uses > 1) use.slot = write_put();
  }
  void write_new_text(std::string_view text) {
    put(opcode::binunicode);
    append_little_endian(out_, static_cast<std::uint32_t>(text.size()));
    append_text(out_, text);
  }
  void write_global(std::string_view module, std::string_view name) {
    const auto known = std::ranges::find(globals_, name, &stored_global::name);
    if (known != globals_.end()) return write_get(known->slot);
    put(opcode::global);
    append_text(out_, module);
    append_text(out_, "\n");
    append_text(out_, name);
    append_text(out_, "\n");
    globals_.push_back({name, write_put()});
  }

  std::uint32_t write_put() {
    put_slot(opcode::binput, opcode::long_binput, next_slot_);
    return next_slot_++;
  }
  void write_get(std::uint32_t slot) { put_slot(opcode::binget, opcode::long_binget, slot); }
  void put_slot(opcode narrow, opcode wide, std::uint32_t slot) {
    put(slot <= 0xff ? narrow : wide);
    if (slot <= 0xff)
      append_little_endian(out_, static_cast<std::uint8_t>(slot));
    else
      append_little_endian(out_, slot);
  }
  void put(opcode code) { out_.push_back(static_cast<std::byte>(code)); }

  struct stored_global {
    std::string_view name;  // unique without the module among the few that are written
    std::uint32_t slot;
  };

  std::vector<std::byte> out_;
  std::unordered_map<std::string_view, text_use> texts_;
  std::vector<stored_global> globals_;
  std::uint32_t next_slot_ = 0;
};

}  // namespace

std::vector<std::byte> encode_pickle(const tree& state) { return pickle_encoder().encode(state); }

}  // namespace rondo::checkpoint

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <deque>
#include <memory>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <variant>

#include "rondo/checkpoint/little_endian.hpp"
#include "rondo/checkpoint/pickle.hpp"
#include "rondo/checkpoint/pickle_opcodes.hpp"
#include "rondo/checkpoint/utf8.hpp"

namespace rondo::checkpoint {

namespace {

using pickle::opcode;

// What the machine computes with. Text and bytes are views into the pickle; everything that can be shared or filled
// later lives in the object table, as in Python.
using raw = std::span<const std::byte>;
struct reference {
  std::size_t index;
};
using value = std::variant<std::monostate, bool, std::int64_t, double, std::string_view, raw, reference>;
using values = std::vector<value>;

struct list_object {
  values items;
};
struct tuple_object {
  values items;
};
struct dict_object {
  values items;  // keys and values in turn
};
struct global_object {
  std::string_view module;
  std::string_view name;
  [[nodiscard]] std::string path() const { return fmt::format("{}.{}", module, name); }
};
struct storage_object {
  std::string_view global;
  std::string_view key;
  std::int64_t numel;
};
// A call of something unknown, which is never made.
struct inert_call {
  value callable;
  value arguments;
  values items;
  values entries;
  value state;
};
using object = std::variant<list_object, tuple_object, dict_object, global_object, storage_object, std::string,
                            state::bytes, std::unique_ptr<tensor_descriptor>, std::unique_ptr<inert_call>>;

constexpr std::array<std::string_view, 26> dtype_names = {
    "uint8",           "int8",          "int16",           "int32",  "int64",    "float16", "float32",  "float64",
    "complex32",       "complex64",     "complex128",      "bool",   "bfloat16", "uint16",  "uint32",   "uint64",
    "float8_e4m3fn",   "float8_e5m2",   "float8_e4m3fnuz", "quint8", "qint8",    "qint32",  "quint4x2", "quint2x4",
    "float8_e5m2fnuz", "float8_e8m0fnu"};

bool is_dtype(const global_object& global) {
  return global.module == "torch" && std::ranges::find(dtype_names, global.name) != dtype_names.end();
}

class machine {
 public:
  machine(raw pickle, const std::string& where, const pickle_limits& limits)
      : pickle_(pickle), where_(where), limits_(limits) {}

  tree run() && {
    while (step()) {
    }
    const value result = pop();
    if (!stack_.empty() || !marks_.empty()) fail("the pickle leaves unfinished values behind");
    if (at_ != pickle_.size()) fail("something follows the end of the pickle");
    measure(result, 0);
    return expand(result);
  }

 private:
  // Cost of a value once expanded; totals saturate far above every limit.
  struct extent {
    std::uint64_t nodes = 1;
    std::uint64_t text = 0;
    std::size_t height = 0;
    bool open = false;
  };

  [[noreturn]] void fail(const std::string& problem) const { throw format_error(where_, opcode_at_, problem); }

  // ---- input

  raw take(std::uint64_t count) {
    if (count > pickle_.size() - at_) fail("the pickle ends in the middle of a value");
    const raw bytes = pickle_.subspan(at_, static_cast<std::size_t>(count));
    at_ += static_cast<std::size_t>(count);
    return bytes;
  }
  template <class T>
  T take_number() {
    return little_endian_at<T>(take(sizeof(T)), 0);
  }
  std::string_view take_text(std::uint64_t size) {
    const auto text = as_text(take(size));
    if (!is_utf8(text)) fail("text is not UTF-8");
    return text;
  }
  std::string_view take_line() {
    const auto rest = as_text(pickle_.subspan(at_));
    const auto end = rest.find('\n');
    if (end == std::string_view::npos) fail("the pickle ends in the middle of a name");
    const auto line = take_text(end);
    ++at_;
    return line;
  }
  double take_float() {
    std::uint64_t bits = 0;
    for (const auto byte : take(8)) bits = bits << 8 | std::to_integer<std::uint64_t>(byte);
    return std::bit_cast<double>(bits);
  }
  // Two's complement, little-endian.
  value take_long(std::uint64_t size) {
    const raw bytes = take(size);
    if (size > 8) return big_integer(bytes);
    if (size == 0) return std::int64_t{0};
    const bool negative = is_negative(bytes);
    std::uint64_t number = negative ? ~std::uint64_t{0} : 0;
    for (std::size_t i = bytes.size(); i-- > 0;) number = number << 8 | std::to_integer<std::uint64_t>(bytes[i]);
    return static_cast<std::int64_t>(number);
  }
  static bool is_negative(raw bytes) { return (bytes.back() & std::byte{0x80}) != std::byte{0}; }
  // As the call int("-1f…", 16), which is never made.
  value big_integer(raw bytes) {
    const bool negative = is_negative(bytes);
    std::string digits;
    digits.reserve(2 * copied(bytes).size() + 1);
    std::string text(negative ? "-" : "");
    unsigned carry = negative ? 1 : 0;
    for (const auto byte : bytes) {
      const unsigned sum =
          (negative ? ~std::to_integer<unsigned>(byte) & 0xff : std::to_integer<unsigned>(byte)) + carry;
      carry = sum >> 8;
      digits += "0123456789abcdef"[sum & 15];
      digits += "0123456789abcdef"[sum >> 4 & 15];
    }
    digits.erase(digits.find_last_not_of('0') + 1);
    text.append(digits.rbegin(), digits.rend());
    const value arguments = make(tuple_object{{make(std::move(text)), std::int64_t{16}}});
    return make_inert(make(global_object{"builtins", "int"}), arguments);
  }

  // ---- stack, marks, memo, objects

  [[nodiscard]] std::size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  void push(value item) { stack_.push_back(item); }
  value& top() {
    if (stack_.size() <= floor()) fail("the pickle uses a value that is not there");
    return stack_.back();
  }
  value pop() {
    const value item = top();
    stack_.pop_back();
    return item;
  }
  values pop_last(std::size_t count) {
    if (stack_.size() - floor() < count) fail("the pickle uses a value that is not there");
    values items(stack_.end() - static_cast<std::ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
    return items;
  }
  values pop_to_mark() {
    if (marks_.empty()) fail("the pickle uses a mark that is not there");
    auto items = pop_last(stack_.size() - marks_.back());
    marks_.pop_back();
    return items;
  }

  void remember(std::uint64_t slot) {
    // An honest pickler numbers its slots one by one, so the memo never outgrows the pickle.
    if (slot >= pickle_.size()) fail("a memo slot is out of range");
    if (slot >= memo_.size()) memo_.resize(static_cast<std::size_t>(slot) + 1);
    if (!memo_[static_cast<std::size_t>(slot)]) ++remembered_;
    memo_[static_cast<std::size_t>(slot)] = top();
  }
  void recall(std::uint64_t slot) {
    if (slot >= memo_.size() || !memo_[static_cast<std::size_t>(slot)]) fail("the pickle recalls an empty memo slot");
    push(*memo_[static_cast<std::size_t>(slot)]);
  }

  template <class T>
  value make(T content) {
    if (objects_.size() >= limits_.objects) fail(fmt::format("the pickle makes more than {} objects", limits_.objects));
    objects_.emplace_back(std::move(content));
    return reference{objects_.size() - 1};
  }
  template <class T>
  T* as(const value& item) {
    const auto* target = std::get_if<reference>(&item);
    return target ? std::get_if<T>(&objects_[target->index]) : nullptr;
  }
  inert_call* as_call(const value& item) {
    const auto* call = as<std::unique_ptr<inert_call>>(item);
    return call ? call->get() : nullptr;
  }
  tensor_descriptor* as_tensor(const value& item) {
    const auto* tensor = as<std::unique_ptr<tensor_descriptor>>(item);
    return tensor ? tensor->get() : nullptr;
  }
  const values* as_sequence(const value& item) {
    if (const auto* tuple = as<tuple_object>(item)) return &tuple->items;
    const auto* list = as<list_object>(item);
    return list ? &list->items : nullptr;
  }

  // ---- opcodes

  // False at the end of the pickle.
  bool step() {
    opcode_at_ = at_;
    const auto code = static_cast<opcode>(take_number<std::uint8_t>());
    // clang-format off
    switch (code) {
      case opcode::stop: return false;
      case opcode::proto: check_protocol(take_number<std::uint8_t>()); break;
      case opcode::frame: check_frame(take_number<std::uint64_t>()); break;
      case opcode::mark: marks_.push_back(stack_.size()); break;
      case opcode::pop: pop(); break;
      case opcode::pop_mark: pop_to_mark(); break;

      case opcode::none: push(std::monostate()); break;
      case opcode::newtrue: push(true); break;
      case opcode::newfalse: push(false); break;
      case opcode::binint: push(std::int64_t{static_cast<std::int32_t>(take_number<std::uint32_t>())}); break;
      case opcode::binint1: push(std::int64_t{take_number<std::uint8_t>()}); break;
      case opcode::binint2: push(std::int64_t{take_number<std::uint16_t>()}); break;
      case opcode::long1: push(take_long(take_number<std::uint8_t>())); break;
      case opcode::long4: push(take_long(take_number<std::uint32_t>())); break;
      case opcode::binfloat: push(take_float()); break;
      case opcode::short_binunicode: push(take_text(take_number<std::uint8_t>())); break;
      case opcode::binunicode: push(take_text(take_number<std::uint32_t>())); break;
      case opcode::binunicode8: push(take_text(take_number<std::uint64_t>())); break;
      case opcode::short_binbytes: push(take(take_number<std::uint8_t>())); break;
      case opcode::binbytes: push(take(take_number<std::uint32_t>())); break;
      case opcode::binbytes8:
      case opcode::bytearray8: push(take(take_number<std::uint64_t>())); break;

      case opcode::empty_tuple: push(make(tuple_object())); break;
      case opcode::tuple1: push(make(tuple_object{pop_last(1)})); break;
      case opcode::tuple2: push(make(tuple_object{pop_last(2)})); break;
      case opcode::tuple3: push(make(tuple_object{pop_last(3)})); break;
      case opcode::tuple: push(make(tuple_object{pop_to_mark()})); break;
      case opcode::empty_list:
      case opcode::empty_set: push(make(list_object())); break;
      case opcode::frozenset: push(make(list_object{pop_to_mark()})); break;
      case opcode::append: append(pop_last(1)); break;
      case opcode::appends:
      case opcode::additems: append(pop_to_mark()); break;
      case opcode::empty_dict: push(make(dict_object())); break;
      case opcode::setitem: assign(pop_last(2)); break;
      case opcode::setitems: assign(pop_to_mark()); break;

      case opcode::binput: remember(take_number<std::uint8_t>()); break;
      case opcode::long_binput: remember(take_number<std::uint32_t>()); break;
      case opcode::memoize: remember(remembered_); break;
      case opcode::binget: recall(take_number<std::uint8_t>()); break;
      case opcode::long_binget: recall(take_number<std::uint32_t>()); break;

      case opcode::global: push_global(); break;
      case opcode::stack_global: push_stack_global(); break;
      case opcode::binpersid: push(make(storage_of(pop()))); break;
      case opcode::newobj:
      case opcode::reduce: {
        const auto call = pop_last(2);
        push(reduce(call[0], call[1]));
        break;
      }
      case opcode::newobj_ex: {
        const auto call = pop_last(3);
        push(make_inert(call[0], make(tuple_object{{call[1], call[2]}})));
        break;
      }
      case opcode::build: build(pop()); break;
      default: fail(fmt::format("unknown pickle opcode 0x{:02x}", static_cast<unsigned>(code)));
    }
    // clang-format on
    return true;
  }

  void check_protocol(unsigned version) const {
    if (version > 5) fail(fmt::format("pickle protocol {} is unknown", version));
  }
  void check_frame(std::uint64_t size) const {
    if (size > pickle_.size() - at_) fail("a frame is longer than the pickle");
  }

  void append(const values& items) {
    auto* list = as<list_object>(top());
    auto* call = as_call(top());
    if (!list && !call) fail("the pickle appends to something that is not a list");
    auto& target = list ? list->items : call->items;
    target.insert(target.end(), items.begin(), items.end());
  }
  void assign(const values& items) {
    if (items.size() % 2 != 0) fail("a dict key has no value");
    auto* dict = as<dict_object>(top());
    auto* call = as_call(top());
    if (!dict && !call) fail("the pickle assigns into something that is not a dict");
    auto& target = dict ? dict->items : call->entries;
    target.insert(target.end(), items.begin(), items.end());
  }
  // Attributes of dicts (OrderedDict's _metadata) and tensors are of no use outside Python.
  void build(const value& state) {
    if (auto* call = as_call(top()))
      call->state = state;
    else if (!as<dict_object>(top()) && !as_tensor(top()))
      fail("the pickle sets attributes of something that has none");
  }

  void push_global() {
    const auto module = take_line();
    push_global(module, take_line());
  }
  void push_global(std::string_view module, std::string_view name) {
    constexpr std::size_t longest = 1000;
    if (module.size() > longest || name.size() > longest) fail("the name of a global is too long");
    push(make(global_object{module, name}));
  }
  void push_stack_global() {
    const auto names = pop_last(2);
    const auto* module = std::get_if<std::string_view>(&names[0]);
    const auto* name = std::get_if<std::string_view>(&names[1]);
    if (!module || !name) fail("a global is named by something that is not text");
    push_global(*module, *name);
  }

  storage_object storage_of(const value& id) {
    const auto* parts = as<tuple_object>(id);
    if (!parts || parts->items.size() < 5) fail("a persistent id is not that of a storage");
    const auto& items = parts->items;
    const auto* tag = std::get_if<std::string_view>(&items[0]);
    const auto* global = as<global_object>(items[1]);
    const auto* key = std::get_if<std::string_view>(&items[2]);
    const auto* numel = std::get_if<std::int64_t>(&items[4]);
    if (!tag || *tag != "storage" || !global || !key || !numel) fail("a persistent id is not that of a storage");
    return {global->name, *key, *numel};
  }

  // ---- calls: a few are understood, none is made

  value reduce(const value& callable, const value& arguments) {
    const auto* global = as<global_object>(callable);
    const auto* items = as<tuple_object>(arguments);
    if (global && items) {
      if (const auto result = known_call(global->path(), items->items)) return *result;
    }
    return make_inert(callable, arguments);
  }
  value make_inert(const value& callable, const value& arguments) {
    auto call = std::make_unique<inert_call>();
    call->callable = callable;
    call->arguments = arguments;
    return make(std::move(call));
  }

  // An honest pickle copies each thing once; one that copies a long list again and again grows without bound.
  template <class Items>
  const Items& copied(const Items& items) {
    copied_ += items.size() + 1;
    if (copied_ > 4 * pickle_.size()) fail("the pickle copies its data again and again");
    return items;
  }

  // Nothing when function and arguments are not a pair that is understood.
  std::optional<value> known_call(const std::string& path, const values& arguments) {
    using handler = std::optional<value> (machine::*)(const values&);
    static const std::unordered_map<std::string_view, handler> handlers = {
        {"collections.OrderedDict", &machine::ordered_dict},
        {"torch.Size", &machine::size},
        {"torch.device", &machine::device},
        {"_codecs.encode", &machine::latin1_bytes},
        {"__builtin__.bytes", &machine::latin1_bytes},
        {"builtins.bytes", &machine::latin1_bytes},
        {"__builtin__.bytearray", &machine::latin1_bytes},
        {"builtins.bytearray", &machine::latin1_bytes},
        {"__builtin__.set", &machine::set},
        {"builtins.set", &machine::set},
        {"__builtin__.frozenset", &machine::set},
        {"builtins.frozenset", &machine::set},
        {"torch._utils._rebuild_tensor", &machine::tensor},
        {"torch._utils._rebuild_tensor_v2", &machine::tensor},
        {"torch._utils._rebuild_parameter", &machine::parameter},
        {"torch._utils._rebuild_parameter_with_state", &machine::parameter},
        {"torch._tensor._rebuild_from_type_v2", &machine::tensor_with_attributes},
    };
    const auto handler_at = handlers.find(path);
    return handler_at == handlers.end() ? std::nullopt : (this->*handler_at->second)(arguments);
  }

  std::optional<value> ordered_dict(const values& arguments) {
    dict_object dict;
    const auto* pairs = arguments.empty() ? nullptr : as_sequence(arguments[0]);
    if (!arguments.empty() && !pairs) return std::nullopt;
    for (std::size_t i = 0; pairs && i < pairs->size(); ++i) {
      const auto* pair = as_sequence((*pairs)[i]);
      if (!pair || pair->size() != 2) return std::nullopt;
      copied(*pair);
      dict.items.insert(dict.items.end(), pair->begin(), pair->end());
    }
    return make(std::move(dict));
  }
  std::optional<value> size(const values& arguments) {
    const auto* sizes = arguments.size() == 1 ? as_sequence(arguments[0]) : nullptr;
    if (!sizes) return std::nullopt;
    return make(tuple_object{copied(*sizes)});
  }
  std::optional<value> set(const values& arguments) {
    if (arguments.empty()) return make(list_object());
    const auto* items = as_sequence(arguments[0]);
    if (!items) return std::nullopt;
    return make(list_object{copied(*items)});
  }
  std::optional<value> device(const values& arguments) {
    const auto* type = arguments.empty() ? nullptr : std::get_if<std::string_view>(&arguments[0]);
    const auto* index = arguments.size() == 2 ? std::get_if<std::int64_t>(&arguments[1]) : nullptr;
    if (!type || arguments.size() > 2 || (arguments.size() == 2 && !index)) return std::nullopt;
    return make(index ? fmt::format("{}:{}", *type, *index) : std::string(*type));
  }
  // bytes and bytearray: of nothing, of bytes, or of text whose characters are the bytes.
  std::optional<value> latin1_bytes(const values& arguments) {
    if (arguments.empty()) return raw();
    const bool of_bytes = std::holds_alternative<raw>(arguments[0]) || as<state::bytes>(arguments[0]);
    if (of_bytes && arguments.size() == 1) return arguments[0];
    const auto* text = std::get_if<std::string_view>(&arguments[0]);
    const auto* encoding = arguments.size() == 2 ? std::get_if<std::string_view>(&arguments[1]) : nullptr;
    if (!text || !encoding || (*encoding != "latin1" && *encoding != "latin-1")) return std::nullopt;
    state::bytes result;
    result.data.reserve(copied(*text).size());
    for (std::size_t i = 0; i < text->size(); ++i) {
      unsigned character = static_cast<unsigned char>((*text)[i]);
      if (character > 0xc3) fail("bytes hold a character above 255");
      if (character >= 0x80) character = (character & 0x03) << 6 | (static_cast<unsigned char>((*text)[++i]) & 0x3f);
      result.data.push_back(static_cast<std::byte>(character));
    }
    return make(std::move(result));
  }

  std::optional<value> tensor(const values& arguments) {
    const auto* storage = arguments.size() < 4 ? nullptr : as<storage_object>(arguments[0]);
    if (!storage) return std::nullopt;
    const auto dtype = scalar_type_from_storage(storage->global);
    if (!dtype) return std::nullopt;
    auto result = std::make_unique<tensor_descriptor>();
    result->dtype = *dtype;
    result->storage_key = storage->key;
    result->storage_numel = storage->numel;
    const auto* offset = std::get_if<std::int64_t>(&arguments[1]);
    const auto* requires_grad = arguments.size() < 5 ? nullptr : std::get_if<bool>(&arguments[4]);
    if (!offset) fail("a tensor's offset is not an integer");
    result->storage_offset = *offset;
    result->sizes = integers(arguments[2]);
    result->strides = integers(arguments[3]);
    result->requires_grad = requires_grad && *requires_grad;
    if (const auto problem = problem_of(*result)) fail(*problem);
    return make(std::move(result));
  }
  std::vector<std::int64_t> integers(const value& sequence) {
    const auto* items = as_sequence(sequence);
    if (!items) fail("a tensor's shape is not a tuple");
    std::vector<std::int64_t> numbers;
    numbers.reserve(copied(*items).size());
    for (const auto& item : *items) {
      const auto* number = std::get_if<std::int64_t>(&item);
      if (!number) fail("a tensor's shape holds something that is not an integer");
      numbers.push_back(*number);
    }
    return numbers;
  }
  std::optional<value> parameter(const values& arguments) {
    const auto* data = arguments.size() < 2 ? nullptr : as_tensor(arguments[0]);
    const auto* requires_grad = arguments.size() < 2 ? nullptr : std::get_if<bool>(&arguments[1]);
    if (!data || !requires_grad) return std::nullopt;
    copied(data->sizes);
    auto result = std::make_unique<tensor_descriptor>(*data);
    result->requires_grad = *requires_grad;
    result->parameter = true;
    return make(std::move(result));
  }
  // (function, class, arguments, attributes): a tensor with Python attributes, or of a Python subclass.
  std::optional<value> tensor_with_attributes(const values& arguments) {
    const auto* function = arguments.size() == 4 ? as<global_object>(arguments[0]) : nullptr;
    const auto* inner = function ? as<tuple_object>(arguments[2]) : nullptr;
    if (!inner || function->path() != "torch._utils._rebuild_tensor_v2") return std::nullopt;
    return tensor(inner->items);
  }

  // ---- result

  // Refuses, before anything is built, what refers to itself, is too deep or would be too big.
  extent measure(const value& item, std::size_t depth) {
    if (depth > limits_.depth) fail(fmt::format("the data is nested deeper than {} levels", limits_.depth));
    extent total;
    if (const auto* text = std::get_if<std::string_view>(&item)) total.text = text->size();
    if (const auto* bytes = std::get_if<raw>(&item)) total.text = bytes->size();
    if (const auto* target = std::get_if<reference>(&item)) total = measure_object(target->index, depth);
    if (total.nodes > limits_.nodes) fail(fmt::format("the data has more than {} nodes", limits_.nodes));
    if (total.text > limits_.text) fail(fmt::format("the data has more than {} bytes of text", limits_.text));
    return total;
  }
  extent measure_object(std::size_t index, std::size_t depth) {
    const auto known = extents_.find(index);
    if (known != extents_.end()) {
      if (known->second.open) fail("the data refers to itself");
      if (depth + known->second.height > limits_.depth)
        fail(fmt::format("the data is nested deeper than {} levels", limits_.depth));
      return known->second;
    }
    extents_[index].open = true;
    extent total;
    const auto add = [&](const value& item) {
      const auto part = measure(item, depth + 1);
      total.nodes += part.nodes;
      total.text += part.text;
      total.height = std::max(total.height, part.height + 1);
      if (total.nodes > limits_.nodes || total.text > limits_.text) fail("the data is too big once it is unfolded");
    };
    const auto add_all = [&](const values& items) { std::ranges::for_each(items, add); };
    const object& node = objects_[index];
    if (const auto* list = std::get_if<list_object>(&node)) add_all(list->items);
    if (const auto* tuple = std::get_if<tuple_object>(&node)) add_all(tuple->items);
    if (const auto* dict = std::get_if<dict_object>(&node)) add_all(dict->items);
    if (const auto* bytes = std::get_if<state::bytes>(&node)) total.text += bytes->data.size();
    if (const auto* text = std::get_if<std::string>(&node)) total.text += text->size();
    if (const auto* global = std::get_if<global_object>(&node))
      total.text += global->module.size() + global->name.size();
    if (const auto* storage = std::get_if<storage_object>(&node)) total.text += storage->key.size();
    if (const auto* tensor = std::get_if<std::unique_ptr<tensor_descriptor>>(&node))
      total.text += (*tensor)->storage_key.size() + (*tensor)->sizes.size() * 2 * sizeof(std::int64_t);
    if (const auto* call = std::get_if<std::unique_ptr<inert_call>>(&node)) {
      add((*call)->callable);
      add((*call)->arguments);
      add((*call)->state);
      // What was appended or assigned sits one level further down.
      if (!(*call)->items.empty()) add_all((*call)->items);
      if (!(*call)->entries.empty()) add_all((*call)->entries);
      ++total.height;
    }
    return extents_[index] = total;
  }

  tree expand(const value& item) const {
    struct visitor {
      const machine& self;
      tree operator()(std::monostate) const { return {}; }
      tree operator()(bool flag) const { return flag; }
      tree operator()(std::int64_t number) const { return number; }
      tree operator()(double number) const { return number; }
      tree operator()(std::string_view text) const { return text; }
      tree operator()(raw bytes) const { return state::bytes{{bytes.begin(), bytes.end()}}; }
      tree operator()(reference target) const {
        return std::visit([this](const auto& node) { return self.expand_object(node); }, self.objects_[target.index]);
      }
    };
    return std::visit(visitor{*this}, item);
  }
  tree expand_object(const list_object& node) const { return expand_all(node.items); }
  tree expand_object(const tuple_object& node) const { return tree::tuple{expand_all(node.items)}; }
  tree expand_object(const dict_object& node) const { return expand_entries(node.items); }
  tree expand_object(const global_object& node) const {
    if (is_dtype(node)) return node.path();
    return tree::dict{{"__global__", node.path()}};
  }
  tree expand_object(const storage_object& node) const {
    tree::tuple arguments;
    arguments.items = {std::string(node.key), node.numel};
    return tree::dict{{"__global__", fmt::format("torch.{}", node.global)}, {"args", std::move(arguments)}};
  }
  tree expand_object(const std::string& text) const { return text; }
  tree expand_object(const state::bytes& bytes) const { return bytes; }
  tree expand_object(const std::unique_ptr<tensor_descriptor>& tensor) const { return *tensor; }
  tree expand_object(const std::unique_ptr<inert_call>& call) const {
    tree::dict result;
    const tree callable = expand(call->callable);
    const auto* global = callable.get_if<tree::dict>();
    const bool is_plain = global && global->size() == 1 && global->contains("__global__");
    result["__global__"] = is_plain ? global->at("__global__") : callable;
    result["args"] = expand(call->arguments);
    if (!call->items.empty()) result["items"] = expand_all(call->items);
    if (!call->entries.empty()) result["entries"] = expand_entries(call->entries);
    if (!std::holds_alternative<std::monostate>(call->state)) result["state"] = expand(call->state);
    return result;
  }

  tree::list expand_all(const values& items) const {
    tree::list result;
    result.reserve(items.size());
    for (const auto& item : items) result.push_back(expand(item));
    return result;
  }
  tree::dict expand_entries(const values& items) const {
    tree::dict result;
    result.reserve(items.size() / 2);
    for (std::size_t i = 0; i < items.size(); i += 2) result.insert_or_assign(key_of(items[i]), expand(items[i + 1]));
    return result;
  }
  [[nodiscard]] state::key key_of(const value& item) const {
    if (const auto* text = std::get_if<std::string_view>(&item)) return *text;
    if (const auto* number = std::get_if<std::int64_t>(&item)) return *number;
    if (const auto* flag = std::get_if<bool>(&item)) return *flag ? 1 : 0;
    fail("a dict has a key that is neither text nor an integer");
  }

  raw pickle_;
  const std::string& where_;
  const pickle_limits& limits_;
  std::size_t at_ = 0;
  std::size_t opcode_at_ = 0;
  values stack_;
  std::vector<std::size_t> marks_;
  std::vector<std::optional<value>> memo_;
  std::size_t remembered_ = 0;
  std::size_t copied_ = 0;
  std::deque<object> objects_;  // a deque, because pointers into an object must survive the making of another
  std::unordered_map<std::size_t, extent> extents_;
};

}  // namespace

tree decode_pickle(std::span<const std::byte> pickle, const std::string& where, const pickle_limits& limits) {
  return machine(pickle, where, limits).run();
}

}  // namespace rondo::checkpoint

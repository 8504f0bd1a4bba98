#include "rondo/checkpoint/safetensors.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "rondo/checkpoint/joining_sink.hpp"
#include "rondo/checkpoint/little_endian.hpp"
#include "rondo/checkpoint/pickle.hpp"
#include "rondo/error.hpp"

namespace rondo::checkpoint {

namespace {

using json = nlohmann::json;

constexpr std::size_t length_size = 8;
// The limits of the reference implementation, and of numpy and LibTorch's iterators.
constexpr std::uint64_t longest_header = 100'000'000;
constexpr std::size_t most_dimensions = 64;
constexpr std::uint64_t longest_data = std::uint64_t{1} << 62;
constexpr std::string_view metadata_name = "__metadata__";

struct type_name {
  std::string_view name;
  scalar_type type;
};
constexpr std::array<type_name, 11> type_names = {{
    {"BOOL", scalar_type::boolean},
    {"U8", scalar_type::uint8},
    {"I8", scalar_type::int8},
    {"I16", scalar_type::int16},
    {"I32", scalar_type::int32},
    {"I64", scalar_type::int64},
    {"F16", scalar_type::float16},
    {"BF16", scalar_type::bfloat16},
    {"F32", scalar_type::float32},
    {"F64", scalar_type::float64},
    {"C64", scalar_type::complex64},
}};

// Names in errors: a hostile file may have very long ones.
std::string_view shown(std::string_view name) { return name.substr(0, 200); }

// ---- the header, read

struct entry {
  std::string name;
  std::optional<scalar_type> dtype;
  std::optional<std::vector<std::int64_t>> shape;
  std::vector<std::uint64_t> offsets;
};

// Takes the header as it is parsed, and nothing but what the format allows, so that no document is built in memory.
class header_handler : public nlohmann::json_sax<json> {
 public:
  explicit header_handler(const std::string& where) : where_(where) {}

  std::vector<entry> entries;
  safetensors_metadata metadata;

  bool start_object(std::size_t) override {
    if (place_ == place::start)
      place_ = place::top;
    else if (place_ == place::top)
      begin_member();
    else
      fail_misplaced("an object");
    return true;
  }
  bool key(std::string& name) override {
    if (place_ == place::top)
      member_ = unique(names_, name);
    else if (place_ == place::metadata)
      field_ = unique(texts_, name);
    else
      begin_field(name);
    return true;
  }
  bool end_object() override {
    if (place_ == place::tensor) require_complete(entries.back());
    place_ = place_ == place::top ? place::end : place::top;
    return true;
  }
  bool start_array(std::size_t) override {
    if (place_ != place::tensor || (field_ != "shape" && field_ != "data_offsets")) fail_misplaced("an array");
    place_ = field_ == "shape" ? place::shape : place::offsets;
    return true;
  }
  bool end_array() override {
    place_ = place::tensor;
    return true;
  }
  bool number_unsigned(std::uint64_t number) override {
    if (place_ == place::shape)
      add_size(number);
    else if (place_ == place::offsets)
      entries.back().offsets.push_back(number);
    else
      fail_misplaced("a number");
    if (entries.back().offsets.size() > 2) fail_tensor("has more than two data offsets");
    return true;
  }
  bool string(std::string& text) override {
    if (place_ == place::metadata)
      metadata.emplace(field_, std::move(text));
    else if (place_ == place::tensor && field_ == "dtype")
      entries.back().dtype = type_of(text);
    else
      fail_misplaced("a text");
    return true;
  }
  bool null() override { return fail_misplaced("null"); }
  bool boolean(bool) override { return fail_misplaced("a boolean"); }
  bool number_integer(std::int64_t) override { return fail_misplaced("a negative number"); }
  bool number_float(double, const std::string&) override {
    return fail_misplaced("a number that is not a 64-bit integer");
  }
  bool binary(json::binary_t&) override { return fail_misplaced("binary data"); }
  bool parse_error(std::size_t position, const std::string&, const json::exception& problem) override {
    throw format_error(where_, length_size + position, fmt::format("the header is not JSON: {}", problem.what()));
  }

 private:
  enum class place { start, top, tensor, shape, offsets, metadata, end };

  [[noreturn]] void fail(const std::string& problem) const { throw format_error(where_, length_size, problem); }
  [[noreturn]] void fail_tensor(const std::string& problem) const {
    fail(fmt::format("tensor '{}' {}", shown(member_), problem));
  }
  bool fail_misplaced(const char* what) const {
    if (place_ == place::start) fail("the header is not a JSON object");
    if (place_ == place::metadata)
      fail(fmt::format("the metadata '{}' is {}, only texts are allowed", shown(field_), what));
    fail(fmt::format("the header has {} in the wrong place, at '{}'", what, shown(member_)));
  }

  std::string unique(std::unordered_set<std::string>& known, const std::string& name) const {
    if (!known.insert(name).second) fail(fmt::format("the header has the name '{}' twice", shown(name)));
    return name;
  }
  void begin_member() {
    if (member_ == metadata_name) {
      place_ = place::metadata;
      return;
    }
    place_ = place::tensor;
    fields_ = 0;
    entries.push_back({member_, {}, {}, {}});
  }
  void begin_field(const std::string& name) {
    static constexpr std::array<std::string_view, 3> known = {"dtype", "shape", "data_offsets"};
    const auto at = std::ranges::find(known, name);
    if (at == known.end()) fail_tensor(fmt::format("has a field '{}', which the format has not", shown(name)));
    const unsigned bit = 1U << (at - known.begin());
    if ((fields_ & bit) != 0) fail_tensor(fmt::format("has the field '{}' twice", name));
    fields_ |= bit;
    field_ = name;
    if (field_ == "shape") entries.back().shape.emplace();
  }
  void add_size(std::uint64_t size) {
    auto& shape = *entries.back().shape;
    if (size > std::uint64_t{std::numeric_limits<std::int64_t>::max()}) fail_tensor("has a size beyond 63 bits");
    if (shape.size() == most_dimensions) fail_tensor(fmt::format("has more than {} dimensions", most_dimensions));
    shape.push_back(static_cast<std::int64_t>(size));
  }
  scalar_type type_of(const std::string& text) const {
    const auto at = std::ranges::find(type_names, text, &type_name::name);
    if (at == type_names.end())
      fail_tensor(
          fmt::format("has the dtype '{}', which Rondo does not know; convert the tensor in Python, for "
                      "example with .to(torch.float32)",
                      shown(text)));
    return at->type;
  }
  void require_complete(const entry& tensor) const {
    if (!tensor.dtype) fail_tensor("has no dtype");
    if (!tensor.shape) fail_tensor("has no shape");
    if (tensor.offsets.size() != 2) fail_tensor("has not two data offsets");
  }

  const std::string& where_;
  place place_ = place::start;
  std::string member_;
  std::string field_;
  unsigned fields_ = 0;
  std::unordered_set<std::string> names_;
  std::unordered_set<std::string> texts_;
};

std::uint64_t header_size_of(std::span<const std::byte> file, const std::string& where) {
  if (file.size() < length_size) throw format_error(where, 0, "the file is too short for safetensors");
  const auto size = little_endian_at<std::uint64_t>(file, 0);
  if (size > longest_header)
    throw format_error(where, 0,
                       fmt::format("a header of {} bytes is impossible, {} are allowed; this may not be safetensors",
                                   size, longest_header));
  if (size > file.size() - length_size)
    throw format_error(where, 0, fmt::format("the file ends inside its header of {} bytes; it is truncated", size));
  return size;
}

void parse_header(std::span<const std::byte> file, header_handler& into, const std::string& where) {
  const auto text = as_text(file.subspan(length_size));
  if (!text.starts_with('{')) throw format_error(where, length_size, "the header is not a JSON object");
  // The parser takes a zero byte for the end of its input.
  if (const auto zero = text.find('\0'); zero != std::string_view::npos)
    throw format_error(where, length_size + zero, "the header holds a zero byte");
  json::sax_parse(text, &into);
}

bool is_empty(const std::vector<std::int64_t>& sizes) { return std::ranges::find(sizes, 0) != sizes.end(); }

// Bytes of a contiguous tensor; nothing when they are beyond 63 bits, or for an empty tensor when its strides are.
std::optional<std::uint64_t> dense_size(scalar_type dtype, const std::vector<std::int64_t>& sizes) {
  std::int64_t size = element_size(dtype);
  for (const auto n : sizes)
    if (__builtin_mul_overflow(size, std::max<std::int64_t>(n, 1), &size)) return std::nullopt;
  return is_empty(sizes) ? 0 : static_cast<std::uint64_t>(size);
}

// Sizes and places of all tensors, which must cover the data exactly.
void check_offsets(std::vector<entry>& entries, std::uint64_t data_size, std::uint64_t data_offset,
                   const std::string& where) {
  std::ranges::stable_sort(entries, {}, &entry::offsets);
  std::uint64_t end = 0;
  for (const auto& tensor : entries) {
    const auto fail = [&](const std::string& problem) {
      throw format_error(where, data_offset + std::min(end, data_size),
                         fmt::format("tensor '{}' {}", shown(tensor.name), problem));
    };
    const auto first = tensor.offsets[0];
    const auto last = tensor.offsets[1];
    if (first > last) fail(fmt::format("ends at {} before it begins at {}", last, first));
    if (first < end) fail(fmt::format("begins at {} inside another one, which ends at {}", first, end));
    if (first > end) fail(fmt::format("leaves a gap of {} bytes before it", first - end));
    if (last > data_size)
      fail(fmt::format("ends at {}, but there are {} bytes; the file is truncated", last, data_size));
    const auto size = dense_size(*tensor.dtype, *tensor.shape);
    if (!size) fail("has a shape that overflows 64 bits");
    if (*size != last - first) fail(fmt::format("has {} bytes, its shape and dtype need {}", last - first, *size));
    end = last;
  }
  if (end != data_size)
    throw format_error(where, data_offset + end,
                       fmt::format("{} bytes at the end belong to no tensor", data_size - end));
}

tensor_descriptor contiguous(scalar_type dtype, std::string key, std::vector<std::int64_t> sizes) {
  tensor_descriptor result;
  result.dtype = dtype;
  result.storage_key = std::move(key);
  result.strides.resize(sizes.size());
  std::int64_t stride = 1;
  for (std::size_t i = sizes.size(); i-- > 0;) {
    result.strides[i] = stride;
    stride *= std::max<std::int64_t>(sizes[i], 1);
  }
  result.storage_numel = is_empty(sizes) ? 0 : stride;
  result.sizes = std::move(sizes);
  return result;
}

// ---- what a flat table of tensors cannot say, as JSON
//
// None, booleans, integers, finite floating-point numbers, texts and lists are themselves; the rest are objects with
// one telling key: {"float": bits}, {"bytes": hexadecimal}, {"tuple": [...]}, {"dict": [[key, value], ...]}, {"tensor":
// name}.

constexpr std::int64_t state_version = 1;
// What is read may not take much more memory than what `decode_pickle` accepts.
constexpr std::size_t most_values = pickle_limits().nodes;
// A dict takes three levels of JSON.
constexpr int deepest_json = 3 * static_cast<int>(max_tree_depth) + 3;

std::string hexadecimal(std::span<const std::byte> bytes) {
  static constexpr std::string_view digits = "0123456789abcdef";
  std::string text;
  text.reserve(2 * bytes.size());
  for (const auto byte : bytes) {
    text += digits[std::to_integer<unsigned>(byte) >> 4];
    text += digits[std::to_integer<unsigned>(byte) & 15];
  }
  return text;
}

std::string quoted(std::string_view text, const std::string& path) {
  try {
    return json(text).dump();
  } catch (const json::exception&) {
    throw state_error(path, "holds text that is not UTF-8, which JSON cannot hold; bytes are the type for that");
  }
}

// Writes the JSON of a tree, and shows every tensor with its name to a function.
class state_writer {
 public:
  using visitor = std::function<void(const std::string& name, const tensor_descriptor& tensor)>;

  explicit state_writer(const visitor& found) : found_(found) {}

  std::string write(const tree& state) && {
    out_ = fmt::format(R"({{"format_version":{},"state":)", state_version);
    visit(state);
    return std::move(out_ += '}');
  }

 private:
  void visit(const tree& node) {
    if (++values_ > most_values) throw state_error(path_, fmt::format("there are more than {} values", most_values));
    if (depth_ > max_tree_depth)
      throw state_error(path_, fmt::format("is nested deeper than {} levels", max_tree_depth));
    std::visit([this](const auto& content) { put(content); }, node.data());
  }

  void put(std::monostate) { out_ += "null"; }
  void put(bool flag) { out_ += flag ? "true" : "false"; }
  void put(std::int64_t number) { out_ += std::to_string(number); }
  void put(double number) {
    if (std::isfinite(number))
      out_ += json(number).dump();
    else
      out_ += fmt::format(R"({{"float":"{:016x}"}})", std::bit_cast<std::uint64_t>(number));
  }
  void put(const std::string& text) { out_ += quoted(text, path_); }
  void put(const state::bytes& bytes) { out_ += fmt::format(R"({{"bytes":"{}"}})", hexadecimal(bytes.data)); }
  void put(const tensor_descriptor& tensor) {
    const std::string name = path_.empty() ? "tensor" : path_;
    out_ += fmt::format(R"({{"tensor":{})", quoted(name, path_));
    if (tensor.requires_grad) out_ += R"(,"requires_grad":true)";
    if (tensor.parameter) out_ += R"(,"parameter":true)";
    out_ += '}';
    found_(name, tensor);
  }
  void put(const tree::list& items) {
    out_ += '[';
    for (std::size_t i = 0; i < items.size(); ++i) {
      if (i != 0) out_ += ',';
      below(std::to_string(i), items[i]);
    }
    out_ += ']';
  }
  void put(const tree::tuple& items) {
    out_ += R"({"tuple":)";
    put(items.items);
    out_ += '}';
  }
  void put(const tree::dict& items) {
    out_ += R"({"dict":[)";
    bool first = true;
    for (const auto& [key, value] : items) {
      if (!std::exchange(first, false)) out_ += ',';
      out_ += '[' + (key.is_integer() ? std::to_string(key.integer()) : quoted(key.text(), path_)) + ',';
      below(key.str(), value);
      out_ += ']';
    }
    out_ += "]}";
  }
  void below(const std::string& key, const tree& value) {
    const std::size_t length = path_.size();
    if (length != 0) path_ += '.';
    path_ += key;
    ++depth_;
    visit(value);
    --depth_;
    path_.resize(length);
  }

  const visitor& found_;
  std::string out_;
  std::string path_;
  std::size_t depth_ = 0;
  std::size_t values_ = 0;
};

// Inverse of state_writer.
class state_reader {
 public:
  state_reader(const tree::dict& tensors, const std::string& where) : tensors_(tensors), where_(where) {}

  tree read(const std::string& text) {
    const json document = parse(text);
    if (!document.is_object() || document.size() != 2 || !document.contains("state")) fail("is not as Rondo writes it");
    const auto version = document.find("format_version");
    if (version == document.end() || !version->is_number_integer() || *version < 1) fail("has no format version");
    if (*version > state_version)
      fail(fmt::format("has format version {}, this Rondo reads up to {}; use a newer Rondo", version->dump(),
                       state_version));
    tree result = convert(document["state"]);
    if (used_.size() != tensors_.size())
      fail(fmt::format("names {} tensors, but the file has {}; another program has changed the file", used_.size(),
                       tensors_.size()));
    return result;
  }

 private:
  [[noreturn]] void fail(const std::string& problem) const {
    throw format_error(where_, length_size, fmt::format("the metadata '{}' {}", safetensors_state_key, problem));
  }

  json parse(const std::string& text) const {
    const json::parser_callback_t watch = [&](int depth, json::parse_event_t, json&) {
      if (depth > deepest_json) fail(fmt::format("is nested deeper than {} levels", max_tree_depth));
      return true;
    };
    try {
      return json::parse(text, watch);
    } catch (const json::exception& problem) {
      fail(fmt::format("is not JSON: {}", problem.what()));
    }
  }

  tree convert(const json& node) {
    if (++values_ > most_values) fail(fmt::format("holds more than {} values", most_values));
    if (node.is_null()) return {};
    if (node.is_boolean()) return node.get<bool>();
    if (node.is_number_integer()) return integer(node);
    if (node.is_number_float()) return node.get<double>();
    if (node.is_string()) return node.get_ref<const std::string&>();
    if (node.is_array()) return items(node);
    return tagged(node);
  }
  tree tagged(const json& node) {
    if (const auto at = node.find("tensor"); at != node.end()) return tensor(node, *at);
    if (node.size() != 1) fail("is not as Rondo writes it");
    const auto& tag = node.begin().key();
    const auto& content = node.front();
    if (tag == "tuple" && content.is_array()) return tree::tuple{items(content)};
    if (tag == "dict" && content.is_array()) return dict(content);
    if (tag == "float" && content.is_string())
      return std::bit_cast<double>(number(content.get_ref<const std::string&>(), 16));
    if (tag == "bytes" && content.is_string()) return bytes(content.get_ref<const std::string&>());
    fail(fmt::format("holds an unknown '{}'", shown(tag)));
  }
  tree tensor(const json& node, const json& name) {
    if (!name.is_string()) fail("is not as Rondo writes it");
    const auto& text = name.get_ref<const std::string&>();
    const auto* found = tensors_.find(text);
    if (found == nullptr || !used_.insert(text).second)
      fail(fmt::format("names the tensor '{}', which the file has {}; another program has changed the file",
                       shown(text), found == nullptr ? "not" : "only once"));
    auto result = found->as<tensor_descriptor>();
    for (const auto& [key, flag] : node.items()) {
      if (key == "tensor") continue;
      if (!flag.is_boolean() || (key != "requires_grad" && key != "parameter")) fail("is not as Rondo writes it");
      (key == "parameter" ? result.parameter : result.requires_grad) = flag.get<bool>();
    }
    return result;
  }
  tree::list items(const json& node) {
    tree::list result;
    result.reserve(node.size());
    for (const auto& item : node) result.push_back(convert(item));
    return result;
  }
  tree dict(const json& node) {
    tree::dict result;
    result.reserve(node.size());
    for (const auto& item : node) {
      if (!item.is_array() || item.size() != 2 || !(item[0].is_string() || item[0].is_number_integer()))
        fail("holds a dict that is not one");
      const state::key key = item[0].is_string() ? state::key(item[0].get_ref<const std::string&>()) : integer(item[0]);
      if (result.contains(key)) fail(fmt::format("has the key '{}' twice", shown(key.str())));
      result.insert_or_assign(key, convert(item[1]));
    }
    return result;
  }
  std::int64_t integer(const json& node) const {
    if (node.is_number_unsigned() &&
        node.get<std::uint64_t>() > std::uint64_t{std::numeric_limits<std::int64_t>::max()})
      fail("holds an integer of more than 64 bits");
    return node.get<std::int64_t>();
  }
  std::uint64_t number(std::string_view text, std::size_t digits) const {
    std::uint64_t result = 0;
    const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), result, 16);
    if (text.size() != digits || problem != std::errc() || end != text.data() + text.size())
      fail("holds bytes that are not hexadecimal");
    return result;
  }
  tree bytes(std::string_view text) const {
    if (text.size() % 2 != 0) fail("holds bytes that are not hexadecimal");
    state::bytes result;
    result.data.reserve(text.size() / 2);
    for (std::size_t i = 0; i < text.size(); i += 2)
      result.data.push_back(static_cast<std::byte>(number(text.substr(i, 2), 2)));
    return result;
  }

  const tree::dict& tensors_;
  const std::string& where_;
  std::unordered_set<std::string> used_;
  std::size_t values_ = 0;
};

// ---- a strided tensor, written element after element

struct runs {
  std::size_t outer;   ///< how many leading dimensions have to be walked through
  std::int64_t numel;  ///< consecutive elements below each of them
};

runs runs_of(const tensor_descriptor& tensor) {
  runs result{tensor.sizes.size(), 1};
  while (result.outer > 0) {
    const auto d = result.outer - 1;
    if (tensor.sizes[d] != 1 && tensor.strides[d] != result.numel) break;
    result.numel *= tensor.sizes[d];
    --result.outer;
  }
  return result;
}

void write_tensor(joining_sink& out, const tensor_descriptor& tensor, std::span<const std::byte> storage) {
  if (is_empty(tensor.sizes)) return;
  const auto width = element_size(tensor.dtype);
  const auto run = runs_of(tensor);
  const auto run_size = static_cast<std::size_t>(run.numel * width);
  std::vector<std::int64_t> index(run.outer, 0);
  auto element = tensor.storage_offset;
  for (;;) {
    out.write(storage.subspan(static_cast<std::size_t>(element * width), run_size));
    std::size_t d = run.outer;
    while (d > 0 && ++index[d - 1] == tensor.sizes[d - 1]) {
      --d;
      element -= (tensor.sizes[d] - 1) * tensor.strides[d];
      index[d] = 0;
    }
    if (d == 0) return;
    element += tensor.strides[d - 1];
  }
}

std::string_view type_name_of(const tensor_descriptor& tensor, const std::string& path) {
  const auto at = std::ranges::find(type_names, tensor.dtype, &type_name::type);
  if (at == type_names.end())
    throw state_error(path, fmt::format("safetensors knows no dtype {}; convert the tensor, or store its real and "
                                        "imaginary parts (torch::view_as_real)",
                                        name(tensor.dtype)));
  return at->name;
}

void check_tensor(const tensor_descriptor& tensor, std::span<const std::byte> storage, const std::string& path) {
  if (const auto problem = problem_of(tensor)) throw state_error(path, *problem);
  if (tensor.sizes.size() > most_dimensions)
    throw state_error(path, fmt::format("has more than {} dimensions", most_dimensions));
  if (!dense_size(tensor.dtype, tensor.sizes)) throw state_error(path, "has a shape that overflows 64 bits");
  const auto needed = static_cast<std::uint64_t>(tensor.storage_numel * element_size(tensor.dtype));
  if (storage.size() < needed)
    throw state_error(
        path, fmt::format("its storage '{}' has {} bytes instead of {}", tensor.storage_key, storage.size(), needed));
}

safetensors_encoder::storage_source by_key(const std::vector<storage>& storages) {
  std::unordered_map<std::string, std::span<const std::byte>> known;
  for (const auto& item : storages) known.emplace(item.key, item.data);
  return [known = std::move(known)](const tensor_descriptor& tensor) {
    const auto at = known.find(tensor.storage_key);
    if (at == known.end())
      throw state_error("", fmt::format("the storage '{}' is not among those given", tensor.storage_key));
    return at->second;
  };
}

}  // namespace

safetensors_file safetensors_file::open(const std::filesystem::path& path) {
  auto owner = std::make_shared<source>();
  const auto bytes = owner->file.emplace(path).bytes();
  return {std::move(owner), bytes, path.string()};
}

safetensors_file safetensors_file::from_bytes(std::vector<std::byte> file, std::string where) {
  auto owner = std::make_shared<source>();
  owner->memory = std::move(file);
  const std::span<const std::byte> bytes(owner->memory);
  return {std::move(owner), bytes, std::move(where)};
}

safetensors_file safetensors_file::from_span(std::span<const std::byte> file, std::string where) {
  return {std::make_shared<source>(), file, std::move(where)};
}

safetensors_file::safetensors_file(std::shared_ptr<const source> owner, std::span<const std::byte> bytes,
                                   std::string where)
    : owner_(std::move(owner)), bytes_(bytes), where_(std::move(where)) {
  const auto guard = [this](std::uint64_t end) {
    if (owner_->file) owner_->file->require_readable(0, end);
  };
  guard(std::min(bytes.size(), length_size));
  const auto data_offset = static_cast<std::size_t>(length_size + header_size_of(bytes, where_));
  guard(data_offset);
  header_handler header(where_);
  parse_header(bytes.first(data_offset), header, where_);
  const auto data = bytes.subspan(data_offset);
  check_offsets(header.entries, data.size(), data_offset, where_);

  tensors_.reserve(header.entries.size());
  data_.reserve(header.entries.size());
  for (auto& tensor : header.entries) {
    const auto first = static_cast<std::size_t>(tensor.offsets[0]);
    auto described = contiguous(*tensor.dtype, std::to_string(data_.size()), std::move(*tensor.shape));
    data_.push_back(data.subspan(first, static_cast<std::size_t>(tensor.offsets[1]) - first));
    tensors_.insert_or_assign(std::move(tensor.name), std::move(described));
  }
  metadata_ = std::move(header.metadata);
  const auto saved = metadata_.find(std::string(safetensors_state_key));
  state_ = saved == metadata_.end() ? tree(tensors_) : state_reader(tensors_, where_).read(saved->second);
}

std::span<const std::byte> safetensors_file::storage(const tensor_descriptor& tensor) const {
  std::size_t number = 0;
  const auto& key = tensor.storage_key;
  const auto [end, problem] = std::from_chars(key.data(), key.data() + key.size(), number);
  const bool is_known = problem == std::errc() && end == key.data() + key.size() && number < data_.size();
  const auto fault = problem_of(tensor);
  if (!is_known || fault ||
      data_[number].size() != static_cast<std::uint64_t>(tensor.storage_numel * element_size(tensor.dtype)))
    throw format_error(where_, 0, fmt::format("storage '{}' is not of this file, or of another size", key));
  return data_[number];
}

std::vector<checkpoint::storage> safetensors_file::storages() const {
  std::vector<checkpoint::storage> all;
  all.reserve(data_.size());
  for (const auto& bytes : data_) all.push_back({std::to_string(all.size()), bytes});
  return all;
}

void safetensors_file::read(std::uint64_t offset, std::span<std::byte> out) const {
  if (owner_->file) return owner_->file->read(offset, out);
  if (offset > bytes_.size() || out.size() > bytes_.size() - offset)
    throw format_error(where_, offset, "the file ends before what is to be read");
  std::ranges::copy(bytes_.subspan(static_cast<std::size_t>(offset), out.size()), out.begin());
}

void safetensors_file::require_readable() const {
  if (owner_->file) owner_->file->require_readable(0, bytes_.size());
}

safetensors_encoder::safetensors_encoder(const tree& state, const storage_source& storages,
                                         safetensors_metadata metadata) {
  const std::string key(safetensors_state_key);
  if (metadata.contains(key)) throw option_error("metadata", fmt::format("'{}'", key), "any other name");
  std::unordered_set<std::string> names;
  const state_writer::visitor add = [&](const std::string& name, const tensor_descriptor& tensor) {
    if (name == metadata_name) throw state_error(name, "safetensors keeps this name for itself; choose another one");
    if (!names.insert(name).second)
      throw state_error(name, "two tensors have this name once their keys are joined by dots; rename one");
    parts_.push_back({name, tensor, storages(tensor)});
    check_tensor(tensor, parts_.back().storage, name);
    (void)type_name_of(tensor, name);
  };
  metadata[key] = state_writer(add).write(state);
  metadata.emplace("format", "pt");
  std::ranges::stable_sort(parts_, std::greater<>(), [](const part& p) { return element_size(p.tensor.dtype); });
  encode_header(metadata);
}

safetensors_encoder::safetensors_encoder(const tree& state, const std::vector<storage>& storages,
                                         safetensors_metadata metadata)
    : safetensors_encoder(state, by_key(storages), std::move(metadata)) {}

void safetensors_encoder::encode_header(const safetensors_metadata& metadata) {
  std::string text = fmt::format(R"({{"{}":{{)", metadata_name);
  for (const auto& [key, value] : metadata) {
    if (text.back() != '{') text += ',';
    text += quoted(key, key) + ':' + quoted(value, key);
  }
  text += '}';
  std::uint64_t offset = 0;
  for (const auto& [name, tensor, storage] : parts_) {
    std::uint64_t end = 0;
    if (__builtin_add_overflow(offset, dense_size(tensor.dtype, tensor.sizes).value(), &end) || end > longest_data)
      throw state_error(name, "the tensors up to this one have more bytes than a file can hold");
    text += fmt::format(R"(,{}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", quoted(name, name),
                        type_name_of(tensor, name), fmt::join(tensor.sizes, ","), offset, end);
    offset = end;
  }
  text += '}';
  text.resize((text.size() + 7) / 8 * 8, ' ');
  if (text.size() > longest_header)
    throw state_error("", fmt::format("the header would have {} bytes, {} are allowed; save less in one file",
                                      text.size(), longest_header));
  append_little_endian(header_, std::uint64_t{text.size()});
  append_text(header_, text);
  size_ = header_.size() + offset;
}

void safetensors_encoder::write(const byte_sink& sink) const {
  joining_sink out(sink);
  out.write(header_);
  for (const auto& part : parts_) write_tensor(out, part.tensor, part.storage);
  out.flush();
}

}  // namespace rondo::checkpoint

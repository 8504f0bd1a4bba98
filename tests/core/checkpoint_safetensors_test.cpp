#include "rondo/checkpoint/safetensors.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <limits>
#include <map>
#include <random>

#include "rondo/checkpoint/little_endian.hpp"
#include "rondo/checkpoint/pickle.hpp"
#include "rondo/error.hpp"
#include "support/catch.hpp"
#include "support/checkpoint.hpp"
#include "support/messages.hpp"
#include "support/processor_time.hpp"
#include "support/python.hpp"
#include "support/temporary_directory.hpp"

namespace checkpoint_safetensors_test {

using namespace rondo;
using namespace rondo::checkpoint;
using namespace rondo::testing;

namespace {

byte_vector file_of(std::string_view header, std::size_t data_size = 0) {
  byte_vector file;
  append_little_endian(file, std::uint64_t{header.size()});
  append_text(file, header);
  file.resize(file.size() + data_size);
  return file;
}

safetensors_file parse(const byte_vector& file) { return safetensors_file::from_bytes(file, "memory"); }

// What is wrong with a file of this header and so many bytes of data.
std::string refusal(std::string_view header, std::size_t data_size = 0) {
  return refusal_of<format_error>([&] { (void)parse(file_of(header, data_size)); });
}

byte_vector write(const safetensors_encoder& file) {
  byte_vector out;
  file.write([&](std::span<const std::byte> bytes) { out.insert(out.end(), bytes.begin(), bytes.end()); });
  REQUIRE(out.size() == file.size());
  return out;
}

// The elements of a tensor in the order of its indices, by the definition of strides.
byte_vector elements(const tensor_descriptor& tensor, std::span<const std::byte> storage) {
  byte_vector result;
  const auto width = static_cast<std::size_t>(element_size(tensor.dtype));
  std::int64_t numel = 1;
  for (const auto n : tensor.sizes) numel *= n;
  for (std::int64_t i = 0; i < numel; ++i) {
    std::int64_t rest = i;
    std::int64_t at = tensor.storage_offset;
    for (std::size_t d = tensor.sizes.size(); d-- > 0;) {
      at += rest % tensor.sizes[d] * tensor.strides[d];
      rest /= tensor.sizes[d];
    }
    const auto element = storage.subspan(static_cast<std::size_t>(at) * width, width);
    result.insert(result.end(), element.begin(), element.end());
  }
  return result;
}

// Whether two trees are equal in everything but where their tensors' bytes lie, and whether those bytes are equal.
template <class Left, class Right>
bool same(const tree& a, const tree& b, const Left& bytes_of_a, const Right& bytes_of_b) {
  const auto all = [&](const tree::list& x, const tree::list& y) {
    return std::ranges::equal(x, y, [&](const tree& p, const tree& q) { return same(p, q, bytes_of_a, bytes_of_b); });
  };
  if (a.data().index() != b.data().index()) return false;
  if (const auto* x = a.get_if<double>())
    return std::bit_cast<std::uint64_t>(*x) == std::bit_cast<std::uint64_t>(b.as<double>());
  if (const auto* x = a.get_if<tensor_descriptor>()) {
    const auto& y = b.as<tensor_descriptor>();
    return x->dtype == y.dtype && x->sizes == y.sizes && x->requires_grad == y.requires_grad &&
           x->parameter == y.parameter && elements(*x, bytes_of_a(*x)) == elements(y, bytes_of_b(y));
  }
  if (const auto* x = a.get_if<tree::list>()) return all(*x, b.as<tree::list>());
  if (const auto* x = a.get_if<tree::tuple>()) return all(x->items, b.as<tree::tuple>().items);
  if (const auto* x = a.get_if<tree::dict>()) {
    const auto& y = b.as<tree::dict>();
    return std::ranges::equal(*x, y, [&](const auto& p, const auto& q) {
      return p.first == q.first && same(p.second, q.second, bytes_of_a, bytes_of_b);
    });
  }
  return a == b;
}

bool comes_back(const tree& state, const std::vector<storage>& storages) {
  const auto file = parse(write(safetensors_encoder(state, storages)));
  const auto given = [&](const tensor_descriptor& t) {
    return std::ranges::find(storages, t.storage_key, &storage::key)->data;
  };
  return same(state, file.state(), given, [&](const tensor_descriptor& t) { return file.storage(t); });
}

constexpr scalar_type writable[] = {scalar_type::uint8,   scalar_type::int8,    scalar_type::int16,
                                    scalar_type::int32,   scalar_type::int64,   scalar_type::float16,
                                    scalar_type::float32, scalar_type::float64, scalar_type::complex64,
                                    scalar_type::boolean, scalar_type::bfloat16};

tensor_descriptor float_view(std::vector<std::int64_t> sizes, std::vector<std::int64_t> strides,
                             std::int64_t offset = 0) {
  return {scalar_type::float32, "0", 24, offset, std::move(sizes), std::move(strides), false, false};
}

}  // namespace

TEST_CASE("a file by the letter of the format is read", "[checkpoint][safetensors]") {
  auto bytes = file_of(R"({"__metadata__":{"format":"pt","made by":"hand"},)"
                       R"("second.b":{"dtype":"I16","shape":[],"data_offsets":[24,26]},)"
                       R"("a":{"data_offsets":[0,24],"shape":[2,3],"dtype":"F32"},)"
                       R"("none":{"dtype":"U8","shape":[0,4],"data_offsets":[24,24]}} )",
                       26);
  for (std::size_t i = 0; i < 26; ++i) bytes[bytes.size() - 26 + i] = static_cast<std::byte>(i);
  const auto file = parse(bytes);
  CHECK(file.where() == "memory");
  CHECK(file.metadata() == safetensors_metadata{{"format", "pt"}, {"made by", "hand"}});
  REQUIRE(file.tensors().size() == 3);
  CHECK(tree(file.tensors()) == file.state());
  std::vector<std::string> names;
  for (const auto& [name, unused] : file.tensors()) names.push_back(name.text());
  CHECK(names == std::vector<std::string>{"a", "none", "second.b"});

  const auto& a = file.state().get<tensor_descriptor>("a");
  CHECK(a.sizes == std::vector<std::int64_t>{2, 3});
  CHECK(a.strides == std::vector<std::int64_t>{3, 1});
  CHECK(file.storage(a).size() == 24);
  CHECK(file.storage(a)[23] == std::byte{23});
  const auto& scalar = file.state().get<tensor_descriptor>("second.b");
  CHECK(scalar.sizes.empty());
  CHECK(file.storage(scalar)[1] == std::byte{25});
  CHECK(file.storage(file.state().get<tensor_descriptor>("none")).empty());
  CHECK(file.storages().size() == 3);

  tensor_descriptor foreign = a;
  foreign.storage_key = "7";
  CHECK_THROWS_AS(file.storage(foreign), format_error);
  foreign.storage_key = "1x";
  CHECK_THROWS_AS(file.storage(foreign), format_error);
  foreign = a;
  foreign.storage_numel = 7;
  CHECK_THROWS_AS(file.storage(foreign), format_error);
}

TEST_CASE("a file without tensors is sound", "[checkpoint][safetensors]") {
  CHECK(parse(file_of("{}")).state() == tree(tree::dict()));
  CHECK(parse(file_of(R"({"__metadata__":{}})")).tensors().empty());
  CHECK(comes_back(tree::dict(), {}));
}

TEST_CASE("every dtype of the format that PyTorch stores is read and written", "[checkpoint][safetensors]") {
  const std::map<std::string, scalar_type> names = {
      {"BOOL", scalar_type::boolean}, {"U8", scalar_type::uint8},      {"I8", scalar_type::int8},
      {"I16", scalar_type::int16},    {"I32", scalar_type::int32},     {"I64", scalar_type::int64},
      {"F16", scalar_type::float16},  {"BF16", scalar_type::bfloat16}, {"F32", scalar_type::float32},
      {"F64", scalar_type::float64},  {"C64", scalar_type::complex64}};
  for (const auto& [text, type] : names) {
    CAPTURE(text);
    const auto size = static_cast<std::size_t>(element_size(type));
    const auto header = fmt::format(R"({{"t":{{"dtype":"{}","shape":[1],"data_offsets":[0,{}]}}}})", text, size);
    CHECK(parse(file_of(header, size)).state().get<tensor_descriptor>("t").dtype == type);
    const auto data = noise(5 * size);
    CHECK(comes_back(tree::dict{{"t", vector_of(type, "0", 5)}}, {{"0", data}}));
  }
  for (const char* text : {"F8_E4M3", "F8_E5M2", "U16", "U32", "U64", "C128", "f32", ""}) {
    CAPTURE(text);
    const auto message = refusal(fmt::format(R"({{"odd":{{"dtype":"{}","shape":[0],"data_offsets":[0,0]}}}})", text));
    CHECK(contains(message, fmt::format("tensor 'odd' has the dtype '{}'", text)));
    CHECK(contains(message, "convert the tensor in Python"));
  }
}

TEST_CASE("hostile headers are refused", "[checkpoint][safetensors]") {
  const auto tensor = [](std::string_view shape, std::string_view offsets, std::string_view dtype = "F32") {
    return fmt::format(R"({{"dtype":"{}","shape":[{}],"data_offsets":[{}]}})", dtype, shape, offsets);
  };
  const auto one = [&](std::string_view shape, std::string_view offsets) {
    return fmt::format(R"({{"t":{}}})", tensor(shape, offsets));
  };
  SECTION("lengths") {
    const auto of_length = [](std::uint64_t length, std::size_t size) {
      byte_vector file;
      append_little_endian(file, length);
      file.resize(size, std::byte{' '});
      return refusal_of<format_error>([&] { (void)parse(file); });
    };
    CHECK(contains(of_length(std::uint64_t{1} << 63, 100), "is impossible"));
    CHECK(contains(of_length(~std::uint64_t{0}, 100), "is impossible"));
    CHECK(contains(of_length(100'000'001, 100), "is impossible"));
    CHECK(contains(of_length(100'000'000, 100), "truncated"));
    CHECK(contains(of_length(93, 100), "truncated"));
    CHECK(contains(of_length(92, 100), "not a JSON object"));
    CHECK(contains(of_length(0, 8), "not a JSON object"));
    CHECK(contains(refusal_of<format_error>([] { (void)parse(byte_vector(7)); }), "too short"));
    CHECK(contains(refusal_of<format_error>([] { (void)parse({}); }), "too short"));
  }
  SECTION("what is not JSON, or not the right JSON") {
    for (const char* header : {"",
                               "[]",
                               "null",
                               "\"{}\"",
                               "{",
                               "{}x",
                               "{} {}",
                               " {}",
                               "{\"a\"}",
                               "{\"a\":}",
                               "{'a':1}",
                               "{\"a\":1}",
                               "{\"a\":[]}",
                               "{\"a\":null}",
                               "{\"a\":true}",
                               "{\"a\":\"F32\"}",
                               "{\"a\":{}}",
                               "{\"a\":{\"dtype\":1}}",
                               "{\"a\":{\"shape\":1}}",
                               "{\"a\":{\"shape\":[[]]}}",
                               "{\"a\":{\"shape\":{}}}",
                               "{\"a\":{\"x\":1}}",
                               "{\"a\":{\"dtype\":\"F32\"}}",
                               "{\"a\":{\"dtype\":\"F32\",\"shape\":[]}}",
                               "{\"__metadata__\":[]}",
                               "{\"__metadata__\":\"x\"}",
                               "{\"__metadata__\":{\"a\":1}}",
                               "{\"__metadata__\":{\"a\":{}}}",
                               "{\"__metadata__\":{\"a\":[]}}",
                               "{\"__metadata__\":{\"a\":null}}",
                               "\xef\xbb\xbf{}",
                               "{\"\xff\":{}}",
                               "{\"\xed\xa0\x80\":{}}",
                               "{\"\xc0\xaf\":{}}"}) {
      CAPTURE(header);
      CHECK_FALSE(refusal(header).empty());
    }
    CHECK(contains(refusal(std::string_view("{}\0\0", 4)), "zero byte"));
    CHECK(contains(refusal(std::string(1'000'000, '[')), "not a JSON object"));
    std::string deep = "{\"a\":";
    for (int i = 0; i < 100'000; ++i) deep += "{\"a\":";
    CHECK_FALSE(refusal(deep).empty());
    deep = "{\"a\":{\"shape\":" + std::string(1'000'000, '[');
    CHECK_FALSE(refusal(deep).empty());
  }
  SECTION("numbers") {
    for (const char* shape : {"-1", "1.0", "1e2", "18446744073709551616", "9223372036854775808", "\"1\"", "null"}) {
      CAPTURE(shape);
      CHECK_FALSE(refusal(one(shape, "0,4"), 4).empty());
    }
    for (const char* offsets : {"", "0", "0,4,4", "-0.0,4", "-1,4", "0,18446744073709551616", "0,4.0"}) {
      CAPTURE(offsets);
      CHECK_FALSE(refusal(one("1", offsets), 4).empty());
    }
    CHECK(refusal(one("1", "0,4"), 4).empty());
  }
  SECTION("names") {
    const auto twice = fmt::format(R"({{"t":{},"t":{}}})", tensor("1", "0,4"), tensor("1", "4,8"));
    CHECK(contains(refusal(twice, 8), "name 't' twice"));
    const auto escaped = fmt::format(R"({{"t":{},"\u0074":{}}})", tensor("1", "0,4"), tensor("1", "4,8"));
    CHECK(contains(refusal(escaped, 8), "name 't' twice"));
    CHECK(contains(refusal(R"({"__metadata__":{},"__metadata__":{}})"), "'__metadata__' twice"));
    CHECK(contains(refusal(R"({"__metadata__":{"a":"","a":""}})"), "'a' twice"));
    CHECK(contains(refusal(R"({"t":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4), "twice"));
    CHECK(contains(refusal(R"({"t":{"shape":[1],"shape":[],"dtype":"F32","data_offsets":[0,4]}})", 4), "twice"));
    CHECK(contains(refusal(R"({"t":{"shape":[1],"stride":[1],"dtype":"F32","data_offsets":[0,4]}})", 4), "stride"));
    const std::string long_name(10'000, 'n');
    CHECK(refusal(fmt::format(R"({{"{}":{}}})", long_name, tensor("2", "0,4")), 4).size() < 1000);
  }
  SECTION("places") {
    const auto two = [&](std::string_view a, std::string_view b) {
      return fmt::format(R"({{"a":{},"b":{}}})", tensor("1", a), tensor("1", b));
    };
    CHECK(refusal(two("4,8", "0,4"), 8).empty());
    CHECK(contains(refusal(two("0,4", "0,4"), 8), "inside another one"));
    CHECK(contains(refusal(two("0,4", "3,7"), 8), "inside another one"));
    CHECK(contains(refusal(two("0,4", "5,9"), 9), "gap of 1 bytes"));
    CHECK(contains(refusal(two("1,5", "5,9"), 9), "gap of 1 bytes"));
    CHECK(contains(refusal(two("0,4", "4,8"), 9), "1 bytes at the end belong to no tensor"));
    CHECK(contains(refusal(two("0,4", "4,8"), 7), "truncated"));
    CHECK(contains(refusal(two("0,4", "8,4"), 8), "before it begins"));
    CHECK(contains(refusal("{}", 1), "belong to no tensor"));
    CHECK(contains(refusal(one("1", "0,18446744073709551615"), 4), "truncated"));
    CHECK(contains(refusal(one("1", "18446744073709551615,3"), 4), "before it begins"));
  }
  SECTION("shapes") {
    CHECK(contains(refusal(one("2", "0,4"), 4), "need 8"));
    CHECK(contains(refusal(one("", "0,8"), 8), "need 4"));
    CHECK(contains(refusal(one("0", "0,4"), 4), "need 0"));
    CHECK(contains(refusal(one("4611686018427387904,4", "0,0")), "overflows"));
    CHECK(contains(refusal(one("4294967296,4294967296", "0,0")), "overflows"));
    CHECK(contains(refusal(one("4611686018427387905", "0,4"), 4), "overflows"));
    CHECK(contains(refusal(one("0,4611686018427387904,4611686018427387904", "0,0")), "overflows"));
    std::string many = "1";
    for (int i = 1; i < 64; ++i) many += ",1";
    CHECK(refusal(one(many, "0,4"), 4).empty());
    CHECK(contains(refusal(one(many + ",1", "0,4"), 4), "more than 64 dimensions"));
  }
  SECTION("very many tensors") {
    std::string header = "{";
    for (int i = 0; i < 100'000; ++i) header += fmt::format(R"({}"{}":{})", i == 0 ? "" : ",", i, tensor("0", "0,0"));
    CHECK(parse(file_of(header + "}")).tensors().size() == 100'000);
    CHECK_FALSE(refusal(header).empty());
  }
}

TEST_CASE("a hostile state in the metadata is refused", "[checkpoint][safetensors]") {
  const auto with_state = [](const std::string& state) {
    std::string text;
    for (const char c : state) text += c == '"' || c == '\\' ? std::string{'\\', c} : std::string{c};
    return refusal(
        R"({"__metadata__":{"rondo":")" + text + R"("},"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1);
  };
  const auto versioned = [&](const std::string& state) {
    return with_state(R"({"format_version":1,"state":)" + state + "}");
  };
  CHECK(versioned(R"({"dict":[["x",{"tensor":"t"}]]})").empty());
  CHECK(versioned(R"({"tensor":"t","parameter":true,"requires_grad":false})").empty());
  for (const char* state : {"{\"tensor\":\"u\"}",
                            "[{\"tensor\":\"t\"},{\"tensor\":\"t\"}]",
                            "[]",
                            "{\"tensor\":1}",
                            "{\"tensor\":null}",
                            "[{\"tensor\":\"t\"},{}]",
                            "[{\"tensor\":\"t\"},{\"set\":[]}]",
                            "[{\"tensor\":\"t\"},{\"tuple\":1}]",
                            "[{\"tensor\":\"t\"},{\"dict\":{}}]",
                            "[{\"tensor\":\"t\"},{\"dict\":[1]}]",
                            "[{\"tensor\":\"t\"},{\"dict\":[[1]]}]",
                            "[{\"tensor\":\"t\"},{\"dict\":[[1,2,3]]}]",
                            "[{\"tensor\":\"t\"},{\"dict\":[[1.5,2]]}]",
                            "[{\"tensor\":\"t\"},{\"dict\":[[1,2],[1,3]]}]",
                            "[{\"tensor\":\"t\"},{\"dict\":[[9223372036854775808,2]]}]",
                            "[{\"tensor\":\"t\"},9223372036854775808]",
                            "[{\"tensor\":\"t\"},{\"float\":\"7ff\"}]",
                            "[{\"tensor\":\"t\"},{\"float\":\"7ff000000000000x\"}]",
                            "[{\"tensor\":\"t\"},{\"float\":1}]",
                            "[{\"tensor\":\"t\"},{\"bytes\":\"abc\"}]",
                            "[{\"tensor\":\"t\"},{\"bytes\":\"xy\"}]",
                            "[{\"tensor\":\"t\"},{\"tuple\":[],\"dict\":[]}]",
                            "{\"tensor\":\"t\",\"parameter\":1}",
                            "{\"tensor\":\"t\",\"stride\":true}",
                            ""}) {
    CAPTURE(state);
    CHECK(contains(versioned(state), "metadata 'rondo'"));
  }
  CHECK(contains(with_state("{}"), "metadata 'rondo'"));
  CHECK(contains(with_state("[1]"), "metadata 'rondo'"));
  CHECK(contains(with_state(R"({"format_version":2,"state":{"tensor":"t"}})"), "use a newer Rondo"));
  CHECK(contains(with_state(R"({"format_version":0,"state":{"tensor":"t"}})"), "metadata 'rondo'"));
  CHECK(contains(with_state(R"({"format_version":"1","state":{"tensor":"t"}})"), "metadata 'rondo'"));
  CHECK(contains(versioned(std::string(100'000, '[')), "deeper"));
}

TEST_CASE("a state comes back as it was", "[checkpoint][safetensors]") {
  const auto data = noise(24 * 4);
  const auto other = noise(16);
  using limits = std::numeric_limits<std::int64_t>;
  using doubles = std::numeric_limits<double>;
  auto parameter = vector_of(scalar_type::bfloat16, "1", 8);
  parameter.parameter = true;
  parameter.requires_grad = true;
  state::bytes all;
  for (int i = 0; i < 256; ++i) all.data.push_back(static_cast<std::byte>(i));
  const tree state = tree::dict{
      {"model", tree::dict{{"0.weight", float_view({2, 3}, {3, 1})}, {"0.bias", parameter}}},
      {"optimizer", tree::dict{{0, tree::dict{{"step", 10}, {"exp_avg", float_view({4, 6}, {6, 1})}}}, {-1, nullptr}}},
      {"views", tree::list{float_view({6, 4}, {1, 6}), float_view({3}, {0}, 5), float_view({2, 2, 2}, {12, 1, 3}, 1),
                           float_view({}, {}, 23), float_view({0, 7}, {7, 1}), float_view({1, 24}, {99, 1})}},
      {"scalars", tree::list{nullptr, true, false, 0, -1, limits::max(), limits::min(), 0.1, -0.0, 1e300, 5e-324, 3.0,
                             doubles::infinity(), -doubles::infinity(), doubles::quiet_NaN(),
                             std::bit_cast<double>(std::uint64_t{0xfff8000000000123})}},
      {"text", tree::tuple{{"", "Ünïcödé 漢字 🎉", "quo\"te\\ \n\t\x01 \x7f"}}},
      {"bytes", tree::list{all, state::bytes()}},
      {"empty", tree::list{tree::list(), tree::tuple(), tree::dict()}},
      {"tensor", 1}};
  CHECK(comes_back(state, {{"0", data}, {"1", other}}));
  CHECK(comes_back(float_view({24}, {1}), {{"0", data}}));
  CHECK(comes_back(tree::list{float_view({24}, {1})}, {{"0", data}}));
  CHECK(comes_back(5, {}));

  const safetensors_encoder encoder(state, {{"0", data}, {"1", other}}, {{"note", "kept"}});
  const auto file = parse(write(encoder));
  CHECK(file.metadata().at("note") == "kept");
  CHECK(file.metadata().at("format") == "pt");
  CHECK(file.tensors().contains("model.0.weight"));
  CHECK(file.tensors().contains("optimizer.0.exp_avg"));
  CHECK(file.tensors().contains("views.2"));
  // Aligned to their elements, and the same file every time.
  std::uint64_t offset = 0;
  for (const auto& [name, tensor] : file.tensors()) {
    const auto& t = tensor.as<tensor_descriptor>();
    CHECK(offset % static_cast<std::uint64_t>(element_size(t.dtype)) == 0);
    offset += file.storage(t).size();
  }
  CHECK(write(encoder) == write(encoder));
}

TEST_CASE("random trees come back as they were", "[checkpoint][safetensors]") {
  std::mt19937 random(4);
  const auto below = [&](int n) { return std::uniform_int_distribution<int>(0, n - 1)(random); };
  std::vector<byte_vector> memory;
  std::vector<storage> storages;
  const auto tensor = [&]() -> tree {
    const auto type = writable[below(std::ssize(writable))];
    tensor_descriptor t{type, std::to_string(storages.size()), 1, below(3), {}, {}, below(2) == 0, below(2) == 0};
    std::int64_t last = t.storage_offset;
    for (int d = below(4); d > 0; --d) {
      t.sizes.push_back(below(8) == 0 ? 0 : 1 + below(5));
      t.strides.push_back(below(7));
      last += std::max<std::int64_t>(t.sizes.back() - 1, 0) * t.strides.back();
    }
    t.storage_numel = last + 1 + below(3);
    memory.push_back(
        noise(static_cast<std::size_t>(t.storage_numel * element_size(type)), static_cast<unsigned>(random())));
    storages.push_back({t.storage_key, memory.back()});
    return t;
  };
  const std::function<tree(int)> node = [&](int depth) -> tree {
    switch (below(depth > 4 ? 7 : 10)) {
      case 0:
        return tensor();
      case 1:
        return nullptr;
      case 2:
        return below(2) == 0;
      case 3:
        return static_cast<std::int64_t>(random()) - (std::int64_t{1} << 31);
      case 4:
        return std::bit_cast<double>(std::uint64_t{random()} << 32 | random());
      case 5:
        return std::string(static_cast<std::size_t>(below(5)), static_cast<char>(1 + below(127)));
      case 6:
        return state::bytes{noise(static_cast<std::size_t>(below(9)), static_cast<unsigned>(random()))};
      case 7: {
        tree::dict result;
        for (int i = below(6); i > 0; --i) {
          const auto key = below(2) == 0 ? state::key(below(100)) : state::key("k" + std::to_string(below(100)));
          result.insert_or_assign(key, node(depth + 1));
        }
        return result;
      }
      default: {
        tree::list result;
        for (int i = below(6); i > 0; --i) result.push_back(node(depth + 1));
        return below(2) == 0 ? tree(result) : tree(tree::tuple{result});
      }
    }
  };
  for (int i = 0; i < 1'000; ++i) {
    memory.clear();
    storages.clear();
    memory.reserve(100'000);
    CAPTURE(i);
    const auto state = node(0);
    REQUIRE(comes_back(state, storages));
  }
}

TEST_CASE("tied weights are written for each of their names", "[checkpoint][safetensors]") {
  const auto data = noise(96);
  const auto file = parse(write(
      safetensors_encoder(tree::dict{{"a", float_view({24}, {1})}, {"b", float_view({24}, {1})}}, {{"0", data}})));
  const auto& a = file.state().get<tensor_descriptor>("a");
  const auto& b = file.state().get<tensor_descriptor>("b");
  CHECK(a.storage_key != b.storage_key);
  CHECK(std::ranges::equal(file.storage(a), data));
  CHECK(std::ranges::equal(file.storage(b), data));
}

TEST_CASE("what the format cannot hold is refused with its path", "[checkpoint][safetensors]") {
  const auto data = noise(96);
  const auto key_of = [&](const tree& state, std::span<const std::byte> bytes) {
    try {
      safetensors_encoder(state, {{"0", bytes}});
    } catch (const state_error& error) {
      return error.key();
    }
    return std::string("accepted");
  };
  const auto t = float_view({24}, {1});
  CHECK(key_of(tree::dict{{"a", t}}, data) == "accepted");
  CHECK(key_of(tree::dict{{"a.b", t}, {"a", tree::dict{{"b", t}}}}, data) == "a.b");
  CHECK(key_of(tree::dict{{1, t}, {"1", t}}, data) == "1");
  CHECK(key_of(tree::list{tree::dict{{"x", t}}, 0, tree::list{1, vector_of(scalar_type::complex128, "0", 1)}}, data) ==
        "2.1");
  CHECK(key_of(tree::dict{{"__metadata__", t}}, data) == "__metadata__");
  CHECK(key_of(tree::dict{{"a", tree::dict{{"b", "\xff"}}}}, data) == "a.b");
  CHECK(key_of(tree::dict{{"a", float_view({25}, {1})}}, data) == "a");
  CHECK(key_of(tree::dict{{"a", t}}, std::span(data).first(95)) == "a");
  auto absent = t;
  absent.storage_key = "1";
  CHECK(contains(refusal_of<state_error>([&] {
                   safetensors_encoder(tree::dict{{"a", absent}}, {{"0", data}});
                 }),
                 "'1' is not among those given"));
  CHECK(key_of(tree::dict{{"a", float_view({std::int64_t{1} << 61, 3}, {0, 0})}}, data) == "a");
  const auto huge = float_view({std::int64_t{1} << 59}, {0});
  CHECK(key_of(tree::dict{{"a", huge}, {"b", huge}, {"c", huge}}, data) == "c");
  CHECK(key_of(tree::dict{{"a", float_view(std::vector<std::int64_t>(65, 1), std::vector<std::int64_t>(65, 1))}},
               data) == "a");
  tree deep = 1;
  for (std::size_t i = 0; i < max_tree_depth; ++i) deep = tree::list{deep};
  CHECK(comes_back(deep, {}));
  CHECK_THROWS_AS(safetensors_encoder(tree(tree::list{deep}), std::vector<storage>()), state_error);
  CHECK_THROWS_AS(safetensors_encoder(tree(), std::vector<storage>(), {{"rondo", ""}}), option_error);
}

TEST_CASE("a failing sink ends the writing", "[checkpoint][safetensors]") {
  const auto data = noise(1'000'000);
  const safetensors_encoder encoder(tree::dict{{"a", vector_of(scalar_type::uint8, "0", 1'000'000)}}, {{"0", data}});
  int calls = 0;
  CHECK_THROWS_AS(encoder.write([&](std::span<const std::byte>) {
    if (++calls == 2) throw std::length_error("full");
  }),
                  std::length_error);
  CHECK(calls == 2);
}

TEST_CASE("files are mapped, and what is no file is refused", "[checkpoint][safetensors]") {
  const temporary_directory scratch;
  const auto data = noise(96);
  const auto path = (scratch / "a.safetensors").string();
  write_to_file(path, write(safetensors_encoder(tree::dict{{"a", float_view({24}, {1})}}, {{"0", data}})));
  const auto file = safetensors_file::open(path);
  CHECK(file.where() == path);
  CHECK(std::ranges::equal(file.storage(file.state().get<tensor_descriptor>("a")), data));
  file.require_readable();

  std::filesystem::create_symlink(path, scratch / "link");
  CHECK_THROWS_AS(safetensors_file::open(scratch / "link"), io_error);
  REQUIRE(::mkfifo((scratch / "fifo").c_str(), 0600) == 0);
  CHECK_THROWS_AS(safetensors_file::open(scratch / "fifo"), format_error);
  CHECK_THROWS_AS(safetensors_file::open(scratch.path()), format_error);
  CHECK_THROWS_AS(safetensors_file::open(scratch / "none"), io_error);
  write_to_file((scratch / "empty").string(), {});
  CHECK_THROWS_AS(safetensors_file::open(scratch / "empty"), format_error);
}

TEST_CASE("every truncation and extension is refused", "[checkpoint][safetensors]") {
  const auto data = noise(96);
  const auto sound = write(safetensors_encoder(tree::dict{{"a", float_view({4, 6}, {6, 1})}, {"b", 1}}, {{"0", data}}));
  for (std::size_t size = 0; size < sound.size(); ++size) {
    CAPTURE(size);
    CHECK_THROWS_AS(parse({sound.begin(), sound.begin() + static_cast<std::ptrdiff_t>(size)}), format_error);
  }
  auto longer = sound;
  longer.push_back({});
  CHECK_THROWS_AS(parse(longer), format_error);
}

TEST_CASE("mutated safetensors files never crash the reader", "[checkpoint][safetensors][fuzz]") {
  const auto data = noise(96);
  const tree state = tree::dict{
      {"model", tree::dict{{"w", float_view({2, 3}, {3, 1})}, {"b", float_view({4}, {5})}}},
      {"mixed", tree::list{1, -1, 2.5, nullptr, true, tree::tuple{{"a", std::numeric_limits<double>::infinity()}}}},
      {"bytes", state::bytes{noise(10)}},
      {3, tree::dict{{"x", float_view({0}, {1})}}}};
  const auto sound = write(safetensors_encoder(state, {{"0", data}}));
  const auto header_end = sound.size() - 40;
  std::mt19937 random(5);
  const auto below = [&](std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(random); };
  static constexpr std::string_view telling = "{}[]\",:0123456789-.eE\\ tf";
  int accepted = 0;
  for (int i = 0; i < 30'000; ++i) {
    auto input = sound;
    for (auto changes = 1 + below(3); changes > 0; --changes) {
      const auto at = input.begin() + static_cast<std::ptrdiff_t>(below(std::min(header_end, input.size())));
      const auto letter = static_cast<std::byte>(below(3) == 0 ? below(256) : telling[below(telling.size())]);
      if (const auto kind = below(4); kind == 0)
        input.insert(at, letter);
      else if (kind == 1)
        input.erase(at);
      else
        *at = letter;
    }
    // Half of them with a length that fits again, so that the parser gets further.
    if (below(2) == 0 && input.size() > 48) {
      const auto length = input.size() - 48;
      for (std::size_t b = 0; b < 8; ++b) input[b] = static_cast<std::byte>(length >> (8 * b) & 0xff);
    }
    const auto start = rondo::testing::processor_time();
    try {
      const auto file = safetensors_file::from_span(input, "mutated");
      ++accepted;
      // What is accepted is consistent: every tensor's bytes are there, and it can be written again.
      const safetensors_encoder again(file.state(), file.storages());
      CHECK(safetensors_file::from_bytes(write(again), "again").tensors().size() == file.tensors().size());
    } catch (const format_error&) {
    } catch (const state_error&) {  // names that collide
    }
    REQUIRE(rondo::testing::processor_time() - start < std::chrono::seconds(10));
  }
  CHECK(accepted > 300);
  CHECK(accepted < 29'000);
}

TEST_CASE("Python reads what is written, by nothing but the format's description",
          "[checkpoint][safetensors][python]") {
  const temporary_directory scratch;
  byte_vector six(6 * sizeof(float));
  const float numbers[] = {1, 2, 3, 4, 5, 6};
  std::memcpy(six.data(), numbers, six.size());
  const auto view = [](std::vector<std::int64_t> sizes, std::vector<std::int64_t> strides) {
    return tensor_descriptor{scalar_type::float32, "six", 6, 0, std::move(sizes), std::move(strides), false, false};
  };
  std::vector<byte_vector> memory;
  std::vector<storage> storages = {{"six", six}};
  tree::dict dtypes;
  for (const auto type : writable) {
    const std::string key(name(type));
    memory.emplace_back(static_cast<std::size_t>(2 * element_size(type)), std::byte{1});
    dtypes.insert_or_assign(key, vector_of(type, key, 2));
    storages.push_back({key, memory.back()});
  }
  const tree state =
      tree::dict{{"model", tree::dict{{"weight", view({2, 3}, {3, 1})}, {"transposed", view({3, 2}, {1, 3})}}},
                 {"scalar", view({}, {})},
                 {"empty", view({0, 3}, {3, 1})},
                 {"Ünïcödé \"quoted\"", view({6}, {1})},
                 {"dtypes", dtypes},
                 {"iteration", 7}};
  const auto path = (scratch / "a.safetensors").string();
  write_to_file(path, write(safetensors_encoder(state, storages, {{"note", "hällo"}})));
  const auto result = run_python(R"py(
import json, struct, sys
import numpy as np
data = open(sys.argv[1], 'rb').read()
size, = struct.unpack('<Q', data[:8])
assert size % 8 == 0 and size <= 100_000_000
names = []
def unique(pairs):
    assert len(dict(pairs)) == len(pairs), pairs
    return dict(pairs)
header = json.loads(data[8:8 + size].decode('utf-8'), object_pairs_hook=unique)
assert data[8:9] == b'{'
metadata = header.pop('__metadata__')
assert all(type(k) is str and type(v) is str for k, v in metadata.items())
assert metadata['format'] == 'pt' and metadata['note'] == 'h\u00e4llo', metadata
assert json.loads(metadata['rondo'])['state']['dict'][-1] == ['iteration', 7]
types = dict(BOOL='?', U8='u1', I8='i1', I16='<i2', I32='<i4', I64='<i8', F16='<f2', BF16='<u2', F32='<f4', F64='<f8',
             C64='<c8')
tensors, end = {}, 0
for name, entry in sorted(header.items(), key=lambda item: item[1]['data_offsets']):
    assert set(entry) == {'dtype', 'shape', 'data_offsets'}
    first, last = entry['data_offsets']
    dtype = np.dtype(types[entry['dtype']])
    assert first == end and (8 + size + first) % dtype.itemsize == 0
    assert last - first == int(np.prod(entry['shape'], dtype=np.int64)) * dtype.itemsize
    tensors[name] = np.frombuffer(data[8 + size + first:8 + size + last], dtype).reshape(entry['shape'])
    end = last
assert 8 + size + end == len(data)
assert tensors['model.weight'].tolist() == [[1, 2, 3], [4, 5, 6]]
assert tensors['model.transposed'].tolist() == [[1, 4], [2, 5], [3, 6]]
assert tensors['scalar'].shape == () and tensors['scalar'] == 1
assert tensors['empty'].shape == (0, 3)
assert tensors['\u00dcn\u00efc\u00f6d\u00e9 "quoted"'].tolist() == [1, 2, 3, 4, 5, 6]
assert sorted(entry['dtype'] for name, entry in header.items() if name.startswith('dtypes.')) == sorted(types)
assert tensors['dtypes.int32'].tolist() == [0x01010101] * 2
try:
    from safetensors.numpy import load
except ImportError:
    pass
else:
    without = {k: v for k, v in header.items() if v['dtype'] not in ('BF16', 'C64')}
    assert set(load(data)) >= set(without)
)py",
                                 {path});
  INFO(result.output);
  CHECK(result.status == 0);
}

}  // namespace checkpoint_safetensors_test

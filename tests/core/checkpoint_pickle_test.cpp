#include "rondo/checkpoint/pickle.hpp"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "rondo/error.hpp"
#include "support/catch.hpp"
#include "support/checkpoint.hpp"
#include "support/messages.hpp"
#include "support/processor_time.hpp"

namespace checkpoint_pickle_test {

using namespace rondo;
using namespace rondo::checkpoint;
using namespace rondo::testing;
using namespace std::string_literals;

namespace {

tree round_trip(const tree& value) { return decode_pickle(encode_pickle(value), "test"); }

tree decode(const std::string& pickle, const pickle_limits& limits = {}) {
  return decode_pickle(to_bytes(pickle), "evil", limits);
}

std::string refusal(const std::string& pickle, const pickle_limits& limits = {}) {
  return refusal_of<format_error>([&] { (void)decode(pickle, limits); });
}

std::string le32(std::uint32_t number) {
  std::string text;
  for (int i = 0; i < 4; ++i) text += static_cast<char>(number >> (8 * i) & 0xff);
  return text;
}

tree nested_list(std::size_t depth) {
  tree value = 1;
  for (std::size_t i = 0; i < depth; ++i) {
    tree::list outer;
    outer.push_back(std::move(value));
    value = std::move(outer);
  }
  return value;
}

}  // namespace

TEST_CASE("every kind of node survives a round trip", "[checkpoint][pickle]") {
  using limits = std::numeric_limits<std::int64_t>;
  constexpr std::int64_t one = 1;
  SECTION("scalars") {
    CHECK(round_trip(nullptr) == tree());
    CHECK(round_trip(true) == tree(true));
    CHECK(round_trip(false) == tree(false));
    for (const auto number :
         {std::int64_t{0}, one, -one, one << 7, one << 8, (one << 8) - 1, one << 16, (one << 16) - 1, one << 31,
          (one << 31) - 1, -(one << 31), -(one << 31) - 1, one << 32, one << 40, limits::max(), limits::min()})
      CHECK(round_trip(number) == tree(number));
    for (const auto number : {0.0, -0.0, 0.1, -1e300, 5e-324, std::numeric_limits<double>::infinity(),
                              -std::numeric_limits<double>::infinity()}) {
      const auto back = round_trip(number).as<double>();
      CHECK(back == number);
      CHECK(std::signbit(back) == std::signbit(number));
    }
    CHECK(std::isnan(round_trip(std::numeric_limits<double>::quiet_NaN()).as<double>()));
  }
  SECTION("text and bytes") {
    for (const auto& text : {""s, "a"s, "two\nlines\0nul"s, "\0"s, "Ünïcödé – 漢字 – 🎉"s, std::string(70'000, 'x')})
      CHECK(round_trip(text) == tree(text));
    state::bytes all;
    for (int i = 0; i < 256; ++i) all.data.push_back(static_cast<std::byte>(i));
    CHECK(round_trip(all) == tree(all));
    CHECK(round_trip(state::bytes()) == tree(state::bytes()));
  }
  SECTION("containers") {
    CHECK(round_trip(tree::list()) == tree(tree::list()));
    CHECK(round_trip(tree::tuple()) == tree(tree::tuple()));
    CHECK(round_trip(tree::dict()) == tree(tree::dict()));
    for (std::size_t size = 1; size < 6; ++size) {
      const tree::list items(size, tree("same"));
      CHECK(round_trip(items) == tree(items));
      CHECK(round_trip(tree::tuple{items}) == tree(tree::tuple{items}));
    }
    tree::dict mixed = {{"b", 1}, {"a", tree::dict{{0, "zero"}, {-5, "minus"}}}, {7, nullptr}, {"7", 2.5}, {"", true}};
    CHECK(round_trip(mixed) == tree(mixed));
    CHECK(round_trip(mixed).as<tree::dict>().begin()->first == state::key("b"));
  }
  SECTION("deep nesting") {
    const auto deep = nested_list(max_tree_depth);
    CHECK(round_trip(deep) == deep);
  }
  SECTION("tensors") {
    for (int i = 0; i <= static_cast<int>(scalar_type::bfloat16); ++i) {
      tensor_descriptor tensor{
          static_cast<scalar_type>(i), "k", 1'000'000, 5, {2, 3, 4, 5}, {1, 2, 6, 24}, false, false};
      CHECK(round_trip(tensor) == tree(tensor));
      tensor.requires_grad = true;
      CHECK(round_trip(tensor) == tree(tensor));
      tensor.parameter = true;
      CHECK(round_trip(tensor) == tree(tensor));
      tensor.requires_grad = false;
      CHECK(round_trip(tensor) == tree(tensor));
    }
    const tensor_descriptor scalar{scalar_type::float32, "s", 1, 0, {}, {}, false, false};
    CHECK(round_trip(scalar) == tree(scalar));
    const tensor_descriptor empty{scalar_type::float32, "e", 0, 0, {0, 3}, {3, 1}, false, false};
    CHECK(round_trip(empty) == tree(empty));
  }
}

TEST_CASE("what no pickle can hold is refused with its path", "[checkpoint][pickle]") {
  const auto path_of = [](const tree& value) {
    try {
      (void)encode_pickle(value);
    } catch (const state_error& error) {
      return error.key();
    }
    return "accepted"s;
  };
  CHECK(path_of(tree::dict{{"a", tree::list{1, "\xff"}}}) == "a.1");
  CHECK(path_of(tree::dict{{"a", tree::dict{{"\xc0\x80", 1}}}}) == "a");
  CHECK(path_of(tree::dict{{"t", tree::tuple{{vector_of(scalar_type::int8, "0", -1)}}}}) == "t.0");
  CHECK(path_of(nested_list(max_tree_depth)) == "accepted");
  CHECK(path_of(nested_list(max_tree_depth + 1)) != "accepted");
}

TEST_CASE("a hundred thousand tensors are encoded and decoded quickly", "[checkpoint][pickle]") {
  tree::dict state;
  for (int i = 0; i < 100'000; ++i)
    state.insert_or_assign(fmt::format("layers.{}.weight", i), vector_of(scalar_type::float32, std::to_string(i), 64));
  const auto start = rondo::testing::processor_time();
  const auto pickle = encode_pickle(state);
  const auto back = decode_pickle(pickle, "test");
  const auto used = rondo::testing::processor_time() - start;
  CHECK(back == tree(state));
  CHECK(pickle.size() / 100'000 < 80);
  // Far above what it takes, but far below what anything quadratic takes.
  CHECK(used.count() < 30);
}

TEST_CASE("equal trees give equal bytes", "[checkpoint][pickle]") {
  const auto make = [] { return tree(tree::dict{{"a", tree::list{1, "x", "x"}}, {"x", 2.0}}); };
  CHECK(encode_pickle(make()) == encode_pickle(make()));
}

TEST_CASE("newer opcodes are understood", "[checkpoint][pickle]") {
  CHECK(decode("\x80\x05\x8c\x03"s + "abc.") == tree("abc"));
  CHECK(decode("\x80\x05\x8d\x03\0\0\0\0\0\0\0abc."s) == tree("abc"));
  CHECK(decode("\x95\x02\0\0\0\0\0\0\0N."s) == tree());
  CHECK(decode("C\x02\x01\x02."s) == tree(state::bytes{{std::byte{1}, std::byte{2}}}));
  CHECK(decode("B\x01\0\0\0\x07."s) == tree(state::bytes{{std::byte{7}}}));
  CHECK(decode("\x96\x01\0\0\0\0\0\0\0\x07."s) == tree(state::bytes{{std::byte{7}}}));
  CHECK(decode("\x8f(K\x01K\x02\x90."s) == tree(tree::list{1, 2}));
  CHECK(decode("(K\x01\x91."s) == tree(tree::list{1}));
  CHECK(decode("]\x94K\x01"s + "a0\x8c\x01xh\0\x86."s) == tree(tree::tuple{{"x", tree::list{1}}}));
  CHECK(decode("\x8a\0."s) == tree(0));
  CHECK(decode("\x8a\x01\xff."s) == tree(-1));
  CHECK(decode("\x8b\x02\0\0\0\x00\x80."s) == tree(-32768));
  CHECK(decode("K\x01(K\x02K\x03\x31."s) == tree(1));
}

TEST_CASE("unknown globals stay inert", "[checkpoint][pickle]") {
  const tree call = decode("cos\nsystem\nX\x04\0\0\0true\x85R."s);
  CHECK(call == tree(tree::dict{{"__global__", "os.system"}, {"args", tree::tuple{{"true"}}}}));
  CHECK(decode("cnumpy\nndarray\n."s) == tree(tree::dict{{"__global__", "numpy.ndarray"}}));
  CHECK(decode("cm\nC\n)\x81}X\x01\0\0\0aK\x01sb."s) ==
        tree(tree::dict{{"__global__", "m.C"}, {"args", tree::tuple()}, {"state", tree::dict{{"a", 1}}}}));
  CHECK(decode("ccollections\ndefaultdict\n)R(K\x01K\x02u."s) ==
        tree(tree::dict{
            {"__global__", "collections.defaultdict"}, {"args", tree::tuple()}, {"entries", tree::dict{{1, 2}}}}));
  CHECK(decode("cm\nL\n)\x81K\x05"s + "a."s) ==
        tree(tree::dict{{"__global__", "m.L"}, {"args", tree::tuple()}, {"items", tree::list{5}}}));
  CHECK(decode("cm\nC\n)}\x92."s) ==
        tree(tree::dict{{"__global__", "m.C"}, {"args", tree::tuple{{tree::tuple(), tree::dict()}}}}));
  // The result of one unknown call called again.
  CHECK(decode("cm\nf\n)R)R."s).at("__global__") == tree(tree::dict{{"__global__", "m.f"}, {"args", tree::tuple()}}));
}

TEST_CASE("damaged and malicious pickles are refused", "[checkpoint][pickle]") {
  CHECK(contains(refusal(""), "ends"));
  CHECK(contains(refusal("N"), "ends"));
  CHECK(contains(refusal("."), "not there"));
  CHECK(contains(refusal("NN."), "unfinished"));
  CHECK(contains(refusal("N(."), "not there"));
  CHECK(contains(refusal("N.N"), "follows"));
  CHECK(contains(refusal("\x80\x06N."), "protocol 6"));
  CHECK(contains(refusal("i."), "opcode 0x69"));
  CHECK(contains(refusal("\xff"), "opcode 0xff"));
  CHECK(contains(refusal("X\xff\xff\xff\xff."), "ends"));
  CHECK(contains(refusal("\x8d\xff\xff\xff\xff\xff\xff\xff\xff."), "ends"));
  CHECK(contains(refusal("\x95\xff\xff\xff\xff\xff\xff\xff\xffN."), "frame"));
  CHECK(contains(refusal("X\x02\0\0\0\xc0\x80."s), "UTF-8"));
  CHECK(contains(refusal("h\0."s), "empty memo"));
  CHECK(contains(refusal("Nr" + le32(0x7fffffff) + "."), "memo slot"));
  CHECK(contains(refusal("K\x01K\x02"s + "a."), "not a list"));
  CHECK(contains(refusal("K\x01K\x02K\x03s."), "not a dict"));
  CHECK(contains(refusal("}(K\x01u."), "no value"));
  CHECK(contains(refusal("}NK\x01s."), "neither text nor an integer"));
  CHECK(contains(refusal("K\x01Nb."), "attributes"));
  CHECK(contains(refusal("t."), "mark"));
  CHECK(contains(refusal("cos\n"), "name"));
  CHECK(contains(refusal("c" + std::string(2000, 'a') + "\nb\n."), "too long"));
  CHECK(contains(refusal("NN\x93."), "not text"));
  CHECK(contains(refusal("NQ."), "persistent id"));
  CHECK(contains(refusal("(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0\x30X\x03\0\0\0cpuNtQ."s),
                 "persistent id"));
  CHECK(contains(refusal("c_codecs\nencode\nX\x02\0\0\0\xc4\x80X\x06\0\0\0latin1\x86R."s), "above 255"));

  const auto tensor = [](const std::string& numel, const std::string& offset, const std::string& sizes,
                         const std::string& strides) {
    return "ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0\x30X\x03\0\0\0cpu"s +
           numel + "tQ" + offset + sizes + strides + "\x89)tR.";
  };
  CHECK(decode(tensor("K\x06", "K\0"s, "K\x06\x85", "K\x01\x85")).is<tensor_descriptor>());
  CHECK(contains(refusal(tensor("K\x05", "K\0"s, "K\x06\x85", "K\x01\x85")), "beyond its storage"));
  CHECK(contains(refusal(tensor("K\x06", "K\0"s, "K\x06\x85", "K\x01K\x01\x86")), "1 sizes but 2 strides"));
  CHECK(contains(refusal(tensor("K\x06", "N", "K\x06\x85", "K\x01\x85")), "offset"));
  CHECK(contains(refusal(tensor("K\x06", "K\0"s, "K\x06", "K\x01\x85")), "not a tuple"));
  CHECK(contains(refusal(tensor("K\x06", "K\0"s, "N\x85", "K\x01\x85")), "not an integer"));
  CHECK(contains(refusal(tensor("J\xff\xff\xff\xff", "K\0"s, "K\x06\x85", "K\x01\x85")), "impossible"));
}

TEST_CASE("errors say where", "[checkpoint][pickle]") {
  try {
    (void)decode("\x80\x02]i");
    FAIL("accepted");
  } catch (const format_error& error) {
    CHECK(error.where() == "evil");
    CHECK(error.offset() == 3);
  }
}

TEST_CASE("limits hold against small pickles that ask for much", "[checkpoint][pickle]") {
  SECTION("self reference") {
    CHECK(contains(refusal("]q\0h\0a."s), "refers to itself"));
    CHECK(contains(refusal("}q\0K\x01h\0s."s), "refers to itself"));
    CHECK(contains(refusal("cm\nC\n)Rq\0h\0b."s), "refers to itself"));
    CHECK(contains(refusal("]q\0h\0\x85q\x01\x30h\x01"s + "a."), "refers to itself"));
  }
  SECTION("depth") {
    std::string tuples = "N";
    tuples.append(1'000'000, '\x85');
    CHECK(contains(refusal(tuples + "."), "deeper than 512"));
    std::string calls = "cm\nf\n";
    for (int i = 0; i < 100'000; ++i) calls += ")R";
    CHECK(contains(refusal(calls + "."), "deeper than 512"));
    pickle_limits two;
    two.depth = 2;
    CHECK(refusal("N\x85\x85.", two).empty());
    CHECK(contains(refusal("N\x85\x85\x85.", two), "deeper than 2"));
    // Shared, and deep only in the place where it is met second.
    CHECK(contains(refusal("(N\x85\x85q\0h\0\x85t."s, {.depth = 3}), "deeper than 3"));
  }
  SECTION("a billion laughs") {
    std::string laughs = "]";
    for (int i = 0; i < 60; ++i)
      laughs += "q"s + static_cast<char>(i) + "0]h" + static_cast<char>(i) + "a" + "h" + static_cast<char>(i) + "a";
    CHECK(contains(refusal(laughs + "."), "too big"));
    std::string doubled = "N";
    for (int i = 0; i < 200; ++i) doubled += "q"s + static_cast<char>(i) + "h" + static_cast<char>(i) + "\x86";
    CHECK(contains(refusal(doubled + "."), "too big"));
  }
  SECTION("the same long text many times") {
    const std::string text(10'000'000, 'x');
    std::string many = "(X" + le32(10'000'000) + text + "q\0"s;
    for (int i = 0; i < 10'000; ++i) many += "h\0"s;
    CHECK(contains(refusal(many + "t."), "too big"));
  }
  SECTION("the same long list copied many times") {
    std::string many = "(](" + std::string(100'000, 'N') + "e\x85q\0\x30"s + "c__builtin__\nset\nq\x01";
    for (int i = 0; i < 100'000; ++i) many += "h\x01h\0R"s;
    CHECK(contains(refusal(many + "t."), "again and again"));
  }
  SECTION("counts") {
    CHECK(contains(refusal("]]]\x87.", {.objects = 3}), "more than 3 objects"));
    CHECK(refusal("]]]\x87.", {.objects = 4}).empty());
    CHECK(contains(refusal("NNN\x87.", {.nodes = 3}), "too big"));
    CHECK(refusal("NNN\x87.", {.nodes = 4}).empty());
  }
}

}  // namespace checkpoint_pickle_test

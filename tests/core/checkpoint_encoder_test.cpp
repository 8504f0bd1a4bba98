#include "rondo/checkpoint/encoder.hpp"

#include <algorithm>

#include "rondo/checkpoint/reader.hpp"
#include "rondo/checkpoint/verify.hpp"
#include "rondo/error.hpp"
#include "support/catch.hpp"
#include "support/checkpoint.hpp"
#include "support/messages.hpp"

namespace checkpoint_encoder_test {

using namespace rondo;
using namespace rondo::checkpoint;
using namespace rondo::testing;

namespace {

std::string refusal(const tree& state, std::vector<storage> storages, std::string_view root = "root") {
  return refusal_of<rondo::error>([&] { encoder(state, storages, {}, root); });
}

}  // namespace

TEST_CASE("what the encoder writes, the reader reads", "[checkpoint][encoder]") {
  const auto weights = noise(3'000'000);
  const auto steps = noise(8, 2);
  tensor_descriptor view = vector_of(scalar_type::float32, "w", 750'000);
  view.storage_offset = 10;
  view.sizes = {3, 5};
  view.strides = {5, 1};
  const tree state = tree::dict{{"model", tree::dict{{"weight", vector_of(scalar_type::float32, "w", 750'000)},
                                                     {"view", view},
                                                     {"empty", vector_of(scalar_type::float32, "e", 0)}}},
                                {"steps", tree::list{vector_of(scalar_type::int64, "s", 1)}},
                                {"iteration", 1000}};
  const snapshot_info info{1000, 3, false, {{"rondo", "0.1.0"}}, 4};
  const encoder file(state, {{"w", weights}, {"s", steps}, {"e", {}}}, info, "snapshot_iter_1000");
  const auto bytes = write_to_memory(file);

  CHECK(file.size() == bytes.size());
  CHECK(file.layout().file_size() == bytes.size());
  CHECK(write_to_memory(file) == bytes);
  const auto back = reader::from_span(bytes, "memory");
  CHECK(back.root() == "snapshot_iter_1000");
  CHECK(back.state() == state);
  REQUIRE(back.info().has_value());
  CHECK(back.info()->info == info);
  CHECK(back.info()->tensors ==
        std::map<std::string, std::string>{
            {"model.weight", "data/w"}, {"model.view", "data/w"}, {"model.empty", "data/e"}, {"steps.0", "data/s"}});
  CHECK(std::ranges::equal(back.storage(view), weights));
  CHECK(std::ranges::equal(back.record("data/s"), steps));
  CHECK(back.record("data/e").empty());
  CHECK(std::ranges::equal(back.record("version"), to_bytes("3\n")));
  CHECK((back.storage(view).data() - bytes.data()) % 4096 == 0);
  CHECK((back.record("data/s").data() - bytes.data()) % 64 == 0);
  CHECK(problems(back).empty());

  std::vector<std::string> names;
  for (const auto& record : file.layout().records()) names.emplace_back(record.path.substr(19));
  CHECK(names ==
        std::vector<std::string>{"data.pkl", "byteorder", "data/w", "data/s", "data/e", "version", "rondo.json"});
}

TEST_CASE("large storages reach the sink without a copy, small ones joined", "[checkpoint][encoder]") {
  const auto large = noise(2'000'000);
  const tree state = vector_of(scalar_type::uint8, "l", 2'000'000);
  std::size_t uncopied = 0;
  encoder(state, {{"l", large}}, {}).write([&](std::span<const std::byte> bytes) {
    const bool inside =
        std::less_equal<>()(large.data(), bytes.data()) && std::less<>()(bytes.data(), large.data() + large.size());
    if (inside) uncopied += bytes.size();
  });
  CHECK(uncopied > 1'900'000);

  tree::list many;
  std::vector<storage> storages;
  const auto small = noise(64);
  for (int i = 0; i < 20'000; ++i) {
    many.push_back(vector_of(scalar_type::float32, std::to_string(i), 16));
    storages.push_back({std::to_string(i), small});
  }
  std::size_t calls = 0;
  std::uint64_t size = 0;
  const encoder file(many, storages, {});
  file.write([&](std::span<const std::byte> bytes) {
    ++calls;
    size += bytes.size();
  });
  CHECK(size == file.size());
  CHECK(calls < 2'000);
}

TEST_CASE("a file of more than 65,535 records", "[checkpoint][encoder][zip64]") {
  tree::list many;
  std::vector<storage> storages;
  const auto numbers = noise(70'000 * 4);
  for (int i = 0; i < 70'000; ++i) {
    many.push_back(vector_of(scalar_type::float32, std::to_string(i), 1));
    storages.push_back({std::to_string(i), std::span(numbers).subspan(static_cast<std::size_t>(i) * 4, 4)});
  }
  const encoder file(many, storages, {});
  const auto bytes = write_to_memory(file);
  CHECK(bytes.size() == file.size());
  const auto back = reader::from_span(bytes, "memory");
  CHECK(back.state() == tree(many));
  CHECK(std::ranges::equal(back.record("data/69999"), storages.back().data));
  CHECK(problems(back).empty());
}

TEST_CASE("an error of the sink reaches the caller unchanged", "[checkpoint][encoder]") {
  struct full {};
  const encoder file(tree(), {}, {});
  CHECK_THROWS_AS(file.write([](std::span<const std::byte>) { throw full(); }), full);
}

TEST_CASE("bytes may be filled in after the file was described", "[checkpoint][encoder]") {
  auto data = byte_vector(100);
  const encoder file(vector_of(scalar_type::uint8, "0", 100), {{"0", data}}, {});
  std::ranges::copy(noise(100), data.begin());
  const auto bytes = write_to_memory(file);
  const auto back = reader::from_span(bytes, "memory");
  CHECK(std::ranges::equal(back.record("data/0"), noise(100)));
  CHECK(problems(back).empty());
}

TEST_CASE("trees and storages that do not belong together are refused", "[checkpoint][encoder]") {
  const auto data = noise(8);
  const auto two = vector_of(scalar_type::float32, "0", 2);
  CHECK(refusal(two, {{"0", data}}).empty());
  CHECK(contains(refusal(tree::dict{{"a", tree::list{two}}}, {}), "'a.0'"));
  CHECK(contains(refusal(two, {{"1", data}}), "not among"));
  CHECK(contains(refusal(vector_of(scalar_type::float32, "0", 1), {{"0", data}}), "8 bytes instead of 4"));
  CHECK(contains(refusal(tree::list{two, vector_of(scalar_type::int64, "0", 1)}, {{"0", data}}), "both as float32"));
  CHECK(contains(refusal(two, {{"0", data}, {"0", data}}), "twice"));
  CHECK(contains(refusal(two, {{"0", data}, {"a/b", data}}), "storage key"));
  CHECK(contains(refusal(two, {{"0", data}, {"", data}}), "storage key"));
  CHECK(contains(refusal(two, {{"0", data}}, "a/b"), "root"));
}

TEST_CASE("bytes that are only promised can come from a source", "[checkpoint][encoder]") {
  const auto first = noise(1'000'003, 1);
  const auto second = noise(5, 2);
  const auto third = noise(0, 3);
  const auto state = tree::dict{{"a", vector_of(scalar_type::uint8, "x", 1'000'003)},
                                {"b", vector_of(scalar_type::uint8, "y", 5)},
                                {"c", vector_of(scalar_type::uint8, "z", 0)}};
  const encoder all(state, {{"x", first}, {"y", second}, {"z", third}}, {});
  const encoder promised(state, {{"x", {}, first.size()}, {"y", second}, {"z", {}, 0}}, {});
  byte_vector out;
  std::uint64_t next = 0;
  promised.write([&](std::span<const std::byte> bytes) { out.insert(out.end(), bytes.begin(), bytes.end()); },
                 [&](std::size_t i, std::uint64_t offset, std::span<std::byte> to) {
                   CHECK(i == 0);
                   CHECK(offset == next);
                   next += to.size();
                   std::copy_n(first.begin() + static_cast<std::ptrdiff_t>(offset), to.size(), to.begin());
                 });
  CHECK(next == first.size());
  CHECK(out == write_to_memory(all));
  CHECK_THROWS_AS(write_to_memory(promised), std::logic_error);
}

}  // namespace checkpoint_encoder_test

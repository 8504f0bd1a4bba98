// load_into and materialize_verified: loading and verification in one pass.
#include <c10/core/InferenceMode.h>
#include <torch/nn/modules/linear.h>
#include <torch/types.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "rondo/checkpoint/tensors.hpp"
#include "rondo/checkpoint/verify.hpp"
#include "rondo/state/digest.hpp"
#include "rondo/state/module.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"
#include "support/python.hpp"
#include "support/temporary_directory.hpp"

namespace checkpoint_loading_test {

namespace {

using namespace rondo;
using checkpoint::load_checks;
using checkpoint::load_into;
using checkpoint::reader;
using rondo::testing::contains;
using rondo::testing::message_of;
using rondo::testing::temporary_directory;

std::vector<std::byte> encode(const state::value& v) {
  const auto described = checkpoint::describe(v);
  std::vector<std::byte> file;
  checkpoint::encoder(described.tree, described.views(), {}).write([&](std::span<const std::byte> piece) {
    file.insert(file.end(), piece.begin(), piece.end());
  });
  return file;
}

reader encoded(const state::value& v) { return reader::from_bytes(encode(v), "memory"); }

void write(const std::filesystem::path& path, const std::vector<std::byte>& file) {
  std::ofstream out(path, std::ios::binary);
  out.write(reinterpret_cast<const char*>(file.data()), static_cast<std::streamsize>(file.size()));
}

constexpr load_checks all_checks[] = {load_checks::none, load_checks::loaded, load_checks::whole_file};

state::dict sample() {
  const auto base = torch::arange(24, torch::kFloat).view({4, 6});
  return {{"model", state::dict{{"0.weight", torch::rand({5, 3})}, {"0.bias", torch::rand({5})}}},
          {"views", state::list{base, base.t(), base.slice(1, 1, 6, 2)}},
          {"large", torch::rand({3'000'000})},
          {"count", torch::tensor(7)},
          {"empty", torch::empty({0, 3})},
          {"expanded", torch::ones({1}).expand({5})},
          {"note", "text"}};
}

}  // namespace

TEST_CASE("tensors are loaded into those that exist", "[checkpoint][load_into]") {
  const temporary_directory folder;
  const auto v = sample();
  write(folder / "file", encode(v));
  for (const auto checks : all_checks) {
    for (const bool from_file : {false, true}) {
      const auto file = from_file ? reader::open(folder / "file") : encoded(v);
      auto weight = torch::zeros({5, 3}, torch::requires_grad());
      const auto memory = weight.data_ptr();
      const auto version = weight._version();
      auto large = torch::zeros({3'000'000});
      auto transposed = torch::zeros({6, 4});
      auto strided = torch::zeros({4, 6}).slice(1, 0, 6, 2);
      auto wide = torch::zeros({5}, torch::kDouble);
      auto column_major = torch::zeros({6, 4}).t();
      auto count = torch::zeros({}, torch::kLong);
      auto empty = torch::empty({0, 3});
      auto expanded = torch::zeros({5});
      load_into(file,
                {{"model", state::dict{{"0.weight", weight}}},
                 {"model.0.bias", wide},
                 {"views.0", column_major},
                 {"views", state::dict{{1, transposed}, {2, strided}}},
                 {"large", large},
                 {"count", count},
                 {"empty", empty},
                 {"expanded", expanded}},
                checks);
      const auto& model = v.at("model");
      CHECK(weight.data_ptr() == memory);
      CHECK(weight._version() > version);
      CHECK(weight.requires_grad());
      CHECK(torch::equal(weight, model.at("0.weight").as<at::Tensor>()));
      CHECK(torch::equal(wide, model.at("0.bias").as<at::Tensor>().to(torch::kDouble)));
      const auto base = torch::arange(24, torch::kFloat).view({4, 6});
      CHECK(torch::equal(column_major, base));
      CHECK(torch::equal(transposed, base.t()));
      CHECK(torch::equal(strided, base.slice(1, 1, 6, 2)));
      CHECK(torch::equal(large, v.at("large").as<at::Tensor>()));
      CHECK(count.item<std::int64_t>() == 7);
      CHECK(torch::equal(expanded, torch::ones(5)));
    }
  }
}

TEST_CASE("a part of a larger storage is loaded in place", "[checkpoint][load_into]") {
  const auto base = torch::arange(100, torch::kFloat);
  const auto file = encoded(state::dict{{"part", base.slice(0, 10, 20)}});
  for (const auto checks : all_checks) {
    auto whole = torch::full({30}, -1.0F);
    load_into(file, {{"part", whole.slice(0, 5, 15)}}, checks);
    CHECK(torch::equal(whole.slice(0, 5, 15), torch::arange(10, 20, torch::kFloat)));
    CHECK(torch::equal(whole.slice(0, 0, 5), torch::full({5}, -1.0F)));
    CHECK(torch::equal(whole.slice(0, 15, 30), torch::full({15}, -1.0F)));
  }
}

TEST_CASE("destinations that share memory are loaded one after the other", "[checkpoint][load_into]") {
  const auto file = encoded(state::dict{{"a", torch::full({4}, 1.0F)}, {"b", torch::full({4}, 2.0F)}});
  auto t = torch::zeros({4});
  load_into(file, {{"a", t}, {"b", t}});
  CHECK(torch::equal(t, torch::full({4}, t[0].item<float>())));
  CHECK(t[0].item<float>() > 0);
}

TEST_CASE("nothing is changed when anything does not fit, and all of it is listed", "[checkpoint][load_into]") {
  const auto file = encoded(state::dict{{"a", torch::ones({2, 3})},
                                        {"complex", torch::ones({2}, torch::kComplexFloat)},
                                        {"float", torch::ones({2})},
                                        {"note", "text"}});
  auto sound = torch::zeros({2, 3});
  const auto problem = [&](const std::string& name, const state::value& target) {
    const auto message = message_of<state_error>([&] { load_into(file, {{"a", sound}, {name, target}}); });
    CHECK(torch::equal(sound, torch::zeros({2, 3})));
    return message;
  };
  CHECK(contains(problem("b", torch::zeros({2})), "b: is missing in the file"));
  CHECK(contains(problem("note", torch::zeros({2})), "note: the file has str there"));
  CHECK(contains(problem("float", torch::zeros({3})), "expected shape [3], found [2]"));
  CHECK(contains(problem("float", torch::zeros({})), "expected shape [], found [2]"));
  CHECK(contains(problem("complex", torch::zeros({2})), "expected dtype Float, found ComplexFloat"));
  CHECK(contains(problem("float", torch::zeros({2}, torch::kLong)), "expected dtype Long, found Float"));
  CHECK(contains(problem("float", torch::zeros({1}).expand({2})), "share memory"));
  CHECK(contains(problem("float", at::Tensor()), "undefined"));
  CHECK(contains(problem("float", torch::ones(2).to_sparse()), "sparse"));
  CHECK(contains(problem("float", 5), "expected a Tensor to load into, found int"));
  at::Tensor inference;
  {
    const c10::InferenceMode guard;
    inference = torch::zeros({2});
  }
  CHECK(contains(problem("float", inference), "inference"));

  const auto both = message_of<state_error>([&] {
    load_into(file, {{"a", torch::zeros({1})}, {"deep", state::dict{{"x", torch::zeros({1})}}}});
  });
  CHECK(contains(both, "2 problems"));
  CHECK(contains(both, "deep.x"));
}

TEST_CASE("a flipped bit anywhere is found by one-pass loading", "[checkpoint][load_into][materialize]") {
  const state::dict v = {{"a", torch::rand({40})}, {"b", torch::rand({8})}, {"c", 5}};
  const auto sound = encode(v);
  const auto targets = [] { return state::dict{{"a", torch::zeros({40})}, {"b", torch::zeros({8})}}; };
  load_into(reader::from_bytes(sound, "memory"), targets());
  CHECK(state::equal(checkpoint::materialize_verified(reader::from_bytes(sound, "memory")), v));
  for (std::size_t i = 0; i < sound.size(); ++i) {
    CAPTURE(i);
    auto damaged = sound;
    damaged[i] ^= std::byte{1} << (i % 8);
    const auto found = [&](auto action) {
      try {
        action();
      } catch (const format_error&) {
        return true;
      }
      return false;
    };
    REQUIRE(found([&] { load_into(reader::from_span(damaged, "damaged"), targets()); }));
    REQUIRE(found([&] { (void)checkpoint::materialize_verified(reader::from_span(damaged, "damaged")); }));
  }
}

TEST_CASE("the damaged record is named, and what it means for the destinations", "[checkpoint][load_into]") {
  const state::dict v = {{"a", torch::ones({100})}, {"b", torch::ones({100})}};
  auto bytes = encode(v);
  const auto sound = reader::from_span(bytes, "memory");
  const auto place = sound.storage(sound.state().get<checkpoint::tensor_descriptor>("b"));
  bytes[static_cast<std::size_t>(place.data() - bytes.data()) + 50] ^= std::byte{4};
  const auto file = reader::from_span(bytes, "memory");

  for (const auto checks : {load_checks::loaded, load_checks::whole_file}) {
    const auto message = message_of<format_error>([&] {
      load_into(file, {{"a", torch::zeros({100})}, {"b", torch::zeros({100})}}, checks);
    });
    CHECK(contains(message, "data/1"));
    CHECK(contains(message, "partly overwritten"));
  }
  // What is not loaded is checked only on demand, and before anything is changed.
  auto a = torch::zeros({100});
  CHECK_FALSE(contains(message_of<format_error>([&] { load_into(file, {{"a", a}}); }), "overwritten"));
  CHECK(torch::equal(a, torch::zeros({100})));
  load_into(file, {{"a", a}}, load_checks::loaded);
  CHECK(torch::equal(a, torch::ones({100})));
  auto b = torch::zeros({100});
  load_into(file, {{"b", b}}, load_checks::none);
  CHECK_FALSE(torch::equal(b, torch::ones({100})));

  CHECK(contains(message_of<format_error>([&] { (void)checkpoint::materialize_verified(file); }), "data/1"));
}

TEST_CASE("sharing survives the one-pass load", "[checkpoint][materialize]") {
  const auto base = torch::arange(10, torch::kFloat);
  const auto v = checkpoint::materialize_verified(
      encoded(state::dict{{"whole", base}, {"part", base.slice(0, 2, 5)}, {"bits", base.view(torch::kInt)}}));
  v.at("whole").as<at::Tensor>().fill_(-1);
  CHECK(torch::equal(v.at("part").as<at::Tensor>(), torch::full({3}, -1.0)));
  CHECK(torch::equal(v.at("bits").as<at::Tensor>(), base.view(torch::kInt)));
}

TEST_CASE("a file that becomes shorter while it is loaded is an error", "[checkpoint][load_into][materialize]") {
  const temporary_directory folder;
  const auto path = folder / "file";
  write(path, encode(state::dict{{"a", torch::rand({2'000'000})}, {"b", torch::rand({2'000'000})}}));
  const auto file = reader::open(path);
  std::filesystem::resize_file(path, 5'000'000);
  CHECK_THROWS_AS(checkpoint::materialize_verified(file), format_error);
  CHECK_THROWS_AS(checkpoint::materialize(file), format_error);
  CHECK_THROWS_AS(load_into(file, {{"a", torch::zeros({2'000'000})}}), format_error);
  CHECK_THROWS_AS(checkpoint::verify(file), format_error);
}

TEST_CASE("files of Python are loaded and checked in one pass too", "[checkpoint][load_into][materialize][python]") {
  const temporary_directory folder;
  const auto result = rondo::testing::run_python(R"(
import sys, torch
torch.manual_seed(1)
model = torch.nn.Sequential(torch.nn.Linear(300, 200), torch.nn.BatchNorm1d(200))
torch.save(model.state_dict(), sys.argv[1])
)",
                                                 {(folder / "file").string()});
  INFO(result.output);
  REQUIRE(result.status == 0);
  const auto file = reader::open(folder / "file");
  const auto v = checkpoint::materialize_verified(file);
  CHECK(v.as<state::dict>().size() == 7);
  auto weight = torch::zeros({200, 300});
  load_into(file, {{"0.weight", weight}});
  CHECK(torch::equal(weight, v.at("0.weight").as<at::Tensor>()));
  CHECK(weight.abs().sum().item<float>() > 0);

  std::vector<std::byte> bytes(file.records().file().begin(), file.records().file().end());
  const auto place = file.storage(file.state().get<checkpoint::tensor_descriptor>("0.weight"));
  bytes[static_cast<std::size_t>(place.data() - file.records().file().data())] ^= std::byte{1};
  const auto damaged = reader::from_span(bytes, "damaged");
  CHECK_THROWS_AS(checkpoint::materialize_verified(damaged), format_error);
  CHECK_THROWS_AS(load_into(damaged, {{"0.weight", weight}}), format_error);
}

}  // namespace checkpoint_loading_test

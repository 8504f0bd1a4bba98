#include <torch/nn/modules/batchnorm.h>
#include <torch/types.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "rondo/checkpoint/crc32.hpp"
#include "rondo/checkpoint/layout.hpp"
#include "rondo/checkpoint/pickle.hpp"
#include "rondo/checkpoint/tensors.hpp"
#include "rondo/checkpoint/verify.hpp"
#include "rondo/state/digest.hpp"
#include "rondo/state/module.hpp"
#include "rondo/state/optimizer.hpp"
#include "rondo/state/random.hpp"
#include "support/catch.hpp"
#include "support/python.hpp"
#include "support/temporary_directory.hpp"
#include "support/training.hpp"

namespace checkpoint_tensors_test {

namespace {

using namespace rondo;
using checkpoint::reader;
using testing::temporary_directory;
using testing::training;

std::vector<std::byte> encode(const state::value& v) {
  const auto described = checkpoint::describe(v);
  std::vector<std::byte> file;
  checkpoint::encoder(described.tree, described.views(), {}).write([&](std::span<const std::byte> piece) {
    file.insert(file.end(), piece.begin(), piece.end());
  });
  return file;
}

reader encoded(const state::value& v) { return reader::from_bytes(encode(v), "memory"); }

void write(const std::filesystem::path& path, const state::value& v) {
  const auto file = encode(v);
  std::ofstream out(path, std::ios::binary);
  out.write(reinterpret_cast<const char*>(file.data()), static_cast<std::streamsize>(file.size()));
}

state::value read(const std::filesystem::path& path) {
  const auto file = reader::open(path);
  checkpoint::verify(file);
  return checkpoint::materialize(file);
}

const std::vector<at::ScalarType>& dtypes() {
  static const std::vector<at::ScalarType> all{at::kByte, at::kChar,         at::kShort,         at::kInt,
                                               at::kLong, at::kHalf,         at::kFloat,         at::kDouble,
                                               at::kBool, at::kComplexFloat, at::kComplexDouble, at::kBFloat16};
  return all;
}

TEST_CASE("a state is viewed where the file is", "[checkpoint][tensors]") {
  const auto base = torch::arange(24, torch::kFloat).view({4, 6});
  const state::value original = state::dict{{"base", base},
                                            {"transposed", base.t()},
                                            {"slice", base.slice(1, 1, 6, 2)},
                                            {"empty", torch::empty({0, 3})},
                                            {"list", state::list{1, "text", torch::ones({1}).expand({5})}}};
  const auto described = checkpoint::describe(original);
  const checkpoint::encoder file(described.tree, described.views(), {});
  std::vector<std::byte> image(file.size());
  file.write_frame(image);
  for (std::size_t i = 0; i < described.storages.size(); ++i) {
    const auto bytes = described.storages[i].data;
    std::ranges::copy(bytes, image.begin() + static_cast<std::ptrdiff_t>(file.storage_offset(i)));
  }
  // Nobody has computed the checksums of this one.
  const auto unsealed = reader::from_image(image, "memory");
  const auto viewed = checkpoint::view_state(unsealed);
  CHECK(state::equal(viewed, original));
  for (const char* name : {"base", "transposed", "slice"}) {
    const auto* first = static_cast<const std::byte*>(viewed.at(name).as<at::Tensor>().storage().data());
    CHECK(first > image.data());
    CHECK(first + base.nbytes() <= image.data() + image.size());
  }
  CHECK(viewed.at("base").as<at::Tensor>().is_alias_of(viewed.at("slice").as<at::Tensor>()));
}

TEST_CASE("a tree survives the file", "[checkpoint][tensors]") {
  state::dict dtype_samples;
  for (const auto type : dtypes())
    dtype_samples.insert_or_assign(c10::toString(type), torch::arange(6).view({2, 3}).to(type));
  const auto base = torch::arange(24, torch::kFloat).view({4, 6});
  const state::value original =
      state::dict{{"dtypes", dtype_samples},
                  {"scalar", torch::tensor(3.5)},
                  {"empty", torch::empty({0, 3})},
                  {"transposed", base.t()},
                  {"slice", base.slice(1, 1, 6, 2)},
                  {"expanded", torch::ones({1}).expand({5})},
                  {"conjugated", torch::conj(torch::complex(torch::ones(2), torch::ones(2)))},
                  {7, state::list{nullptr, true, -1, 0.1, "text", state::tuple{{1, torch::ones(2)}}}},
                  {"bytes", state::bytes{{std::byte{0}, std::byte{255}}}},
                  {"rng", state::random_state()}};
  const state::value again = checkpoint::materialize(encoded(original));
  CHECK(state::equal(again, original));
  CHECK(again.at("transposed").as<at::Tensor>().strides() == base.t().strides());
  CHECK(again.at("expanded").as<at::Tensor>().storage().nbytes() == sizeof(float));
}

TEST_CASE("undefined tensors become None", "[checkpoint][tensors]") {
  CHECK(state::equal(checkpoint::materialize(encoded(state::dict{{"a", at::Tensor()}})), state::dict{{"a", nullptr}}));
}

TEST_CASE("autograd is left behind", "[checkpoint][tensors]") {
  const auto weight = torch::ones({2}, torch::requires_grad());
  const auto again = checkpoint::materialize(encoded(weight * 2));
  CHECK_FALSE(again.as<at::Tensor>().requires_grad());
  CHECK(torch::equal(again.as<at::Tensor>(), torch::full({2}, 2.0)));
}

TEST_CASE("a shared storage is stored once and shared again", "[checkpoint][tensors]") {
  const auto base = torch::arange(10, torch::kFloat);
  const state::value v = state::dict{{"whole", base}, {"part", base.slice(0, 2, 5)}, {"other", torch::ones(3)}};
  const auto described = checkpoint::describe(v);
  REQUIRE(described.storages.size() == 2);
  CHECK(described.storages[0].name == "whole");
  CHECK(described.storages[0].data.data() == base.data_ptr());
  CHECK(described.storages[0].data.size() == 40);
  CHECK(described.storages[1].name == "other");

  const auto again = checkpoint::materialize(encoded(v));
  again.at("whole").as<at::Tensor>().fill_(-1);
  CHECK(torch::equal(again.at("part").as<at::Tensor>(), torch::full({3}, -1.0)));
}

TEST_CASE("one storage under two dtypes is stored under each", "[checkpoint][tensors]") {
  const auto base = torch::arange(3, torch::kInt);
  const state::value v =
      state::dict{{"int", base}, {"float", base.view(torch::kFloat)}, {"byte", base.view(torch::kByte)}};
  CHECK(checkpoint::describe(v).storages.size() == 3);
  CHECK(state::equal(checkpoint::materialize(encoded(v)), v));
}

TEST_CASE("a description shows live memory", "[checkpoint][tensors]") {
  auto t = torch::zeros({4});
  const auto described = checkpoint::describe(state::dict{{"t", t}});
  const checkpoint::encoder encoder(described.tree, described.views(), {});
  t.fill_(3);
  std::vector<std::byte> file;
  encoder.write([&](std::span<const std::byte> piece) { file.insert(file.end(), piece.begin(), piece.end()); });
  const auto again = checkpoint::materialize(reader::from_bytes(file, "memory"));
  CHECK(torch::equal(again.at("t").as<at::Tensor>(), torch::full({4}, 3.0)));
}

TEST_CASE("tensors own their memory after the reader is gone", "[checkpoint][tensors]") {
  state::value tree;
  at::Tensor single;
  {
    const auto file = encoded(state::dict{{"t", torch::arange(1000)}});
    tree = checkpoint::materialize(file);
    single = checkpoint::load_tensor(file, "t");
  }
  CHECK(torch::equal(tree.at("t").as<at::Tensor>(), torch::arange(1000)));
  CHECK(torch::equal(single, torch::arange(1000)));
}

TEST_CASE("single tensors are found by their dotted names", "[checkpoint][tensors]") {
  const auto base = torch::arange(12, torch::kFloat).view({3, 4});
  const auto file = encoded(state::dict{
      {"models", state::dict{{"main", state::dict{{"0.weight", base.t()}, {"0", 1}}}}},
      {"optimizers", state::dict{{"main", state::dict{{"state", state::dict{{3, state::dict{{"exp_avg", base}}}}}}}}},
      {"list", state::list{state::tuple{{1, torch::ones(2)}}}},
      {"a", state::dict{{"b", torch::zeros(1)}}},
      {"a.b", state::dict{{"c", torch::ones(1)}}},
      {"empty", torch::empty({0, 4})}});
  const auto weight = checkpoint::load_tensor(file, "models.main.0.weight");
  CHECK(torch::equal(weight, base.t()));
  CHECK(weight.is_contiguous());
  CHECK(torch::equal(checkpoint::load_tensor(file, "optimizers.main.state.3.exp_avg"), base));
  CHECK(torch::equal(checkpoint::load_tensor(file, "list.0.1"), torch::ones(2)));
  CHECK(torch::equal(checkpoint::load_tensor(file, "a.b.c"), torch::ones(1)));
  CHECK(checkpoint::load_tensor(file, "empty").sizes() == at::IntArrayRef({0, 4}));

  for (const char* absent :
       {"models.main.1.weight", "list.1", "list.-1", "models.main.0", "models", "", "x", ".", "a.b."}) {
    CAPTURE(absent);
    CHECK_THROWS_AS(checkpoint::load_tensor(file, absent), state_error);
  }
}

TEST_CASE("a tensor that no file can hold is named", "[checkpoint][tensors]") {
  const auto key_of = [](const at::Tensor& bad) {
    try {
      static_cast<void>(checkpoint::describe(state::dict{{"models", state::list{1, state::dict{{"w", bad}}}}}));
    } catch (const state_error& e) {
      return e.key();
    }
    return std::string("accepted");
  };
  CHECK(key_of(torch::eye(2).to_sparse()) == "models.1.w");
  CHECK(key_of(torch::quantize_per_tensor(torch::ones(2), 0.1, 0, torch::kQInt8)) == "models.1.w");
  CHECK(key_of(torch::empty({2}, torch::kComplexHalf)) == "models.1.w");
  CHECK(key_of(torch::empty({2}, torch::device(torch::kMeta))) == "models.1.w");
}

/// A file that the encoder would refuse to write: sound in itself, but its tensors do not fit its storages.
std::vector<std::byte> inconsistent_file(const checkpoint::tree& tree, std::span<const std::byte> storage) {
  const auto pickle = checkpoint::encode_pickle(tree);
  const std::string version_text = "3\n";
  const std::vector<std::pair<std::string, std::span<const std::byte>>> contents{
      {"data.pkl", pickle}, {"data/0", storage}, {"version", std::as_bytes(std::span(version_text))}};
  std::vector<checkpoint::record_size> sizes;
  std::vector<std::uint32_t> checksums;
  for (const auto& [name, data] : contents) {
    sizes.push_back({name, data.size()});
    checksums.push_back(checkpoint::crc32(data));
  }
  const checkpoint::plan plan("archive", sizes);
  std::vector<std::byte> file;
  for (std::size_t i = 0; i < contents.size(); ++i) {
    plan.append_header(file, plan.records()[i]);
    file.insert(file.end(), contents[i].second.begin(), contents[i].second.end());
    plan.append_descriptor(file, plan.records()[i], checksums[i]);
  }
  plan.append_directory(file, checksums);
  return file;
}

TEST_CASE("a view beyond its storage is refused, even where an earlier view was sound", "[checkpoint][tensors]") {
  const checkpoint::tensor_descriptor sound{checkpoint::scalar_type::float32, "0", 4, 0, {4}, {1}};
  const checkpoint::tensor_descriptor too_large{checkpoint::scalar_type::float32, "0", 8, 0, {8}, {1}};
  const std::vector<std::byte> sixteen_bytes(16);

  const auto good = reader::from_bytes(inconsistent_file(checkpoint::tree::dict{{"a", sound}}, sixteen_bytes), "good");
  CHECK(torch::equal(checkpoint::materialize(good).at("a").as<at::Tensor>(), torch::zeros(4)));

  const auto bad = reader::from_bytes(
      inconsistent_file(checkpoint::tree::dict{{"a", sound}, {"b", too_large}}, sixteen_bytes), "bad");
  CHECK_THROWS_AS(checkpoint::materialize(bad), format_error);
  CHECK_THROWS_AS(checkpoint::load_tensor(bad, "b"), format_error);
  CHECK(torch::equal(checkpoint::load_tensor(bad, "a"), torch::zeros(4)));
}

TEST_CASE("100,000 tensors are described in bounded time", "[checkpoint][tensors]") {
  state::dict many;
  const auto shared = torch::zeros({1});
  for (int i = 0; i < 100'000; ++i) many.insert_or_assign("layer." + std::to_string(i) + ".weight", shared.detach());
  const auto described = checkpoint::describe(many);
  CHECK(described.storages.size() == 1);
  CHECK(described.tree.as<checkpoint::tree::dict>().size() == 100'000);
}

// ---- Python as the judge ----

const std::string python_prelude = R"(
import collections, sys, torch
import torch.nn as nn
from torch.optim import *
torch.set_num_threads(1)
folder = sys.argv[1]
)";

TEST_CASE("Python reads what is written", "[checkpoint][tensors][python]") {
  const temporary_directory folder;
  state::dict dtype_samples;
  for (const auto type : dtypes()) dtype_samples.insert_or_assign(c10::toString(type), torch::arange(6).to(type));
  const auto base = torch::arange(24, torch::kFloat).view({4, 6});
  write(folder / "cpp.pt", state::dict{{"dtypes", dtype_samples},
                                       {"base", base},
                                       {"slice", base.slice(1, 1, 6, 2)},
                                       {"transposed", base.t()},
                                       {"list", state::list{nullptr, true, 5, 0.5, "tëxt"}},
                                       {3, state::tuple{{1, 2}}},
                                       {"empty", torch::empty({0, 3})}});
  const auto result = testing::run_python(python_prelude + R"(
d = torch.load(folder + '/cpp.pt')
assert list(d) == ['dtypes', 'base', 'slice', 'transposed', 'list', 3, 'empty'], list(d)
assert [t.dtype for t in d['dtypes'].values()] == [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.float32, torch.float64, torch.bool, torch.complex64, torch.complex128, torch.bfloat16]
for t in d['dtypes'].values():
    assert torch.equal(t, torch.arange(6).to(t.dtype)), t
base = torch.arange(24.).view(4, 6)
assert torch.equal(d['base'], base) and torch.equal(d['transposed'], base.t())
assert torch.equal(d['slice'], base[:, 1:6:2])
assert d['slice'].storage().data_ptr() == d['base'].storage().data_ptr()
assert d['list'] == [None, True, 5, 0.5, 't\u00ebxt'] and d[3] == (1, 2)
assert d['empty'].shape == (0, 3)
)",
                                          {folder.path().string()});
  INFO(result.output);
  CHECK(result.status == 0);
}

TEST_CASE("what Python writes is read", "[checkpoint][tensors][python]") {
  const temporary_directory folder;
  const auto result = testing::run_python(python_prelude + R"(
base = torch.arange(24.).view(4, 6)
torch.manual_seed(3)
torch.save(collections.OrderedDict([
    ('dtypes', {str(t): torch.arange(6).to(t) for t in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
        torch.float16, torch.float32, torch.float64, torch.bool, torch.complex64, torch.complex128, torch.bfloat16)}),
    ('base', base), ('slice', base[:, 1:6:2]), ('parameter', nn.Parameter(torch.ones(2))),
    ('plain', [None, True, 2**40, -1, 0.5, 'text', b'ab', (1,)]), ('model', nn.BatchNorm1d(2).state_dict()),
    ('rng', torch.get_rng_state())]), folder + '/python.pt')
torch.save(torch.randn(37), folder + '/numbers.pt')
)",
                                          {folder.path().string()});
  INFO(result.output);
  REQUIRE(result.status == 0);
  const auto v = read(folder / "python.pt");
  for (const auto& [name, t] : v.at("dtypes").as<state::dict>()) {
    const auto& tensor = t.as<at::Tensor>();
    CAPTURE(name.str());
    CHECK(torch::equal(tensor, torch::arange(6).to(tensor.scalar_type())));
  }
  CHECK(v.at("dtypes").as<state::dict>().size() == dtypes().size());
  CHECK(v.at("slice").as<at::Tensor>().is_alias_of(v.at("base").as<at::Tensor>()));
  CHECK(torch::equal(v.at("parameter").as<at::Tensor>(), torch::ones(2)));
  CHECK(state::equal(v.at("plain"), state::list{nullptr, true, std::int64_t{1} << 40, -1, 0.5, "text",
                                                state::bytes{{std::byte{'a'}, std::byte{'b'}}}, state::tuple{{1}}}));
  torch::nn::BatchNorm1d norm(2);
  norm->weight.detach().fill_(9);
  state::load_module_state(*norm, v.at("model"));
  CHECK(torch::equal(norm->weight, torch::ones(2)));

  const state::value before = state::clone(state::random_state());
  state::load_random_state(state::dict{{"cpu", v.at("rng")}});
  CHECK(state::equal(torch::randn(37), read(folder / "numbers.pt")));
  state::load_random_state(before);
}

/// One thread, so that sums are the same everywhere.
struct one_thread {
  one_thread() { at::set_num_threads(1); }
  ~one_thread() { at::set_num_threads(before); }
  int before = at::get_num_threads();
};

state::value everything(const training& t) {
  return state::dict{{"model", state::module_state(*t.model)}, {"optimizer", state::optimizer_state(*t.optimizer)}};
}

training restored(const testing::optimizer_case& kind, const state::value& v) {
  training t(kind, /*seed=*/99);
  state::load_module_state(*t.model, v.at("model"));
  state::load_optimizer_state(*t.optimizer, v.at("optimizer"));
  return t;
}

TEST_CASE("training moves between C++ and Python without losing a bit", "[checkpoint][tensors][python]") {
  const one_thread guard;
  const temporary_directory folder;
  const auto& cases = testing::optimizer_cases();
  const auto file = [&](std::size_t i, const char* name) { return folder / (std::to_string(i) + name); };

  std::vector<state::value> cpp_six;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    training t(cases[i]);
    auto start = everything(t);
    auto& root = start.as<state::dict>();
    root["python"] = cases[i].python;
    root["input"] = t.input;
    root["target"] = t.target;
    write(file(i, "_start.pt"), start);
    t.steps(3);
    write(file(i, "_cpp3.pt"), everything(t));
    t.steps(3);
    cpp_six.push_back(state::clone(everything(t)));
  }

  const auto result = testing::run_python(python_prelude + R"(
for i in range(int(sys.argv[2])):
    start = torch.load(f'{folder}/{i}_start.pt')
    def training(state):
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        model.load_state_dict(state['model'])
        first, second = list(model.parameters())[:2], list(model.parameters())[2:]
        optimizer = eval(start['python'])
        if 'optimizer' in state:
            optimizer.load_state_dict(state['optimizer'])
        return model, optimizer
    def steps(model, optimizer, count, name):
        def closure():
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(start['input']), start['target'])
            loss.backward()
            return loss
        for _ in range(count):
            optimizer.step(closure)
        torch.save({'model': model.state_dict(), 'optimizer': optimizer.state_dict()}, f'{folder}/{i}_{name}.pt')
    steps(*training(torch.load(f'{folder}/{i}_cpp3.pt')), 3, 'cpp3py3')
    run = training({'model': start['model']})
    steps(*run, 3, 'py3')
    steps(*run, 3, 'py6')
)",
                                          {folder.path().string(), std::to_string(cases.size())});
  INFO(result.output);
  REQUIRE(result.status == 0);
  REQUIRE(cases.size() == 9);

  std::size_t compared_exactly = 0;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    CAPTURE(cases[i].name);
    const auto python_six = restored(cases[i], read(file(i, "_py6.pt")));
    const auto continued_by_python = restored(cases[i], read(file(i, "_cpp3py3.pt")));
    auto continued_by_cpp = restored(cases[i], read(file(i, "_py3.pt")));
    continued_by_cpp.steps(3);

    // Some optimizers round differently in Python and in C++ (LibTorch 2's Adam: Python averages with lerp_), so that
    // their runs differ in the last bits even where nothing is handed over.
    if (state::digest_of(everything(python_six)) == state::digest_of(cpp_six[i])) {
      ++compared_exactly;
      CHECK(state::digest_of(everything(continued_by_python)) == state::digest_of(cpp_six[i]));
      CHECK(state::digest_of(everything(continued_by_cpp)) == state::digest_of(everything(python_six)));
    } else {
      const auto weight = cpp_six[i].at("model").at("0.weight").as<at::Tensor>();
      CHECK(torch::allclose(continued_by_python.model->parameters()[0], weight, 1e-3, 1e-4));
      CHECK(torch::allclose(continued_by_cpp.model->parameters()[0], weight, 1e-3, 1e-4));
    }
  }
  CHECK(compared_exactly >= 4);  // SGD, Adagrad and plain LBFGS round alike in all of LibTorch 1.13 to 2.6
}

}  // namespace

}  // namespace checkpoint_tensors_test

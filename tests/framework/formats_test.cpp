#include "rondo/extensions/snapshot/formats.hpp"

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adam.h>
#include <torch/types.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "rondo/data/data.hpp"
#include "rondo/event/interval.hpp"
#include "rondo/extensions/snapshot/snapshot.hpp"
#include "rondo/loop/loop.hpp"
#include "rondo/state/digest.hpp"
#include "rondo/state/module.hpp"
#include "rondo/state/optimizer.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"
#include "support/python.hpp"
#include "support/temporary_directory.hpp"

namespace formats_test {

using namespace rondo;
using namespace rondo::literals;
using rondo::testing::message_of;
using rondo::testing::temporary_directory;
namespace fs = std::filesystem;

namespace {

struct outcome {
  run_result result;
  std::string digest;  ///< of model and optimizer
};

/// Trains a line to `iterations` with safetensors snapshots every 2.
outcome train(const fs::path& out, std::int64_t iterations) {
  torch::manual_seed(3);
  const auto x = torch::rand({32, 1});
  torch::nn::Linear model(1, 1);
  auto optimizer = std::make_shared<torch::optim::Adam>(model->parameters(), torch::optim::AdamOptions(0.05));
  rondo::loop loop(model, optimizer, data::tensor_dataset(x, 2 * x + 1) | data::shuffle(7) | data::batch(4),
                   torch::nn::functional::mse_loss, {.max_iterations = iterations, .out = out});
  loop | snapshot({.savefun = formats::safetensors(),
                   .loadfun = formats::load_safetensors,
                   .filename = "snapshot_iter_{iteration}.safetensors",
                   .n_retains = 2,
                   .autoload = true})
             .triggered(every(2_iterations));
  const auto result = loop.run();
  return {result,
          state::digest_of(state::dict{{"m", state::module_state(*model)}, {"o", state::optimizer_state(*optimizer)}})};
}

}  // namespace

TEST_CASE("training resumes exactly from safetensors snapshots", "[snapshot][formats]") {
  const temporary_directory out;
  const temporary_directory other;
  train(out.path(), 6);
  CHECK(fs::exists(out / "snapshot_iter_6.safetensors"));
  CHECK(fs::exists(out / "snapshot_iter_4.safetensors"));
  CHECK_FALSE(fs::exists(out / "snapshot_iter_2.safetensors"));
  const auto resumed = train(out.path(), 12);
  CHECK(resumed.result.resumed_from == out / "snapshot_iter_6.safetensors");
  const auto straight = train(other.path(), 12);
  CHECK_FALSE(straight.result.resumed_from.has_value());
  CHECK(resumed.digest == straight.digest);
}

TEST_CASE("a state survives a safetensors file", "[snapshot][formats]") {
  const temporary_directory folder;
  state::dict dtypes;
  for (const auto type : {at::kByte, at::kChar, at::kShort, at::kInt, at::kLong, at::kHalf, at::kFloat, at::kDouble,
                          at::kBool, at::kComplexFloat, at::kBFloat16})
    dtypes.insert_or_assign(c10::toString(type), torch::arange(6).view({2, 3}).to(type));
  const auto base = torch::arange(24, torch::kFloat).view({4, 6});
  const state::value v =
      state::dict{{"dtypes", dtypes},
                  {"views", state::list{base, base.t(), base.slice(1, 1, 6, 2), torch::ones({1}).expand({5}),
                                        torch::conj(torch::complex(torch::ones(2), torch::ones(2)))}},
                  {"empty", torch::empty({0, 3})},
                  {"scalar", torch::tensor(3.5)},
                  {7, state::list{nullptr, true, -1, 0.1, "text", state::tuple{{1, torch::ones(2)}}}},
                  {"bytes", state::bytes{{std::byte{0}, std::byte{255}}}}};
  const auto path = folder / "a.safetensors";
  formats::safetensors({{"note", "kept"}})(path, v);
  const auto again = formats::load_safetensors(path);
  CHECK(state::equal(again, v));
  CHECK(again.at("views").as<state::list>()[1].as<at::Tensor>().is_contiguous());
  CHECK(checkpoint::safetensors_file::open(path).metadata().at("note") == "kept");
  // Nothing is written over.
  CHECK_THROWS_AS(formats::safetensors()(path, v), io_error);
}

TEST_CASE("what safetensors cannot hold is named", "[snapshot][formats]") {
  const temporary_directory folder;
  const state::value v = state::dict{{"a", state::dict{{"w", torch::zeros({2}, torch::kComplexDouble)}}}};
  const auto message = message_of<state_error>([&] { formats::safetensors()(folder / "x", v); });
  CHECK(rondo::testing::contains(message, "a.w"));
  CHECK(rondo::testing::contains(message, "complex128"));
  CHECK_FALSE(fs::exists(folder / "x"));
}

TEST_CASE("a file from elsewhere is a dict of tensors", "[snapshot][formats][python]") {
  const temporary_directory folder;
  const auto result = rondo::testing::run_python(R"(
import json, struct, sys, torch
weight, bias = torch.arange(6.).view(2, 3), torch.arange(2).to(torch.bfloat16)
header = json.dumps({'0.weight': {'dtype': 'F32', 'shape': [2, 3], 'data_offsets': [4, 28]},
                     '0.bias': {'dtype': 'BF16', 'shape': [2], 'data_offsets': [0, 4]}}).encode()
with open(sys.argv[1], 'wb') as f:
    f.write(struct.pack('<Q', len(header)) + header)
    f.write(bias.view(torch.int16).numpy().tobytes() + weight.numpy().tobytes())
)",
                                                 {(folder / "a").string()});
  INFO(result.output);
  REQUIRE(result.status == 0);
  const auto v = formats::load_safetensors(folder / "a");
  CHECK(v.as<state::dict>().size() == 2);
  CHECK(torch::equal(v.at("0.weight").as<at::Tensor>(), torch::arange(6, torch::kFloat).view({2, 3})));
  CHECK(torch::equal(v.at("0.bias").as<at::Tensor>(), torch::arange(2).to(torch::kBFloat16)));

  std::ofstream(folder / "b", std::ios::binary) << "not safetensors";
  CHECK_THROWS_AS(formats::load_safetensors(folder / "b"), format_error);
  CHECK_THROWS_AS(formats::load_safetensors(folder / "c"), io_error);
}

}  // namespace formats_test

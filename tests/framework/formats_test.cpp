#include "rondo/extensions/snapshot/formats.hpp"

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adam.h>
#include <torch/types.h>

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

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

/// Trains a line to `iterations` with snapshots by `writer` every 2.
outcome train(const fs::path& out, std::int64_t iterations, std::shared_ptr<writing::writer> writer) {
  torch::manual_seed(3);
  const auto x = torch::rand({32, 1});
  torch::nn::Linear model(1, 1);
  auto optimizer = std::make_shared<torch::optim::Adam>(model->parameters(), torch::optim::AdamOptions(0.05));
  rondo::loop loop(model, optimizer, data::tensor_dataset(x, 2 * x + 1) | data::shuffle(7) | data::batch(4),
                   torch::nn::functional::mse_loss, {.max_iterations = iterations, .out = out});
  loop |
      snapshot(
          {.filename = "snapshot_iter_{iteration}.bin", .n_retains = 2, .autoload = true, .writer = std::move(writer)})
          .triggered(every(2_iterations));
  const auto result = loop.run();
  return {result,
          state::digest_of(state::dict{{"m", state::module_state(*model)}, {"o", state::optimizer_state(*optimizer)}})};
}

}  // namespace

TEST_CASE("training resumes exactly from snapshots of every format", "[snapshot][formats]") {
  const auto format =
      GENERATE(values({formats::checkpoint(), formats::safetensors(), formats::zstd(formats::checkpoint()),
                       formats::zstd(formats::safetensors(), 19, 2)}));
  const std::string kind = GENERATE("simple", "thread", "thread_queue");
  const auto writer = [&]() -> std::shared_ptr<writing::writer> {
    if (kind == "simple") return writers::simple({.savefun = format});
    if (kind == "thread") return writers::thread({.savefun = format});
    return writers::thread_queue({.savefun = format});
  };
  const temporary_directory out;
  const temporary_directory other;
  train(out.path(), 6, writer());
  CHECK(fs::exists(out / "snapshot_iter_6.bin"));
  CHECK(fs::exists(out / "snapshot_iter_4.bin"));
  CHECK_FALSE(fs::exists(out / "snapshot_iter_2.bin"));
  const auto resumed = train(out.path(), 12, writer());
  CHECK(resumed.result.resumed_from == out / "snapshot_iter_6.bin");
  const auto straight = train(other.path(), 12, writer());
  CHECK_FALSE(straight.result.resumed_from.has_value());
  CHECK(resumed.digest == straight.digest);
}

TEST_CASE("a damaged file of a format is passed over for the one before", "[snapshot][formats]") {
  const temporary_directory out;
  const auto writer = [] { return writers::thread({.savefun = formats::zstd(formats::safetensors())}); };
  train(out.path(), 6, writer());
  fs::resize_file(out / "snapshot_iter_6.bin", fs::file_size(out / "snapshot_iter_6.bin") - 5);
  CHECK(train(out.path(), 8, writer()).result.resumed_from == out / "snapshot_iter_4.bin");
}

TEST_CASE("the format of Rondo's own is what writers write by themselves", "[snapshot][formats]") {
  CHECK(writers::thread({.savefun = formats::checkpoint()})->own_format() == nullptr);
  CHECK(writers::thread({.savefun = formats::safetensors()})->own_format() != nullptr);
}

TEST_CASE("a compressed state is smaller, and every damage is seen", "[snapshot][formats]") {
  const temporary_directory folder;
  const state::value v =
      state::dict{{"_start_iteration", 7}, {"w", torch::arange(100'000).remainder(7).to(at::kFloat)}};
  const auto content = GENERATE(values({formats::checkpoint(), formats::safetensors()}));
  const auto format = formats::zstd(content, GENERATE(-5, 3), GENERATE(1, 2));
  const auto path = folder / "a.zst";
  format.save(path, v);
  CHECK(state::equal(format.load(path), v));
  CHECK(fs::file_size(path) < 100'000);

  std::vector<char> file(fs::file_size(path));
  std::ifstream(path, std::ios::binary).read(file.data(), static_cast<std::streamsize>(file.size()));
  CHECK(std::string_view(file.data(), 4) == "\x28\xb5\x2f\xfd");
  const auto loads = [&](const std::vector<char>& changed) {
    const auto* const first = reinterpret_cast<const std::byte*>(changed.data());
    return format.parse(std::vector<std::byte>(first, first + changed.size()), "changed");
  };
  // A few bits of a compressed file mean nothing; whatever changes the content is seen.
  int seen = 0;
  for (std::size_t at = 0; at < file.size(); at += 1 + file.size() / 97) {
    auto changed = file;
    changed[at] = static_cast<char>(changed[at] ^ 1);
    try {
      const auto loaded = loads(changed);
      CHECK(state::equal(loaded, v));
    } catch (const format_error&) {
      ++seen;
    }
    CHECK_THROWS_AS(loads({file.begin(), file.begin() + static_cast<std::ptrdiff_t>(at)}), format_error);
  }
  CHECK(seen > 50);
  auto longer = file;
  longer.push_back('x');
  CHECK_THROWS_AS(loads(longer), format_error);
}

TEST_CASE("levels that there are not are refused", "[snapshot][formats]") {
  CHECK_THROWS_AS(formats::zstd(formats::safetensors(), 0), option_error);
  CHECK_THROWS_AS(formats::zstd(formats::safetensors(), 23), option_error);
  CHECK_THROWS_AS(formats::zstd(formats::safetensors(), 3, 0), option_error);
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
  formats::safetensors({{"note", "kept"}}).save(path, v);
  const auto again = formats::safetensors().load(path);
  CHECK(state::equal(again, v));
  CHECK(again.at("views").as<state::list>()[1].as<at::Tensor>().is_contiguous());
  CHECK(checkpoint::safetensors_file::open(path).metadata().at("note") == "kept");
  // Nothing is written over.
  CHECK_THROWS_AS(formats::safetensors().save(path, v), io_error);
}

TEST_CASE("what safetensors cannot hold is named", "[snapshot][formats]") {
  const temporary_directory folder;
  const state::value v = state::dict{{"a", state::dict{{"w", torch::zeros({2}, torch::kComplexDouble)}}}};
  const auto message = message_of<state_error>([&] { formats::safetensors().save(folder / "x", v); });
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
  const auto v = formats::safetensors().load(folder / "a");
  CHECK(v.as<state::dict>().size() == 2);
  CHECK(torch::equal(v.at("0.weight").as<at::Tensor>(), torch::arange(6, torch::kFloat).view({2, 3})));
  CHECK(torch::equal(v.at("0.bias").as<at::Tensor>(), torch::arange(2).to(torch::kBFloat16)));

  std::ofstream(folder / "b", std::ios::binary) << "not safetensors";
  CHECK_THROWS_AS(formats::safetensors().load(folder / "b"), format_error);
  CHECK_THROWS_AS(formats::safetensors().load(folder / "c"), io_error);
}

}  // namespace formats_test

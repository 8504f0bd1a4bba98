#include "rondo/extensions/snapshot/formats.hpp"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adam.h>
#include <torch/serialize.h>
#include <torch/types.h>

#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rondo/async/signals.hpp"
#include "rondo/data/data.hpp"
#include "rondo/event/interval.hpp"
#include "rondo/extensions/snapshot/snapshot.hpp"
#include "rondo/loop/loop.hpp"
#include "rondo/state/digest.hpp"
#include "rondo/state/module.hpp"
#include "rondo/state/optimizer.hpp"
#include "rondo/writing/atomic_file.hpp"
#include "support/catch.hpp"
#include "support/counting_loop.hpp"
#include "support/messages.hpp"
#include "support/python.hpp"
#include "support/temporary_directory.hpp"

namespace formats_test {

using namespace rondo;
using namespace rondo::literals;
using rondo::testing::contains;
using rondo::testing::counting;
using rondo::testing::message_of;
using rondo::testing::temporary_directory;
namespace fs = std::filesystem;

namespace {

struct outcome {
  run_result result;
  std::string digest;  ///< of model and optimizer
};

std::vector<formats::format> all_formats() {
  return {formats::checkpoint(), formats::libtorch(), formats::safetensors(), formats::zstd(formats::checkpoint()),
          formats::zstd(formats::safetensors(), 19, 2)};
}

const std::vector<std::string> all_writers{"simple", "thread", "thread_queue", "process", "process_queue"};

std::shared_ptr<writing::writer> make(const std::string& kind, writing::savefun savefun) {
  if (kind == "simple") return writers::simple({.savefun = std::move(savefun)});
  if (kind == "thread") return writers::thread({.savefun = std::move(savefun)});
  if (kind == "thread_queue") return writers::thread_queue({.savefun = std::move(savefun)});
  if (kind == "process") return writers::process({.savefun = std::move(savefun)});
  return writers::process_queue({.savefun = std::move(savefun)});
}

/// The one number that all elements of the model of a `counting` are; -1 when they differ.
double the_number_of(const state::value& loaded) {
  const auto& model = loaded.at("models").at("main").as<state::dict>();
  const auto number = model.begin()->second.as<at::Tensor>().min().item<double>();
  for (const auto& [name, value] : model)
    if (!value.as<at::Tensor>().eq(number).all().item<bool>()) return -1;
  return number;
}

std::vector<char> chars_of(const fs::path& path) {
  std::vector<char> file(fs::file_size(path));
  std::ifstream(path, std::ios::binary).read(file.data(), static_cast<std::streamsize>(file.size()));
  return file;
}

/// What LibTorch has read, as a state.
state::value state_of(const c10::IValue& read) {
  if (read.isNone()) return nullptr;
  if (read.isBool()) return read.toBool();
  if (read.isInt()) return read.toInt();
  if (read.isDouble()) return read.toDouble();
  if (read.isString()) return read.toStringRef();
  if (read.isTensor()) return read.toTensor();
  if (read.isTuple()) {
    state::tuple items;
    for (const auto& item : read.toTupleRef().elements()) items.items.push_back(state_of(item));
    return items;
  }
  if (read.isList()) {
    state::list items;
    for (const auto& item : read.toListRef()) items.push_back(state_of(item));
    return items;
  }
  state::dict items;
  for (const auto& item : read.toGenericDict()) {
    const auto& key = item.key();
    items.insert_or_assign(key.isInt() ? state::key(key.toInt()) : state::key(key.toStringRef()),
                           state_of(item.value()));
  }
  return items;
}

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
  const auto format = GENERATE(from_range(all_formats()));
  const std::string kind = GENERATE(from_range(all_writers));
  const auto writer = [&] { return make(kind, format); };
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

TEST_CASE("what a format is given is one instant", "[snapshot][formats]") {
  // More of them make the same sure more often.
  const char* const wanted = std::getenv("RONDO_TEST_SNAPSHOTS");
  const std::int64_t iterations = wanted == nullptr ? 12 : std::stoll(wanted);
  const auto format = GENERATE(from_range(all_formats()));
  const std::string kind = GENERATE(from_range(all_writers));
  const temporary_directory dir;
  const counting training(3, 20'000);
  auto loop = training.loop(dir.path(), iterations);
  loop | snapshot({.writer = make(kind, format)}).triggered(every(1_iterations));
  REQUIRE(loop.run().iteration == iterations);
  for (std::int64_t i = 1; i <= iterations; ++i) {
    const auto loaded = format.load(dir / ("snapshot_iter_" + std::to_string(i)));
    REQUIRE(loaded.get<std::int64_t>("_start_iteration") == i);
    REQUIRE(the_number_of(loaded) == static_cast<double>(i));
  }
}

TEST_CASE("trains until its snapshot is on its way, and dies", "[.][formats_trainer]") {
  const char* const out = std::getenv("RONDO_TEST_OUT");
  const char* const kind = std::getenv("RONDO_TEST_KIND");
  const char* const number = std::getenv("RONDO_TEST_FORMAT");
  REQUIRE((out != nullptr && kind != nullptr && number != nullptr));
  const counting training(3, 2'000'000);
  auto loop = training.loop(out, 1'000'000'000);
  loop | snapshot({.writer = make(kind, all_formats().at(std::stoul(number)))}).triggered(rondo::at({3_iterations})) |
      make_extension("dies", [&](context& ctx) {
        ctx.on<event::iteration_completed>([&] {
          for (const auto& entry : fs::directory_iterator(out))
            if (entry.path().filename().string().find("snapshot_iter_3") != std::string::npos) ::raise(SIGKILL);
        });
      });
  loop.run();
}

TEST_CASE("what was handed to a process in any format is saved although the trainer is killed",
          "[snapshot][formats][kill]") {
  const auto number = GENERATE(range(std::size_t{0}, all_formats().size()));
  const std::string kind = GENERATE("process", "process_queue");
  const temporary_directory dir;
  const auto program = fs::read_symlink("/proc/self/exe").string();
  const auto command = "RONDO_TEST_OUT='" + dir.path().string() + "' RONDO_TEST_KIND=" + kind +
                       " RONDO_TEST_FORMAT=" + std::to_string(number) + " exec '" + program +
                       "' '[formats_trainer]' >/dev/null 2>&1";
  const int status = std::system(command.c_str());
  REQUIRE(WIFSIGNALED(status));
  REQUIRE(WTERMSIG(status) == SIGKILL);
  REQUIRE(
      writing::wait_for_live_temporaries(*writing::posix_file_system(), dir.path(), std::chrono::minutes(2)).empty());
  REQUIRE(fs::exists(dir / "snapshot_iter_3"));
  CHECK(the_number_of(all_formats()[number].load(dir / "snapshot_iter_3")) == 3.0);
}

TEST_CASE("a disk that takes no more of a format is an error of the writer", "[snapshot][formats][error]") {
  const auto format = GENERATE(from_range(all_formats()));
  // Others have their memory under the same limit; they are watched from outside, by tools/snapshot_syscalls_test.py.
  const std::string kind = GENERATE("simple", "thread", "thread_queue");
  const temporary_directory dir;
  const counting training(2, 100'000);
  auto loop = training.loop(dir.path(), 3);
  loop | snapshot({.writer = make(kind, format)}).triggered(every(1_iterations));
  struct rlimit before {};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  const rondo::ignored_signals no_signal({SIGXFSZ});
  const struct rlimit little { 1'000, before.rlim_max };
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &little) == 0);
  const auto text = message_of<io_error>([&] { loop.run(); });
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &before) == 0);
  CHECK(contains(text, "snapshot_iter_1"));
  CHECK(contains(text, "File too large"));
  for (const auto& entry : fs::directory_iterator(dir.path())) CHECK(entry.path().filename() == ".rondo.lock");
}

TEST_CASE("what a format cannot hold is an error of every writer", "[snapshot][formats][error]") {
  const std::string kind = GENERATE(from_range(all_writers));
  const temporary_directory dir;
  const auto failure = [&](const formats::format& format, const state::value& part) {
    return message_of<state_error>([&] {
      const counting training;
      auto loop = training.loop(dir.path(), 2);
      struct odd {
        state::value held;
        [[nodiscard]] state::value state_dict() const { return held; }
        void load_state_dict(const state::value&) {}
      } held{part};
      loop.remember("odd", held);
      loop | snapshot({.writer = make(kind, format)}).triggered(every(1_iterations));
      loop.run();
    });
  };
  const auto bytes = state::dict{{"b", state::bytes{{std::byte{1}}}}};
  const auto wide = state::dict{{"w", torch::zeros({2}, torch::kComplexDouble)}};
  CHECK(contains(failure(formats::libtorch(), bytes), "odd.b"));
  CHECK(contains(failure(formats::zstd(formats::libtorch()), bytes), "LibTorch has no bytes"));
  CHECK(contains(failure(formats::safetensors(), wide), "odd.w"));
  CHECK_FALSE(fs::exists(dir / "snapshot_iter_1"));
}

TEST_CASE("LibTorch by itself reads its format, and Python does", "[snapshot][formats][python]") {
  const temporary_directory dir;
  std::vector<std::string> files;
  for (const auto& kind : all_writers) {
    train(dir / kind, 4, make(kind, formats::libtorch()));
    const auto path = dir / kind / "snapshot_iter_4.bin";
    CHECK(state::equal(state_of(torch::pickle_load(chars_of(path))), formats::libtorch().load(path)));
    files.push_back(path.string());
  }
  const auto result = rondo::testing::run_python(R"(
import sys, torch
for path in sys.argv[1:]:
    state = torch.load(path)
    assert state['_start_iteration'] == 4, state
    assert state['models']['main']['weight'].shape == (1, 1), state
)",
                                                 files);
  INFO(result.output);
  CHECK(result.status == 0);
}

TEST_CASE("every kind of value that LibTorch has comes back from its own reader", "[snapshot][formats]") {
  const temporary_directory folder;
  const auto base = torch::arange(24, torch::kFloat).view({4, 6});
  state::dict dtypes;
  for (const auto type : {at::kByte, at::kChar, at::kShort, at::kInt, at::kLong, at::kHalf, at::kFloat, at::kDouble,
                          at::kBool, at::kComplexFloat, at::kComplexDouble, at::kBFloat16})
    dtypes.insert_or_assign(c10::toString(type), torch::arange(6).view({2, 3}).to(type));
  const state::value v = state::dict{
      {"dtypes", dtypes},
      {"one item", state::dict{{"x", state::list{state::tuple{{1}}}}}},
      {"views", state::list{base, base.t(), base.slice(1, 1, 6, 2), torch::empty({0, 3}), torch::tensor(3.5)}},
      {7, state::list{nullptr, true, -1, std::int64_t{1} << 40, -(std::int64_t{1} << 62), 0.1, "text", "text"}},
      {"tuples", state::tuple{{1, 2, 3, 4, state::tuple{}, state::dict{}, state::list{}}}}};
  const auto path = folder / "a";
  formats::libtorch().save(path, v);
  CHECK(state::equal(formats::libtorch().load(path), v));
  CHECK(state::equal(state_of(torch::pickle_load(chars_of(path))), v));
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

  const auto file = chars_of(path);
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

TEST_CASE("Python reads safetensors", "[snapshot][formats][python]") {
  const temporary_directory dir;
  std::vector<std::string> files;
  for (const auto& kind : all_writers) {
    train(dir / kind, 4, make(kind, formats::safetensors({{"note", "kept"}})));
    files.push_back((dir / kind / "snapshot_iter_4.bin").string());
  }
  const auto result = rondo::testing::run_python(R"(
import json, math, struct, sys, torch
dtypes = {'BOOL': torch.bool, 'U8': torch.uint8, 'I8': torch.int8, 'I16': torch.int16, 'I32': torch.int32,
          'I64': torch.int64, 'F16': torch.float16, 'BF16': torch.bfloat16, 'F32': torch.float32,
          'F64': torch.float64, 'C64': torch.complex64}

def load_file(path):
    with open(path, 'rb') as f:
        length, = struct.unpack('<Q', f.read(8))
        assert length % 8 == 0
        header = json.loads(f.read(length))
        data = f.read()
    metadata = header.pop('__metadata__')
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]['data_offsets']):
        dtype, shape, (begin, stop) = dtypes[entry['dtype']], entry['shape'], entry['data_offsets']
        assert begin == end and stop - begin == math.prod(shape) * torch.empty((), dtype=dtype).element_size()
        end = stop
        flat = torch.frombuffer(bytearray(data[begin:stop]) or bytearray(8), dtype=dtype)[:math.prod(shape)]
        tensors[name] = flat.view(shape)
    assert end == len(data)
    return tensors, metadata

for path in sys.argv[1:]:
    tensors, metadata = load_file(path)
    print(metadata['note'], metadata['format'], float(tensors['models.main.weight']), *tensors['models.main.bias'].shape)
)",
                                                 files);
  INFO(result.output);
  REQUIRE(result.status == 0);
  std::istringstream said(result.output);
  for (const auto& path : files) {
    std::string note;
    std::string format;
    double weight = 0;
    std::int64_t size = 0;
    said >> note >> format >> weight >> size;
    CHECK(note == "kept");
    CHECK(format == "pt");
    const auto loaded = formats::safetensors().load(path);
    CHECK(static_cast<float>(weight) == loaded.at("models").at("main").at("weight").as<at::Tensor>().item<float>());
    CHECK(size == 1);
  }
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

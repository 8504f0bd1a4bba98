// What Python's torch.save writes comes into C++, and what C++ writes goes into Python: modules, optimizers, dtypes,
// and the layout of pytorch-pfn-extras.
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/modules/rnn.h>
#include <torch/types.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "rondo/checkpoint/tensors.hpp"
#include "rondo/state/digest.hpp"
#include "rondo/state/module.hpp"
#include "rondo/state/optimizer.hpp"
#include "support/catch.hpp"
#include "support/python.hpp"
#include "support/temporary_directory.hpp"
#include "support/training.hpp"

namespace interop_test {

namespace {

using namespace rondo;
using checkpoint::reader;
using rondo::testing::temporary_directory;
using rondo::testing::training;

void write(const std::filesystem::path& path, const state::value& v) {
  const auto described = checkpoint::describe(v);
  std::ofstream out(path, std::ios::binary);
  checkpoint::encoder(described.tree, described.views(), {}).write([&](std::span<const std::byte> piece) {
    out.write(reinterpret_cast<const char*>(piece.data()), static_cast<std::streamsize>(piece.size()));
  });
}

state::value read(const std::filesystem::path& path) { return checkpoint::materialize_verified(reader::open(path)); }

void require_python(const std::string& script, const std::vector<std::string>& arguments) {
  const auto result = rondo::testing::run_python(
      "import collections, sys, torch\n"
      "import torch.nn as nn\n"
      "from torch.optim import *\n"
      "folder = sys.argv[1]\n" +
          script,
      arguments);
  INFO(result.output);
  REQUIRE(result.status == 0);
}

struct network : torch::nn::Module {
  torch::nn::Embedding words{register_module("words", torch::nn::Embedding(7, 4))};
  torch::nn::Conv2d conv{register_module("conv", torch::nn::Conv2d(torch::nn::Conv2dOptions(3, 8, 3).bias(false)))};
  torch::nn::BatchNorm2d norm{register_module("norm", torch::nn::BatchNorm2d(8))};
  torch::nn::LayerNorm scale{register_module("scale", torch::nn::LayerNorm(torch::nn::LayerNormOptions({4})))};
  torch::nn::LSTM memory{register_module("memory", torch::nn::LSTM(torch::nn::LSTMOptions(4, 5).bidirectional(true)))};
  torch::nn::MultiheadAttention attention{register_module("attention", torch::nn::MultiheadAttention(4, 2))};
  torch::nn::Sequential head{register_module(
      "head", torch::nn::Sequential(torch::nn::Linear(4, 4), torch::nn::ReLU(), torch::nn::Linear(4, 2)))};
};

const char* const python_network = R"(
class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.scale = nn.LayerNorm([4])
        self.memory = nn.LSTM(4, 5, bidirectional=True)
        self.attention = nn.MultiheadAttention(4, 2)
        self.head = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
def fill(module):
    with torch.no_grad():
        for i, t in enumerate(module.state_dict().values()):
            t.copy_(torch.arange(t.numel()).view(t.shape) * 0.25 + i)
)";

void fill(const torch::nn::Module& module) {
  double i = 0;
  for (const auto& [name, t] : state::module_state(module)) {
    const auto& tensor = t.as<at::Tensor>();
    tensor.copy_(torch::arange(tensor.numel()).view(tensor.sizes()) * 0.25 + i++);
  }
}

}  // namespace

TEST_CASE("a state_dict of a module moves between Python and C++", "[interop][python]") {
  const temporary_directory folder;
  network filled;
  fill(filled);
  write(folder / "cpp.pt", state::module_state(filled));
  require_python(std::string(python_network) + R"(
network = Network()
fill(network)
for protocol in (2, 3, 4, 5):
    torch.save(network.state_dict(), f'{folder}/python{protocol}.pt', pickle_protocol=protocol)
torch.save(dict(network.named_parameters()), folder + '/parameters.pt')
other = Network()
result = other.load_state_dict(torch.load(folder + '/cpp.pt'), strict=True)
assert not result.missing_keys and not result.unexpected_keys
for name, t in network.state_dict().items():
    assert torch.equal(t, other.state_dict()[name]), name
)",
                 {folder.path().string()});
  for (const char* name : {"python2.pt", "python3.pt", "python4.pt", "python5.pt"}) {
    CAPTURE(name);
    network empty;
    state::load_module_state(empty, read(folder / name));
    CHECK(state::equal(state::module_state(empty), state::module_state(filled)));
  }
  const auto parameters = read(folder / "parameters.pt");
  CHECK(torch::equal(parameters.at("conv.weight").as<at::Tensor>(), filled.conv->weight));
}

TEST_CASE("every optimizer's state moves in double precision without a change", "[interop][python]") {
  const temporary_directory folder;
  const auto& cases = rondo::testing::optimizer_cases();
  std::vector<state::value> written;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    training t(cases[i], 5, torch::kDouble);
    t.steps(3);
    written.push_back(state::clone(state::optimizer_state(*t.optimizer)));
    write(folder / std::to_string(i), state::dict{{"python", cases[i].python}, {"state", written.back()}});
  }
  require_python(R"(
def flat(x, path=''):
    if isinstance(x, dict):
        for k, v in x.items(): yield from flat(v, f'{path}.{k}')
    elif isinstance(x, (list, tuple)):
        for i, v in enumerate(x): yield from flat(v, f'{path}.{i}')
    else:
        yield path, x
for i in range(int(sys.argv[2])):
    d = torch.load(f'{folder}/{i}')
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    first, second = list(model.parameters())[:2], list(model.parameters())[2:]
    optimizer = eval(d['python'])
    optimizer.load_state_dict(d['state'])
    loaded = dict(flat(optimizer.state_dict()['state']))
    for path, value in flat(d['state']['state']):
        same = torch.equal(value, loaded[path]) if isinstance(value, torch.Tensor) else value == loaded[path]
        assert same, (d['python'], path)
        if isinstance(value, torch.Tensor) and value.dim() > 0: assert value.dtype == torch.float64, path
    torch.save(optimizer.state_dict(), f'{folder}/{i}_back')
)",
                 {folder.path().string(), std::to_string(cases.size())});
  for (std::size_t i = 0; i < cases.size(); ++i) {
    CAPTURE(cases[i].name);
    const auto back = read(folder / (std::to_string(i) + "_back"));
    training t(cases[i], 5, torch::kDouble);
    state::load_optimizer_state(*t.optimizer, back);
    CHECK(state::equal(state::optimizer_state(*t.optimizer).at("state"), written[i].at("state")));
  }
}

TEST_CASE("the states of Python's other optimizers and schedulers are read as plain data", "[interop][python]") {
  const temporary_directory folder;
  require_python(R"(
model = nn.Linear(3, 2)
makers = {'NAdam': NAdam, 'RAdam': RAdam, 'Adamax': Adamax, 'Adadelta': Adadelta, 'ASGD': ASGD, 'Rprop': Rprop,
          'SGD': lambda p: SGD(p, lr=0.1, momentum=0.9)}
optimizers = {name: make(model.parameters()) for name, make in makers.items()}
for optimizer in optimizers.values():
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
scheduler = lr_scheduler.StepLR(optimizers['SGD'], 2)
plateau = lr_scheduler.ReduceLROnPlateau(optimizers['SGD'])
torch.save({'optimizers': {name: o.state_dict() for name, o in optimizers.items()},
            'scheduler': scheduler.state_dict(), 'plateau': plateau.state_dict(),
            'seed': torch.initial_seed(), 'rng': torch.get_rng_state()}, folder + '/all.pt')
)",
                 {folder.path().string()});
  const auto v = read(folder / "all.pt");
  for (const auto& [name, optimizer] : v.at("optimizers").as<state::dict>()) {
    CAPTURE(name.str());
    CHECK(optimizer.at("param_groups").as<state::list>().at(0).at("params").as<state::list>().size() == 2);
    CHECK(optimizer.at("state").at(0).as<state::dict>().size() > 0);
  }
  CHECK(v.at("scheduler").at("step_size").as<std::int64_t>() == 2);
  CHECK(v.at("plateau").at("mode").as<std::string>() == "min");
}

TEST_CASE("a snapshot of pytorch-pfn-extras is read", "[interop][python]") {
  const temporary_directory folder;
  require_python(R"(
torch.manual_seed(1)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
optimizer = Adam(model.parameters(), lr=0.01)
model(torch.ones(2, 8)).sum().backward()
optimizer.step()
state = {
    '_start_iteration': 1, '_start_execution': 1, 'ppe_version': '0.9.0',
    'models': {'main': model.state_dict()}, 'optimizers': {'main': optimizer.state_dict()}, 'state_objects': {},
    'extensions': {
        'LogReport': {'extension': {'_trigger': {'_previous_iteration': 1}, '_log': '[{"iteration": 1}]'},
                      'trigger': {'_previous_iteration': 1, '_previous_epoch_detail': 0.125}},
        'snapshot': {'extension': {}, 'trigger': {}},
    },
    '_epoch_length': 8,
}
torch.save(state, folder + '/snapshot_iter_1')
)",
                 {folder.path().string()});
  const auto v = read(folder / "snapshot_iter_1");
  CHECK(v.at("_start_iteration").as<std::int64_t>() == 1);
  CHECK(v.at("ppe_version").as<std::string>() == "0.9.0");
  CHECK(v.at("extensions").at("LogReport").at("trigger").at("_previous_epoch_detail").as<double>() == 0.125);

  torch::nn::Sequential model{torch::nn::Linear(8, 16), torch::nn::Tanh(), torch::nn::Linear(16, 4)};
  state::load_module_state(*model, v.at("models").at("main"));
  torch::optim::Adam optimizer(model->parameters(), torch::optim::AdamOptions(0.5));
  state::load_optimizer_state(optimizer, v.at("optimizers").at("main"));
  CHECK(state::equal(state::optimizer_state(optimizer).at("state").at(0).at("exp_avg"),
                     v.at("optimizers").at("main").at("state").at(0).at("exp_avg")));
  CHECK(static_cast<const torch::optim::AdamOptions&>(optimizer.param_groups()[0].options()).lr() == 0.01);
}

}  // namespace interop_test

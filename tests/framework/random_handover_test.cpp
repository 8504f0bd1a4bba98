// A training that goes on in Python, or comes back from there, goes on with the same random numbers.
#include <torch/nn/functional/dropout.h>
#include <torch/types.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "rondo/checkpoint/tensors.hpp"
#include "rondo/extensions/snapshot/snapshot.hpp"
#include "rondo/state/random.hpp"
#include "support/catch.hpp"
#include "support/python.hpp"
#include "support/small_loops.hpp"
#include "support/temporary_directory.hpp"

namespace random_handover_test {

namespace {

using namespace rondo;
using namespace rondo::literals;
using rondo::testing::problem;
using rondo::testing::temporary_directory;

state::value read(const std::filesystem::path& path) {
  return checkpoint::materialize_verified(checkpoint::reader::open(path));
}

/// A thousand numbers of each kind, one kind after the other from the default generator. The odd counts leave half a
/// pair of normal numbers behind.
state::dict draw() {
  state::dict all;
  const auto add = [&](const char* name, const at::Tensor& numbers) { all.insert_or_assign(name, numbers); };
  add("rand", torch::rand({1000}));
  add("randn", torch::randn({1001}));
  add("few randn", torch::randn({7}));
  add("randint", torch::randint(1 << 30, {1000}));
  add("randperm", torch::randperm(1000));
  add("dropout",
      torch::nn::functional::dropout(torch::ones({1000}), torch::nn::functional::DropoutFuncOptions().p(0.3)));
  add("double", torch::rand({1000}, torch::kDouble));
  add("normal double", torch::randn({1000}, torch::kDouble));
  add("bernoulli", torch::bernoulli(torch::full({1000}, 0.25)));
  add("multinomial", torch::multinomial(torch::arange(1, 11).to(torch::kFloat), 1000, true));
  return all;
}

const std::string python_draw = R"(
import sys, torch
import torch.nn.functional as F
folder = sys.argv[1]
def draw():
    return {
        'rand': torch.rand(1000),
        'randn': torch.randn(1001),
        'few randn': torch.randn(7),
        'randint': torch.randint(1 << 30, (1000,)),
        'randperm': torch.randperm(1000),
        'dropout': F.dropout(torch.ones(1000), 0.3),
        'double': torch.rand(1000, dtype=torch.double),
        'normal double': torch.randn(1000, dtype=torch.double),
        'bernoulli': torch.bernoulli(torch.full((1000,), 0.25)),
        'multinomial': torch.multinomial(torch.arange(1, 11).float(), 1000, True),
    }
)";

void run(const std::string& script, const temporary_directory& folder) {
  const auto result = rondo::testing::run_python(python_draw + script, {folder.path().string()});
  INFO(result.output);
  REQUIRE(result.status == 0);
}

void require_equal(const state::value& numbers, const state::value& expected) {
  REQUIRE(numbers.as<state::dict>().size() == expected.as<state::dict>().size());
  for (const auto& [name, tensor] : expected.as<state::dict>()) {
    INFO(name.str());
    CHECK(torch::equal(numbers.at(name).as<at::Tensor>(), tensor.as<at::Tensor>()));
  }
}

/// A step that uses up an odd number of normal and other random numbers.
at::Tensor noisy_step(problem& p) { return (p.model->forward(torch::randn({3, 1})) * torch::rand({3, 1})).sum(); }

/// Trains the problem with noise up to `iterations`, with a snapshot in `out` after every second one.
void train(problem& p, const std::filesystem::path& out, std::int64_t iterations, bool resume) {
  auto step = [&p](context&, const auto&) { return noisy_step(p); };
  rondo::loop l(models(p.model), optimizers(p.optimizer), p.batches(), step,
                {.max_iterations = iterations, .out = out});
  l | snapshot({.filename = "state", .autoload = resume}).triggered(every(2_iterations));
  l.run();
}

}  // namespace

TEST_CASE("Python draws the numbers that C++ would have drawn after a snapshot", "[interop][random][python]") {
  const temporary_directory folder;
  problem p;
  train(p, folder.path(), 6, false);
  const auto expected = draw();
  run(R"(
state = torch.load(folder + '/state')
torch.manual_seed(0)
torch.set_rng_state(state['rondo']['random']['cpu'])
torch.save(draw(), folder + '/python.pt')
)",
      folder);
  require_equal(read(folder / "python.pt"), expected);
}

TEST_CASE("C++ draws the numbers that Python would have drawn", "[interop][random][python]") {
  const temporary_directory folder;
  run(R"(
torch.manual_seed(20)
torch.rand(12345); torch.randn(3); torch.randperm(77)
torch.save({'cpu': torch.get_rng_state()}, folder + '/random.pt')
torch.save(draw(), folder + '/expected.pt')
)",
      folder);
  torch::manual_seed(0);
  state::load_random_state(read(folder / "random.pt"));
  require_equal(draw(), read(folder / "expected.pt"));
}

TEST_CASE("there and back again: a snapshot whose random state Python has moved on is resumed from there",
          "[interop][random][python]") {
  const temporary_directory folder;
  {
    problem p;
    train(p, folder.path(), 6, false);
  }
  run(R"(
state = torch.load(folder + '/state')
torch.set_rng_state(state['rondo']['random']['cpu'])
draw()
state['rondo']['random']['cpu'] = torch.get_rng_state()
torch.save(state, folder + '/state')
torch.save({'noise': torch.randn(3, 1), 'factors': torch.rand(3, 1)}, folder + '/expected.pt')
)",
      folder);
  const auto expected = read(folder / "expected.pt");

  problem p;
  std::vector<at::Tensor> drawn;
  auto step = [&](context&, const auto&) {
    const auto noise = torch::randn({3, 1});
    const auto factors = torch::rand({3, 1});
    drawn = {noise, factors};
    return (p.model->forward(noise) * factors).sum();
  };
  rondo::loop l(models(p.model), optimizers(p.optimizer), p.batches(), step,
                {.max_iterations = 7, .out = folder.path()});
  l | snapshot({.filename = "state", .autoload = true});
  REQUIRE(l.run().iteration == 7);
  REQUIRE(drawn.size() == 2);
  CHECK(torch::equal(drawn[0], expected.at("noise").as<at::Tensor>()));
  CHECK(torch::equal(drawn[1], expected.at("factors").as<at::Tensor>()));
}

TEST_CASE("a seed means the same numbers as in Python", "[interop][random][python]") {
  const temporary_directory folder;
  run(R"(
for seed in (0, 7, 2 ** 32 + 5, 2 ** 63 + 9):
    torch.manual_seed(seed)
    torch.save(draw(), f'{folder}/{seed}.pt')
)",
      folder);
  for (const std::uint64_t seed :
       {std::uint64_t{0}, std::uint64_t{7}, (std::uint64_t{1} << 32) + 5, (std::uint64_t{1} << 63) + 9}) {
    INFO("seed " << seed);
    static_cast<void>(torch::randn({3}));
    seed_everything(seed);
    require_equal(draw(), read(folder / (std::to_string(seed) + ".pt")));
  }
}

}  // namespace random_handover_test

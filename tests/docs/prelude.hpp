// What the examples in the documentation take for granted: what their readers have. Nothing of it is ever linked.
#include <torch/data/dataloader.h>
#include <torch/data/datasets.h>
#include <torch/data/transforms.h>
#include <torch/nn.h>
#include <torch/optim.h>
#include <torch/serialize.h>

#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>
#include <asio/thread_pool.hpp>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <limits>
#include <memory>
#include <range/v3/view/iota.hpp>
#include <rondo/distributed/consolidate.hpp>
#include <rondo/distributed/data_parallel.hpp>
#include <rondo/distributed/rank_group.hpp>
#include <rondo/distributed/sharded_optimizer.hpp>
#include <rondo/extensions.hpp>
#include <rondo/rondo.hpp>
#include <rondo/state/sharded_tensor.hpp>
#include <rondo/writing/register_savefun.hpp>
#include <string>
#include <vector>

namespace docs {

using namespace rondo;
using namespace rondo::literals;
namespace F = torch::nn::functional;
using torch::nn::functional::cross_entropy;

struct Net : torch::nn::Module {
  torch::Tensor forward(torch::Tensor x) { return layer(x); }
  torch::nn::Linear layer = register_module("layer", torch::nn::Linear(2, 2));
};
struct of_two_inputs : torch::nn::Module {
  torch::Tensor forward(torch::Tensor a, torch::Tensor b) { return a + b; }
};

inline auto batches_of(const data::tensor_dataset& all) { return all | data::batch(64); }
using batches_type = decltype(batches_of(std::declval<data::tensor_dataset>()));
inline auto mse = [](const torch::Tensor& output, const torch::Tensor& target) { return F::mse_loss(output, target); };

// In every example by these names, unless it has its own.
struct reader {
  rondo::loop& loop;
  context& ctx;
  Net net;
  torch::nn::Linear model;
  std::shared_ptr<torch::optim::Adam> optimizer;
  data::tensor_dataset images, test;
  batches_type batches, test_batches, small, pairs, train;
  std::vector<torch::Tensor> real_batches;
  decltype(mse) loss;
  torch::nn::MSELoss criterion;
  distributed::rank_group group;
  std::uint64_t seed;
  int rank, world_size;
  bool quick, mine;
  std::int64_t number;
  torch::Tensor tensor, series, batch;
  std::shared_ptr<Net> generator, discriminator;
  torch::optim::Adam generator_optimizer, discriminator_optimizer;
  asio::thread_pool pool;
  std::string bytes;
  state::value saved, saved_model;
};
extern reader have;

template <class... T>
void learn(const T&...);
void upload(const std::filesystem::path&);
void tell(std::exception_ptr, const run_result&);
void start();
task<bool> ready();
std::string deflate(const std::string&);
torch::Tensor distance(const torch::Tensor&, const torch::Tensor&);
torch::Tensor judged(const torch::Tensor& output, double wanted);
torch::Tensor encode(const std::string&);
double gigabytes_in_use();
rondo::loop make_loop();
void tokenize();

inline data::example augment(data::example e, data::random_sequence&) { return e; }

}  // namespace docs

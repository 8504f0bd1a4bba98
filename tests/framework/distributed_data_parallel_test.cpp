// Ranks are threads here: their groups meet over real sockets all the same.
#include <torch/nn/functional.h>
#include <torch/nn/modules.h>
#include <torch/optim/sgd.h>

#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>
#include <cmath>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "rondo/distributed/data_parallel.hpp"
#include "rondo/state/module.hpp"
#include "rondo/state/value.hpp"
#include "support/catch.hpp"
#include "support/ranks.hpp"

namespace distributed_data_parallel_test {

using namespace rondo;
using rondo::distributed::data_parallel;
using rondo::distributed::rank_group;
using rondo::testing::failures_on_ranks;
using rondo::testing::on_ranks;

namespace {

/// Runs a coroutine on the calling thread to its end.
void run(std::function<task<>()> body) {
  asio::io_context events;
  std::exception_ptr failed;
  asio::co_spawn(events, std::move(body), [&](std::exception_ptr e) { failed = e; });
  events.run();
  if (failed) std::rethrow_exception(failed);
}

struct network : torch::nn::Module {
  explicit network(std::uint64_t seed) {
    torch::manual_seed(seed);
    first = register_module("first", torch::nn::Linear(6, 16));
    second = register_module("second", torch::nn::Linear(16, 16));
    spare = register_module("spare", torch::nn::Linear(3, 3));
    last = register_module("last", torch::nn::Linear(16, 2));
  }
  at::Tensor forward(const at::Tensor& x, bool with_second = true) {
    auto h = torch::tanh(first(x));
    if (with_second) h = torch::tanh(second(h));
    return last(h);
  }
  torch::nn::Linear first{nullptr}, second{nullptr}, spare{nullptr}, last{nullptr};
};

struct samples {
  at::Tensor input;
  at::Tensor target;
};

samples some(std::int64_t count) {
  auto generator = at::detail::createCPUGenerator(5);
  return {at::randn({count, 6}, generator, at::kDouble), at::randn({count, 2}, generator, at::kDouble)};
}

samples part(const samples& all, std::int64_t begin, std::int64_t size) {
  return {all.input.narrow(0, begin, size), all.target.narrow(0, begin, size)};
}

std::shared_ptr<network> made(std::uint64_t seed, at::ScalarType type = at::kDouble) {
  // Seeding and drawing are one step, because threads share the generator.
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  auto model = std::make_shared<network>(seed);
  model->to(type);
  return model;
}

at::Tensor loss_of(network& model, const samples& s, bool with_second = true) {
  return torch::nn::functional::mse_loss(model.forward(s.input, with_second), s.target);
}

/// Each iteration's sizes by rank.
using sharing = std::vector<std::vector<std::int64_t>>;

state::value trained_alone(const sharing& sizes) {
  auto model = made(1);
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
  for (const auto& ranks : sizes) {
    std::int64_t total = 0;
    for (const auto size : ranks) total += size;
    optimizer.zero_grad();
    loss_of(*model, some(total)).backward();
    optimizer.step();
  }
  return state::clone(state::value(state::module_state(*model)));
}

state::value trained_together(const rank_group& group, const sharing& sizes,
                              distributed::data_parallel_options options = {}) {
  auto model = made(1 + static_cast<std::uint64_t>(group.rank()));
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
  data_parallel parallel(model, group, options);
  run([&]() -> task<> {
    co_await parallel.broadcast_state();
    for (const auto& ranks : sizes) {
      std::int64_t total = 0, begin = 0;
      for (std::size_t r = 0; r < ranks.size(); ++r) {
        if (static_cast<int>(r) < group.rank()) begin += ranks[r];
        total += ranks[r];
      }
      const auto mine = ranks[static_cast<std::size_t>(group.rank())];
      optimizer.zero_grad();
      const auto batch = part(some(total), begin, mine);
      parallel.begin(mine);
      loss_of(*model, batch).backward();
      co_await parallel.finish();
      optimizer.step();
    }
  });
  return state::clone(state::value(state::module_state(*model)));
}

double largest_difference(const state::value& a, const state::value& b) {
  double largest = 0.0;
  for (const auto& [key, value] : a.as<state::dict>()) {
    const auto difference = (value.as<at::Tensor>() - b.at(key).as<at::Tensor>()).abs().max().item<double>();
    if (std::isnan(difference)) return difference;
    largest = std::max(largest, difference);
  }
  return largest;
}

std::vector<state::value> results_of(int world_size, const sharing& sizes,
                                     distributed::data_parallel_options options = {}) {
  std::vector<state::value> results(static_cast<std::size_t>(world_size));
  on_ranks(world_size, [&](rank_group group) {
    results[static_cast<std::size_t>(group.rank())] = trained_together(group, sizes, options);
  });
  return results;
}

}  // namespace

TEST_CASE("ranks that share a batch train as one process with the whole batch", "[distributed][data_parallel]") {
  const int world_size = GENERATE(2, 4);
  const bool overlap = GENERATE(true, false);
  const double bucket_mb = GENERATE(25.0, 1e-4);
  sharing sizes(5, std::vector<std::int64_t>(static_cast<std::size_t>(world_size), 4));
  const distributed::data_parallel_options options{.bucket_mb = bucket_mb, .overlap = overlap};
  const auto results = results_of(world_size, sizes, options);
  const auto alone = trained_alone(sizes);
  CHECK(largest_difference(results[0], alone) < 1e-12);
  for (const auto& result : results) CHECK(state::equal(result, results[0]));
  SECTION("again with the same bits") { CHECK(state::equal(results_of(world_size, sizes, options)[0], results[0])); }
}

TEST_CASE("ranks with more samples count for more, and those without count for nothing",
          "[distributed][data_parallel]") {
  const sharing sizes = {{4, 1, 3}, {2, 2, 2}, {5, 3, 0}};
  const auto results = results_of(3, sizes);
  CHECK(largest_difference(results[0], trained_alone(sizes)) < 1e-12);
  for (const auto& result : results) CHECK(state::equal(result, results[0]));
}

TEST_CASE("a parameter that some ranks use gets their gradient, and one that nobody uses none",
          "[distributed][data_parallel]") {
  const bool overlap = GENERATE(true, false);
  on_ranks(2, [&](rank_group group) {
    const bool first = group.rank() == 0;
    auto model = made(1);
    data_parallel parallel(model, group, {.overlap = overlap});
    run([&]() -> task<> {
      const auto mine = part(some(8), first ? 0 : 4, 4);
      parallel.begin(4);
      loss_of(*model, mine, first).backward();
      co_await parallel.finish();
    });
    auto expected = made(1);
    const auto loss = loss_of(*expected, part(some(8), 0, 4), true) + loss_of(*expected, part(some(8), 4, 4), false);
    (loss / 2).backward();
    if (!at::allclose(model->second->weight.grad(), expected->second->weight.grad()))
      throw std::runtime_error("another gradient than expected");
    if (model->spare->weight.grad().defined()) throw std::runtime_error("a gradient out of nothing");
  });
}

TEST_CASE("a window of several batches is sent once", "[distributed][data_parallel]") {
  on_ranks(2, [&](rank_group group) {
    auto model = made(1);
    data_parallel parallel(model, group);
    at::Tensor sent_early;
    run([&]() -> task<> {
      for (std::int64_t i = 0; i < 3; ++i) {
        const auto mine = part(some(12), group.rank() * 6 + i * 2, 2);
        if (i < 2) {
          const auto only_accumulate = parallel.no_sync();
          parallel.begin(2);
          (loss_of(*model, mine) / 3).backward();
          if (i == 1) sent_early = model->first->weight.grad().clone();
        } else {
          parallel.begin(2);
          (loss_of(*model, mine) / 3).backward();
        }
      }
      co_await parallel.finish();
    });
    auto expected = made(1);
    loss_of(*expected, some(12)).backward();
    if (!at::allclose(model->first->weight.grad(), expected->first->weight.grad()))
      throw std::runtime_error("another gradient than expected");
    auto own = made(1);
    (loss_of(*own, part(some(12), group.rank() * 6, 4)) * 2 / 3).backward();
    if (!at::allclose(sent_early, own->first->weight.grad()))
      throw std::runtime_error("sent before the window was full");
  });
}

TEST_CASE("a gradient that grows after it was sent is an error, or is sent at the end",
          "[distributed][data_parallel]") {
  const auto train = [](bool overlap) {
    return failures_on_ranks(2, [=](const rank_group& group) {
      auto model = made(1);
      data_parallel parallel(model, group, {.bucket_mb = 1e-4, .overlap = overlap});
      const auto mine = part(some(8), group.rank() * 4, 4);
      run([&]() -> task<> {
        parallel.begin(4);
        loss_of(*model, mine).backward();
        loss_of(*model, mine).backward();
        co_await parallel.finish();
      });
      auto expected = made(1);
      (2 * loss_of(*expected, some(8))).backward();
      if (!at::allclose(model->first->weight.grad(), expected->first->weight.grad()))
        throw std::runtime_error("another gradient than expected");
    });
  };
  for (const auto& failed : train(false)) CHECK_FALSE(failed);
  for (const auto& failed : train(true)) {
    REQUIRE(failed);
    CHECK(rondo::message_of(failed).find("data_parallel.overlap") != std::string::npos);
  }
}

TEST_CASE("gradients of a backward that nobody announced are means over the ranks", "[distributed][data_parallel]") {
  on_ranks(2, [&](rank_group group) {
    auto model = made(1);
    data_parallel parallel(model, group);
    run([&]() -> task<> {
      loss_of(*model, part(some(8), group.rank() * 4, 4)).backward();
      co_await parallel.finish();
      co_await parallel.finish();  // what is the mean already stays so
    });
    auto expected = made(1);
    loss_of(*expected, some(8)).backward();
    if (!at::allclose(model->first->weight.grad(), expected->first->weight.grad()))
      throw std::runtime_error("another gradient than expected");
  });
}

TEST_CASE("frozen parameters are left alone until they are thawed", "[distributed][data_parallel]") {
  on_ranks(2, [&](rank_group group) {
    auto model = made(1);
    model->second->weight.set_requires_grad(false);
    data_parallel parallel(model, group);
    run([&]() -> task<> {
      parallel.begin(4);
      loss_of(*model, part(some(8), group.rank() * 4, 4)).backward();
      co_await parallel.finish();
      if (model->second->weight.grad().defined()) throw std::runtime_error("a gradient of a frozen parameter");
      model->second->weight.set_requires_grad(true);
      model->zero_grad();
      parallel.begin(4);
      loss_of(*model, part(some(8), group.rank() * 4, 4)).backward();
      co_await parallel.finish();
    });
    auto expected = made(1);
    loss_of(*expected, some(8)).backward();
    if (!at::allclose(model->second->weight.grad(), expected->second->weight.grad()))
      throw std::runtime_error("another gradient than expected");
  });
}

TEST_CASE("half precision is summed in float32", "[distributed][data_parallel]") {
  on_ranks(2, [&](rank_group group) {
    auto module = std::make_shared<torch::nn::LinearImpl>(4, 2);
    module->to(at::kBFloat16);
    data_parallel parallel(module, group);
    run([&]() -> task<> {
      co_await parallel.broadcast_state();
      module->weight.mutable_grad() = at::full({2, 4}, group.rank() == 0 ? 3.0 : 1.0, at::kBFloat16);
      co_await parallel.finish();
    });
    if (!module->weight.grad().eq(2.0).all().item<bool>()) throw std::runtime_error("another mean than expected");
    if (module->weight.grad().scalar_type() != at::kBFloat16) throw std::runtime_error("another dtype than expected");
  });
}

TEST_CASE("every rank begins with the parameters and buffers of rank 0", "[distributed][data_parallel]") {
  std::vector<state::value> all(3);
  on_ranks(3, [&](rank_group group) {
    torch::nn::Sequential model(torch::nn::Linear(3, 5), torch::nn::BatchNorm1d(5));
    model->to(at::kFloat);
    const torch::NoGradGuard no_grad;
    for (auto& parameter : model->parameters()) parameter.fill_(group.rank());
    for (auto& buffer : model->buffers()) buffer.fill_(10 + group.rank());
    data_parallel parallel(model.ptr(), group, {.bucket_mb = 3e-5});
    run([&]() -> task<> { co_await parallel.broadcast_state(); });
    all[static_cast<std::size_t>(group.rank())] = state::clone(state::value(state::module_state(*model)));
    for (auto& buffer : model->buffers()) buffer.fill_(20 + group.rank());
    run([&]() -> task<> { co_await parallel.broadcast_buffers(); });
    for (auto& buffer : model->buffers())
      if (!buffer.eq(20).all().item<bool>()) throw std::runtime_error("a buffer that is not rank 0's");
  });
  for (const auto& one : all) CHECK(state::equal(one, all[0]));
  CHECK(all[2].at("0.weight").as<at::Tensor>().eq(0).all().item<bool>());
  CHECK(all[2].at("1.num_batches_tracked").as<at::Tensor>().item<std::int64_t>() == 10);
}

TEST_CASE("models that differ are an error on all ranks, which names the difference", "[distributed][data_parallel]") {
  const auto failures = failures_on_ranks(2, [&](rank_group group) {
    auto model = std::make_shared<torch::nn::LinearImpl>(3, group.rank() == 0 ? 2 : 4);
    data_parallel parallel(model, group);
    run([&]() -> task<> { co_await parallel.broadcast_state(); });
  });
  for (const auto& failed : failures) {
    REQUIRE(failed);
    const auto message = rondo::message_of(failed);
    CHECK(message.find("rank 1") != std::string::npos);
    CHECK(message.find("weight: Float [4, 3]") != std::string::npos);
    CHECK(message.find("weight: Float [2, 3]") != std::string::npos);
  }
}

TEST_CASE("impossible options of data_parallel are refused", "[distributed][data_parallel]") {
  auto model = std::make_shared<torch::nn::LinearImpl>(3, 2);
  CHECK_THROWS_AS(data_parallel(model, rank_group(), {.bucket_mb = 0.0}), option_error);
  data_parallel alone(model, rank_group());
  CHECK_THROWS_AS(alone.begin(-1), option_error);
}

TEST_CASE("a process alone exchanges nothing", "[distributed][data_parallel]") {
  auto model = made(1);
  data_parallel parallel(model, rank_group());
  run([&]() -> task<> {
    co_await parallel.broadcast_state();
    parallel.begin(4);
    loss_of(*model, some(4)).backward();
    co_await parallel.finish();
    co_await parallel.broadcast_buffers();
  });
  auto expected = made(1);
  loss_of(*expected, some(4)).backward();
  CHECK(at::equal(model->first->weight.grad(), expected->first->weight.grad()));
}

}  // namespace distributed_data_parallel_test

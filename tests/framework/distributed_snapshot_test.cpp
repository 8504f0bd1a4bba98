// What a snapshot of several ranks must have before it gets its name.

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>
#include <torch/types.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "rondo/extensions.hpp"
#include "rondo/rondo.hpp"
#include "support/bad_disk.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/gate.hpp"
#include "support/messages.hpp"
#include "support/ranks.hpp"
#include "support/temporary_directory.hpp"

namespace distributed_snapshot_test {

using namespace rondo;
using rondo::testing::contains;
using rondo::testing::failures_on_ranks;
using rondo::testing::temporary_directory;

TEST_CASE("a sharded snapshot does not exist where a rank has written its part elsewhere", "[ranks][snapshot]") {
  const temporary_directory shared;
  const temporary_directory own;
  const auto failures = failures_on_ranks(2, [&](const distributed::rank_group& group) {
    auto model = std::make_shared<torch::nn::LinearImpl>(1, 1);
    torch::optim::SGD optimizer(model->parameters(), 0.1);
    const data::tensor_dataset points{torch::ones({4, 1}), torch::ones({4, 1})};
    auto batches = points | data::distributed(group.rank(), 2) | data::batch(1);
    loop training(model, optimizer, batches, torch::nn::functional::mse_loss,
                  {.max_iterations = 2, .out = group.rank() == 0 ? shared.path() : own.path(), .group = group});
    training | snapshot({.mode = snapshot_mode::sharded}).triggered(every(iterations(1)));
    training.run();
  });
  REQUIRE(failures[0]);
  CHECK(contains(message_of(failures[0]), "lacks the part of rank 1"));
  REQUIRE(failures[1]);
  CHECK(contains(message_of(failures[1]), "lacks the part of rank 1"));
  CHECK_FALSE(std::filesystem::exists(shared.path() / "snapshot_iter_1"));
}

namespace {

/// Trains on two ranks with a snapshot after each iteration; gives what each rank has thrown. `more` is attached first.
std::vector<std::exception_ptr> train_two_ranks(const std::filesystem::path& out, std::int64_t iterations,
                                                const std::function<snapshot_options(int rank)>& options,
                                                const std::function<void(context&)>& more) {
  return failures_on_ranks(2, [&](const distributed::rank_group& group) {
    auto model = std::make_shared<torch::nn::LinearImpl>(1, 1);
    torch::optim::SGD optimizer(model->parameters(), 0.1);
    const data::tensor_dataset points{torch::ones({8, 1}), torch::ones({8, 1})};
    auto batches = points | data::distributed(group.rank(), 2) | data::batch(1);
    loop training(model, optimizer, batches, torch::nn::functional::mse_loss,
                  {.max_iterations = iterations, .out = out, .group = group});
    training | make_extension("more", more) | snapshot(options(group.rank())).triggered(every(rondo::iterations(1)));
    training.run();
  });
}

}  // namespace

TEST_CASE("who cannot begin a snapshot tells the others, who would wait for it", "[ranks][snapshot]") {
  using enum snapshot_mode;
  using enum snapshot_failure;
  const auto [mode, in_background, policy] = GENERATE(table<snapshot_mode, bool, snapshot_failure>(
      {{distributed, false, fail}, {sharded, true, fail}, {sharded, false, warn}, {distributed, true, warn}}));
  CAPTURE(in_background);
  const temporary_directory out;
  const auto options = [&](int) {
    return snapshot_options{
        .writer = in_background ? writers::thread() : writers::simple(), .mode = mode, .on_failure = policy};
  };
  const auto throw_once = [](context& ctx) {
    if (ctx.rank() != 1) return;
    ctx.on<event::snapshot_started>([](const event::snapshot_started& e) {
      if (e.iteration == 2) throw std::runtime_error("not this one");
    });
  };
  const auto failures = train_two_ranks(out.path(), 3, options, throw_once);
  // What is still on its way when training fails does not come.
  if (!in_background || policy == snapshot_failure::warn) CHECK(std::filesystem::exists(out / "snapshot_iter_1"));
  CHECK_FALSE(std::filesystem::exists(out / "snapshot_iter_2"));
  if (policy == snapshot_failure::warn) {
    CHECK_FALSE(failures[0]);
    CHECK_FALSE(failures[1]);
    CHECK(std::filesystem::exists(out / "snapshot_iter_3"));
  } else {
    REQUIRE(failures[0]);
    CHECK(contains(message_of(failures[0]), "rank 1 has failed: not this one"));
    REQUIRE(failures[1]);
    CHECK(message_of(failures[1]) == "not this one");
  }
}

TEST_CASE("a rank without room for its part trains on while the others write theirs", "[ranks][snapshot]") {
  const temporary_directory out;
  rondo::testing::gate writing;
  const auto options = [&](int rank) {
    const auto held = std::make_shared<rondo::testing::bad_disk>(1, [&](const writing::path&) { writing.pass(); });
    writers::thread_options how{
        .capacity = rank == 0 ? std::size_t{1} : std::size_t{2}, .full = writing::when_full::skip, .files = held};
    return snapshot_options{.writer = writers::thread(how), .mode = snapshot_mode::sharded};
  };
  std::mutex mutex;
  std::map<std::string, int> seen;
  const auto witness = [&](context& ctx) {
    const auto note = [&](const char* what, std::int64_t iteration) {
      const std::lock_guard lock(mutex);
      ++seen[std::string(what) + " " + std::to_string(iteration)];
    };
    ctx.on<event::iteration_started>([&ctx, &writing] {
      if (ctx.rank() == 0 && ctx.iteration() == 2) writing.open();
    });
    ctx.on<event::snapshot_completed>([note](const event::snapshot_completed& e) { note("saved", e.iteration); });
    ctx.on<event::snapshot_skipped>([note](const event::snapshot_skipped& e) { note("skipped", e.iteration); });
  };
  const auto failures = train_two_ranks(out.path(), 3, options, witness);
  for (const auto& failure : failures)
    if (failure) FAIL(message_of(failure));
  CHECK(seen == std::map<std::string, int>{{"saved 1", 2}, {"skipped 2", 2}, {"saved 3", 2}});
  CHECK(std::filesystem::exists(out / "snapshot_iter_1"));
  CHECK_FALSE(std::filesystem::exists(out / "snapshot_iter_2"));
  CHECK(std::filesystem::exists(out / "snapshot_iter_3"));
}

namespace {

/// Which of 48 samples all ranks together have used, how often each, in the first epoch.
struct used_samples {
  std::map<int, int> counts;
  std::mutex mutex;

  void train(const std::filesystem::path& out, int world_size, std::int64_t batch_size, std::int64_t iterations) {
    rondo::testing::on_ranks(world_size, [&](const distributed::rank_group& group) {
      auto model = std::make_shared<torch::nn::LinearImpl>(1, 1);
      torch::optim::SGD optimizer(model->parameters(), 1e-4);
      const data::tensor_dataset samples{torch::arange(48.0).view({48, 1}), torch::arange(48.0)};
      auto batches = samples | data::shuffle(3) | data::distributed(group.rank(), world_size) | data::batch(batch_size);
      const auto step = [&](context& ctx, const data::example& batch) {
        {
          const std::lock_guard lock(mutex);
          for (std::int64_t i = 0; ctx.epoch() == 0 && i < batch.target.numel(); ++i)
            ++counts[static_cast<int>(batch.target[i].item<double>())];
        }
        return torch::nn::functional::mse_loss(model->forward(batch.data).flatten(), batch.target);
      };
      loop training(model, optimizer, batches, step, {.max_iterations = iterations, .out = out, .group = group});
      training | snapshot({.autoload = true, .final = true});
      training.run();
    });
  }

  [[nodiscard]] int used(int times) const {
    return static_cast<int>(std::ranges::count_if(counts, [&](const auto& one) { return one.second == times; }));
  }
};

}  // namespace

TEST_CASE("another number of ranks loses no sample of the epoch, and repeats none where batches allow it",
          "[ranks][snapshot][data]") {
  struct way {
    int world_size;
    std::int64_t batch_size;
    std::int64_t iterations;  // of the rest of the epoch
    int repeated;
  };
  // Two ranks with batches of four have used 24 samples after three iterations.
  const auto next = GENERATE(way{1, 8, 3, 0}, way{4, 2, 3, 0}, way{2, 6, 2, 0}, way{3, 4, 2, 0}, way{1, 4, 6, 0},
                             way{4, 4, 2, 8}, way{3, 3, 4, 6}, way{1, 48, 1, 24}, way{1, 7, 4, 3});
  const temporary_directory out;
  used_samples seen;
  seen.train(out.path(), 2, 4, 3);
  CHECK(seen.used(1) == 24);
  rondo::testing::captured_stderr messages;
  seen.train(out.path(), next.world_size, next.batch_size, 3 + next.iterations);
  const auto told = messages.text();
  CHECK(contains(told, std::to_string(next.repeated) + " samples of this epoch come once more") == (next.repeated > 0));
  CAPTURE(next.world_size, next.batch_size);
  CHECK(seen.counts.size() == 48);
  CHECK(seen.used(2) == next.repeated);
  CHECK(seen.used(1) == 48 - next.repeated);
}

namespace {

/// The parameters after so many iterations, with 24 samples each, in windows of four; all ranks have the same.
at::Tensor train_in_windows(const std::filesystem::path& out, int world_size, std::int64_t iterations,
                            snapshot_mode mode) {
  std::vector<at::Tensor> parameters(static_cast<std::size_t>(world_size));
  rondo::testing::on_ranks(world_size, [&](const distributed::rank_group& group) {
    auto model = std::make_shared<torch::nn::LinearImpl>(3, 2);
    model->to(torch::kDouble);
    {
      const torch::NoGradGuard no_grad;
      for (auto& p : model->parameters()) p.fill_(0.1);
    }
    torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
    const auto x = torch::arange(480 * 3, torch::kDouble).view({480, 3}).sin();
    const data::tensor_dataset samples{x, x.narrow(1, 0, 2).cos()};
    auto batches =
        samples | data::shuffle(3) | data::distributed(group.rank(), world_size) | data::batch(24 / world_size);
    loop training(model, optimizer, batches, torch::nn::functional::mse_loss,
                  {.stop_trigger = rondo::at({rondo::iterations{iterations}}), .out = out, .group = group, .accumulate = 4});
    training | snapshot({.autoload = true, .mode = world_size == 1 ? snapshot_mode::standard : mode})
                   .triggered(every(rondo::iterations(1)));
    training.run();
    std::vector<at::Tensor> all;
    for (const auto& p : model->parameters()) all.push_back(p.detach().flatten());
    parameters[static_cast<std::size_t>(group.rank())] = torch::cat(all);
  });
  for (const auto& one : parameters) REQUIRE(torch::equal(one, parameters.front()));
  return parameters.front();
}

}  // namespace

TEST_CASE("ranks go on inside of an accumulation window with the gradients that each had", "[ranks][snapshot]") {
  const auto mode = GENERATE(snapshot_mode::distributed, snapshot_mode::sharded);
  const temporary_directory unbroken;
  const auto expected = train_in_windows(unbroken.path(), 2, 12, mode);
  for (const std::int64_t broken_at : {5, 7, 8}) {
    CAPTURE(broken_at);
    const temporary_directory out;
    static_cast<void>(train_in_windows(out.path(), 2, broken_at, mode));
    for (const int world_size : {1, 3, 4}) {
      const temporary_directory other;
      std::filesystem::copy(
          out.path(), other.path(),
          std::filesystem::copy_options::recursive | std::filesystem::copy_options::overwrite_existing);
      const auto found = train_in_windows(other.path(), world_size, 12, mode);
      CHECK(torch::allclose(found, expected, 1e-10, 1e-12));
    }
    CHECK(torch::equal(train_in_windows(out.path(), 2, 12, mode), expected));
  }
}

}  // namespace distributed_snapshot_test

// A snapshot is one instant: whatever the writer, no file mixes two iterations.
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adam.h>
#include <torch/optim/sgd.h>
#include <torch/types.h>

#include <asio/post.hpp>
#include <asio/use_awaitable.hpp>
#include <cstdlib>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <range/v3/view/iota.hpp>
#include <string>
#include <vector>

#include "rondo/checkpoint/reader.hpp"
#include "rondo/checkpoint/tensors.hpp"
#include "rondo/checkpoint/verify.hpp"
#include "rondo/data/data.hpp"
#include "rondo/event/interval.hpp"
#include "rondo/extensions/snapshot/snapshot.hpp"
#include "rondo/loop/loop.hpp"
#include "rondo/state/digest.hpp"
#include "support/catch.hpp"
#include "support/counting_loop.hpp"
#include "support/messages.hpp"
#include "support/temporary_directory.hpp"

namespace snapshot_instant_test {

using namespace rondo;
using namespace rondo::literals;
using rondo::testing::contains;
using rondo::testing::counting;
using rondo::testing::message_of;
using rondo::testing::temporary_directory;
using rondo::testing::the_number_in;

namespace {

struct writer_kind {
  std::string name;
  std::function<std::shared_ptr<writing::writer>()> make;
};

const std::vector<writer_kind>& all_writers() {
  static const std::vector<writer_kind> all{
      {"simple", [] { return writers::simple(); }},
      {"thread", [] { return writers::thread(); }},
      {"thread_queue", [] { return writers::thread_queue(); }},
      {"process", [] { return writers::process(); }},
      {"process_queue", [] { return writers::process_queue(); }},
  };
  return all;
}

/// How many snapshots of each kind: few by default, as many as the environment says for a long run.
std::int64_t how_many() {
  const char* text = std::getenv("RONDO_TEST_SNAPSHOTS");
  return text != nullptr ? std::atoll(text) : 40;
}

/// BatchNorm changes its buffers in the forward pass, Dropout draws numbers, Adam makes its state in the first update.
torch::nn::Sequential restless_model() {
  return torch::nn::Sequential(torch::nn::Linear(4, 64), torch::nn::BatchNorm1d(64), torch::nn::Dropout(0.3),
                               torch::nn::Linear(64, 1));
}

/// Keeps the copier of `memory` busy until the result is told to let go.
class busy_copier {
 public:
  explicit busy_copier(writing::staging& memory) : memory_(memory) {}
  void begin(context& ctx) {
    ctx.spawn([this]() -> task<> {
      auto job = [until = release_.get_future().share()] { until.wait(); };
      co_await memory_.copier().run(job);
    });
  }
  void let_go() { release_.set_value(); }

 private:
  writing::staging& memory_;
  std::promise<void> release_;
};

}  // namespace

TEST_CASE("ppe defects 1 and 2: no writer tears a snapshot, and none disturbs the model", "[snapshot][writer][ppe]") {
  for (const auto& kind : all_writers()) {
    const temporary_directory dir;
    const std::int64_t snapshots = how_many();
    const counting training(64, 2048);
    auto loop = training.loop(dir.path(), 2 * snapshots);
    std::int64_t seen = 0;
    std::int64_t torn = 0;
    loop | snapshot({.n_retains = 3, .writer = kind.make()}).triggered(every(2_iterations)) |
        make_extension("check", [&](context& ctx) {
          ctx.on<event::snapshot_completed>([&](const event::snapshot_completed& e) {
            ++seen;
            if (the_number_in(e.path) != static_cast<double>(e.iteration)) ++torn;
          });
        });
    loop.run();
    INFO(kind.name);
    CHECK(seen == snapshots);
    CHECK(torn == 0);
    for (const auto& p : training.model->parameters()) {
      REQUIRE(p.min().item<double>() == static_cast<double>(2 * snapshots));
      REQUIRE(p.max().item<double>() == static_cast<double>(2 * snapshots));
    }
  }
}

TEST_CASE("every writer's file holds the state of the moment that it was taken at", "[snapshot][writer]") {
  for (const auto& kind : all_writers()) {
    const temporary_directory dir;
    torch::manual_seed(5);
    auto model = restless_model();
    auto optimizer = std::make_shared<torch::optim::Adam>(model->parameters(), torch::optim::AdamOptions(0.01));
    const auto x = torch::rand({96, 4});
    rondo::loop loop(model, optimizer, data::tensor_dataset(x, x.sum(1, true)) | data::shuffle(1) | data::batch(8),
                     torch::nn::functional::mse_loss, {.max_iterations = 60, .out = dir.path(), .accumulate = 3});
    std::map<std::int64_t, std::string> expected;
    std::int64_t seen = 0;
    loop | snapshot({.writer = kind.make()}).triggered(every(1_iterations)) |
        make_extension("check", [&](context& ctx) {
          ctx.on<event::snapshot_started>([&] { expected[ctx.iteration()] = state::digest_of(ctx.state_dict()); });
          ctx.on<event::snapshot_completed>([&](const event::snapshot_completed& e) {
            ++seen;
            const auto state = checkpoint::materialize(checkpoint::reader::open(e.path));
            CHECK(state::digest_of(state) == expected.at(e.iteration));
            CHECK(e.writer == kind.name);
            CHECK(e.bytes == std::filesystem::file_size(e.path));
            CHECK((e.memory > 0) == (kind.name != "simple"));
          });
        });
    loop.run();
    INFO(kind.name);
    CHECK(seen == 60);
  }
}

TEST_CASE("an update waits for the copy of the state, and training for nothing else", "[snapshot][writer]") {
  const temporary_directory dir;
  auto writer = writers::thread();
  busy_copier copier(*writer->memory());
  const counting training;
  std::vector<std::string> order;
  auto loop = training.loop(dir.path(), 3,
                            [&](context& ctx) { order.push_back("step " + std::to_string(ctx.iteration() + 1)); });
  loop | snapshot({.writer = writer}).triggered(rondo::at({2_iterations})) | make_extension("watch", [&](context& ctx) {
    ctx.on<event::iteration_completed>([&] {
      if (ctx.iteration() == 1) copier.begin(ctx);
    });
    ctx.on<event::update_started>([&] { order.push_back("update " + std::to_string(ctx.iteration() + 1)); });
    ctx.on<event::iteration_started>([&](const event::iteration_started& e) {
      // The third iteration begins while the copy has not: its update must wait, and only that.
      if (e.iteration != 3) return;
      ctx.spawn([&, &ctx = ctx]() -> task<> {
        while (order.back() != "step 3") co_await asio::post(asio::use_awaitable);
        auto wait = [&]() -> task<> { co_await ctx.exclusive_state(); };
        order.push_back("let go");
        copier.let_go();
        co_await wait();
      });
    });
  });
  loop.run();
  REQUIRE(order ==
          std::vector<std::string>{"step 1", "update 1", "step 2", "update 2", "step 3", "let go", "update 3"});
  REQUIRE(the_number_in(dir / "snapshot_iter_2") == 2.0);
}

TEST_CASE("a step that updates by hand does not begin before the copy is complete", "[snapshot][writer]") {
  const temporary_directory dir;
  auto writer = writers::thread();
  busy_copier copier(*writer->memory());
  const counting training;
  bool let_go = false;
  rondo::loop loop(models{{"main", training.model}}, optimizers(training.optimizer), ranges::views::ints(0, 10),
                   [&](context& ctx, int&) -> void {
                     if (ctx.iteration() == 2) CHECK(let_go);
                     training.optimizer->zero_grad();
                     training.model->minus_sum().backward();
                     training.optimizer->step();
                   },
                   {.max_iterations = 4, .out = dir.path()});
  loop | snapshot({.writer = writer}).triggered(rondo::at({2_iterations})) | make_extension("watch", [&](context& ctx) {
    ctx.on<event::iteration_completed>([&] {
      if (ctx.iteration() == 1) copier.begin(ctx);
    });
    ctx.on<event::iteration_started>([&](const event::iteration_started& e) {
      if (e.iteration != 3) return;
      ctx.spawn([&]() -> task<> {
        let_go = true;
        copier.let_go();
        co_return;
      });
    });
  });
  loop.run();
  REQUIRE(let_go);
  REQUIRE(the_number_in(dir / "snapshot_iter_2") == 2.0);
}

TEST_CASE("parameters that are changed while they are being copied are an error that names one", "[snapshot][writer]") {
  for (const bool warn : {false, true}) {
    const temporary_directory dir;
    auto writer = writers::thread();
    busy_copier copier(*writer->memory());
    const counting training;
    auto loop = training.loop(dir.path(), 4, [&](context& ctx) {
      if (ctx.iteration() != 2) return;
      torch::NoGradGuard no_grad;
      training.model->parameters()[1].mul_(2.0);
      copier.let_go();
    });
    loop |
        snapshot({.writer = writer, .on_failure = warn ? snapshot_failure::warn : snapshot_failure::fail})
            .triggered(rondo::at({2_iterations, 4_iterations})) |
        make_extension("watch", [&](context& ctx) {
          ctx.on<event::iteration_completed>([&] {
            if (ctx.iteration() == 1) copier.begin(ctx);
          });
        });
    if (warn) {
      REQUIRE(loop.run().iteration == 4);
      REQUIRE(std::filesystem::exists(dir / "snapshot_iter_4"));
    } else {
      const auto message = message_of<state_error>([&] { loop.run(); });
      REQUIRE(contains(message, "models.main.p1"));
      REQUIRE(contains(message, "exclusive_state"));
    }
    REQUIRE_FALSE(std::filesystem::exists(dir / "snapshot_iter_2"));
  }
}

TEST_CASE("memory for files on their way is bounded and used again", "[snapshot][writer]") {
  const temporary_directory dir;
  auto writer = writers::thread({.capacity = 2});
  const counting training(4, 1 << 18);  // 4 MiB
  auto loop = training.loop(dir.path(), 20);
  std::uint64_t size = 0;
  loop | snapshot({.n_retains = 1, .writer = writer}).triggered(every(1_iterations)) |
      make_extension("watch", [&](context& ctx) {
        ctx.on<event::snapshot_completed>([&](const event::snapshot_completed& e) { size = e.bytes; });
      });
  loop.run();
  REQUIRE(size > (4U << 20U));
  REQUIRE(writer->memory()->peak_bytes() <= 2 * size + (64U << 20U));
  REQUIRE(the_number_in(dir / "snapshot_iter_20") == 20.0);
}

}  // namespace snapshot_instant_test

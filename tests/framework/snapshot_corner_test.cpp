// Snapshots at moments and in company that nobody plans for.
#include <torch/types.h>

#include <algorithm>
#include <asio/post.hpp>
#include <asio/use_awaitable.hpp>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "rondo/checkpoint/reader.hpp"
#include "rondo/event/interval.hpp"
#include "rondo/extensions/snapshot/snapshot.hpp"
#include "rondo/writing/memory_file_system.hpp"
#include "support/bad_disk.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/counting_loop.hpp"
#include "support/gate.hpp"
#include "support/messages.hpp"
#include "support/temporary_directory.hpp"

namespace snapshot_corner_test {

using namespace rondo;
using namespace rondo::literals;
using rondo::testing::contains;
using rondo::testing::captured_stderr;
using rondo::testing::counting;
using rondo::testing::message_of;
using rondo::testing::temporary_directory;
using rondo::testing::the_number_in;
namespace fs = std::filesystem;

namespace {

task<> turns(int count) {
  for (int i = 0; i < count; ++i) co_await asio::post(asio::use_awaitable);
}

std::int64_t iteration_in(const fs::path& file) {
  return checkpoint::reader::open(file).state().get<std::int64_t>("_start_iteration");
}

}  // namespace

TEST_CASE("a training that fails at its very end leaves its error and the snapshot of it", "[snapshot][error]") {
  const temporary_directory dir;
  const counting training;
  auto loop = training.loop(dir.path(), 3);
  loop | snapshot({.snapshot_on_error = true, .writer = writers::thread()}).triggered(never()) |
      make_extension("late", [](context& ctx) -> task<> {
        while (const auto* e = co_await ctx.next<event::iteration_completed>()) static_cast<void>(e);
        throw std::runtime_error("too late");
      });
  REQUIRE(message_of<std::runtime_error>([&] { loop.run(); }) == "too late");
  REQUIRE(the_number_in(dir / "snapshot_iter_3.error") == 3.0);
}

TEST_CASE("a snapshot from a handler of a failure is no regular one", "[snapshot][error]") {
  const temporary_directory dir;
  const counting training;
  auto loop = training.loop(dir.path(), 9, [&](context& ctx) {
    if (ctx.iteration() != 4) return;
    torch::NoGradGuard no_grad;
    training.model->parameters()[0].fill_(-777);
    throw std::runtime_error("broken");
  });
  loop | snapshot().triggered(every(2_iterations)) | make_extension("asks", [](context& ctx) {
    ctx.on<event::failed>([&ctx]() -> task<> { co_await ctx.snapshot(); });
  });
  REQUIRE_THROWS_AS(loop.run(), std::runtime_error);
  REQUIRE(the_number_in(dir / "snapshot_iter_4") == 4.0);
  REQUIRE(checkpoint::reader::open(dir / "snapshot_iter_4.mid_iteration").info()->info.mid_iteration);
}

TEST_CASE("a snapshot on an error holds no part of an unfinished iteration's gradients", "[snapshot][error][resume]") {
  const temporary_directory dir;
  {
    const counting training;
    auto loop = training.loop(dir.path(), 9);
    loop | snapshot({.snapshot_on_error = true}).triggered(never()) | make_extension("fails", [](context& ctx) {
      ctx.on<event::update_started>([&ctx] {
        if (ctx.iteration() == 4) throw std::runtime_error("before the update");
      });
    });
    REQUIRE_THROWS_AS(loop.run(), std::runtime_error);
  }
  const counting training;
  auto loop = training.loop(dir.path(), 9);
  loop | snapshot({.resume_from = dir / "snapshot_iter_4.error"});
  loop.run();
  REQUIRE(training.model->parameters()[0].min().item<double>() == 9.0);
}

TEST_CASE("a request from beside training is one instant, however long it waits for room", "[snapshot][request]") {
  const temporary_directory dir;
  const counting training(4, 1 << 17);  // large enough for memory that is made on another thread
  auto loop = training.loop(dir.path(), 12);
  std::vector<fs::path> taken;
  loop | snapshot({.writer = writers::thread({.capacity = 1})}).triggered(rondo::at({2_iterations})) |
      make_extension("asks", [&](context& ctx) {
        ctx.on<event::iteration_completed>([&ctx] {
          if (ctx.iteration() % 3 != 0 || ctx.iteration() > 9) return;
          ctx.spawn([&ctx]() -> task<> { co_await ctx.snapshot(); });
        });
        ctx.on<event::snapshot_completed>([&](const event::snapshot_completed& e) { taken.push_back(e.path); });
        ctx.on<event::update_started>([]() -> task<> { co_await turns(3); });
      });
  loop.run();
  REQUIRE(taken.size() >= 2);
  for (const auto& file : taken) {
    const auto info = checkpoint::reader::open(file).info()->info;
    INFO(file.string());
    REQUIRE(the_number_in(file) >= 0.0);
    REQUIRE(iteration_in(file) == info.iteration);
    if (info.mid_iteration) continue;
    REQUIRE(the_number_in(file) == static_cast<double>(info.iteration));
    REQUIRE(file.filename() == "snapshot_iter_" + std::to_string(info.iteration));
  }
}

TEST_CASE("a capture that begins between update_started and the step is waited for", "[snapshot][writer]") {
  const temporary_directory dir;
  const counting training(16, 1 << 14);
  auto loop = training.loop(dir.path(), 20);
  std::vector<fs::path> taken;
  loop | snapshot({.writer = writers::thread_queue()}).triggered(never()) | make_extension("asks", [&](context& ctx) {
    ctx.on<event::update_started>([&ctx]() -> task<> {
      ctx.spawn([&ctx]() -> task<> { co_await ctx.snapshot(); });
      co_await turns(8);
    });
    ctx.on<event::snapshot_completed>([&](const event::snapshot_completed& e) {
      REQUIRE(the_number_in(e.path) >= 0.0);
      taken.push_back(e.path);
    });
  });
  loop.run();
  REQUIRE(taken.size() == 20);
}

TEST_CASE("a step that updates one optimizer by hand is waited for as a whole", "[snapshot][writer]") {
  const temporary_directory dir;
  const counting by_hand(8, 1 << 14);
  const counting managed(8, 1 << 14);
  auto step = [&](context& ctx, int&) -> task<> {
    by_hand.optimizer->zero_grad();
    by_hand.model->minus_sum().backward();
    by_hand.optimizer->step();
    managed.optimizer->zero_grad();
    managed.model->minus_sum().backward();
    co_await ctx.update(*managed.optimizer);
  };
  rondo::loop loop(models{{"main", by_hand.model}, {"other", managed.model}},
                   optimizers{{"a", by_hand.optimizer}, {"b", managed.optimizer}}, ranges::views::ints(0, 10), step,
                   {.max_iterations = 20, .out = dir.path()});
  int seen = 0;
  loop | snapshot({.writer = writers::thread()}).triggered(every(1_iterations)) |
      make_extension("watch", [&](context& ctx) {
        ctx.on<event::snapshot_completed>([&](const event::snapshot_completed& e) {
          ++seen;
          REQUIRE(the_number_in(e.path) == static_cast<double>(e.iteration));
        });
      });
  loop.run();
  REQUIRE(seen == 20);
}

TEST_CASE("a snapshot that somebody awaits is not replaced by a newer one", "[snapshot][request]") {
  const temporary_directory dir;
  const counting training;
  auto loop = training.loop(dir.path(), 30);
  bool durable = false;
  loop |
      snapshot({.writer = writers::thread_queue({.capacity = 2, .full = writing::when_full::replace})})
          .triggered(every(1_iterations)) |
      make_extension("asks", [&](context& ctx) {
        ctx.on<event::iteration_completed>([&] {
          if (ctx.iteration() != 10) return;
          ctx.spawn([&]() -> task<> {
            co_await ctx.snapshot();
            durable = true;
          });
        });
      });
  loop.run();
  REQUIRE(durable);
}

TEST_CASE("after a failed write from live memory the state is free again", "[snapshot][error]") {
  const temporary_directory dir;
  const auto files = std::make_shared<writing::memory_file_system>();
  files->fail(writing::operation::sync, 1, EIO);
  const counting training;
  auto loop = training.loop(dir.path(), 3);
  bool free = false;
  loop |
      snapshot({.writer = writers::simple({.files = files}), .on_failure = snapshot_failure::warn})
          .triggered(rondo::at({1_iterations})) |
      make_extension("swaps", [&](context& ctx) {
        ctx.on_end<event::snapshot_completed>([&]() -> task<> {
          co_await ctx.exclusive_state();
          free = true;
        });
      });
  loop.run();
  REQUIRE(free);
}

TEST_CASE("the last snapshot is taken although the one before it failed", "[snapshot][final]") {
  const temporary_directory dir;
  const auto files = std::make_shared<writing::memory_file_system>();
  files->fail(writing::operation::sync, 1, EIO);
  const counting training;
  auto loop = training.loop(dir.path(), 3);
  loop | snapshot({.writer = writers::thread({.files = files}), .on_failure = snapshot_failure::warn, .final = true})
             .triggered(rondo::at({3_iterations}));
  loop.run();
  REQUIRE(files->kind(fs::absolute(dir / "snapshot_iter_3")) == writing::file_kind::regular);
}

TEST_CASE("a snapshot that is asked for while one is being taken is taken in the next iteration",
          "[snapshot][request]") {
  const temporary_directory dir;
  const counting training;
  auto loop = training.loop(dir.path(), 5);
  loop | snapshot().triggered(rondo::at({2_iterations})) | make_extension("asks", [](context& ctx) {
    ctx.on<event::snapshot_completed>([&ctx](const event::snapshot_completed& e) {
      if (e.iteration == 2) ctx.request_snapshot();
    });
  });
  loop.run();
  REQUIRE(fs::exists(dir / "snapshot_iter_3"));
  REQUIRE_FALSE(fs::exists(dir / "snapshot_iter_4"));
}

TEST_CASE("what a savefun throws is obeyed by on_failure whatever its type", "[snapshot][error]") {
  const temporary_directory dir;
  const counting training;
  auto loop = training.loop(dir.path(), 3);
  loop | snapshot(
             {.savefun = [](const fs::path&, const state::value&) { throw 42; }, .on_failure = snapshot_failure::warn})
             .triggered(every(1_iterations));
  REQUIRE(loop.run().iteration == 3);
}

TEST_CASE("a state that no file can hold is an error when it is to be saved, not before", "[snapshot][error]") {
  const temporary_directory dir;
  const counting training;
  auto loop = training.loop(dir.path(), 3);
  loop.remember("sparse", state::stateful_ref([] { return state::value(torch::eye(2).to_sparse()); },
                                              [](const state::value&) {}));
  loop | snapshot({.writer = writers::thread()}).triggered(rondo::at({1000_iterations}));
  const captured_stderr told;
  REQUIRE(loop.run().iteration == 3);
  const auto text = told.text();  // once, and not in every iteration
  const auto first = text.find("no memory is prepared");
  REQUIRE(first != std::string::npos);
  REQUIRE(text.find("no memory is prepared", first + 1) == std::string::npos);
}

TEST_CASE("retention and autoload leave the files of another extension with the same names alone",
          "[snapshot][retention]") {
  const temporary_directory dir;
  const counting training;
  auto loop = training.loop(dir.path(), 6);
  loop | snapshot({.n_retains = 1}).triggered(rondo::at({2_iterations, 4_iterations, 6_iterations})) |
      snapshot({.filename = [](const context& ctx) { return "snapshot_iter_" + std::to_string(ctx.iteration()); },
                .target = state::stateful_ref(training.model)})
          .named("model_only")
          .triggered(rondo::at({3_iterations}));
  loop.run();
  REQUIRE(fs::exists(dir / "snapshot_iter_3"));
  REQUIRE_FALSE(fs::exists(dir / "snapshot_iter_4"));
}

TEST_CASE("an extension belongs to one running loop at a time", "[snapshot][options]") {
  const temporary_directory dir;
  const temporary_directory other;
  const auto shared = snapshot().triggered(never());
  const counting training;
  auto loop = training.loop(dir.path(), 2, [&](context& ctx) {
    if (ctx.iteration() != 1) return;
    const counting second;
    auto inner = second.loop(other.path(), 2);
    inner | shared;
    REQUIRE(contains(message_of<option_error>([&] { inner.run(); }), "one extension for each loop"));
  });
  loop | shared;
  loop.run();
  // Afterwards it may be used again.
  auto again = training.loop(other.path(), 2);
  again | shared;
  REQUIRE(again.run().iteration == 2);
}

TEST_CASE("buffers that share their memory with parameters are saved as they are", "[snapshot][writer]") {
  const temporary_directory dir;
  struct sharing : torch::nn::Module {
    sharing() {
      flat = torch::zeros({64});
      weight = register_parameter("weight", flat.slice(0, 0, 32));
      count = register_buffer("count", flat.slice(0, 32, 64));
    }
    at::Tensor flat, weight, count;
  };
  const auto model = std::make_shared<sharing>();
  auto optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), torch::optim::SGDOptions(1.0));
  rondo::loop loop(models{{"main", model}}, optimizers(optimizer), ranges::views::ints(0, 10),
                   [model](context&, int&) -> at::Tensor {
                     model->count.data().add_(1);
                     return -model->weight.sum();
                   },
                   {.max_iterations = 20, .out = dir.path()});
  loop | snapshot({.writer = writers::thread()}).triggered(every(1_iterations)) |
      make_extension("watch", [&](context& ctx) {
        ctx.on<event::snapshot_completed>([&](const event::snapshot_completed& e) {
          REQUIRE(the_number_in(e.path) == static_cast<double>(e.iteration));
        });
      });
  loop.run();
  REQUIRE(the_number_in(dir / "snapshot_iter_20") == 20.0);
}

TEST_CASE("the last snapshot is not taken twice because an earlier one failed late", "[snapshot][error]") {
  const temporary_directory dir;
  const counting training;
  rondo::testing::gate failing;
  std::atomic<int> files = 0;
  const auto first_fails = [&](const writing::path& file) {
    if (++files > 1) return;
    failing.pass();
    rondo::testing::fails_with(std::errc::io_error)(file);
  };
  std::vector<std::int64_t> begun;
  auto loop = training.loop(dir.path(), 2);
  loop |
      snapshot({.writer = writers::thread({.files = std::make_shared<rondo::testing::bad_disk>(1, first_fails)}),
                .on_failure = snapshot_failure::warn})
          .triggered(every(1_iterations)) |
      make_extension("witness", [&](context& ctx) {
        ctx.on<event::snapshot_started>([&](const event::snapshot_started& e) {
          begun.push_back(e.iteration);
          if (e.iteration == 2) failing.open();
        });
      });
  loop.run();
  CHECK(begun == std::vector<std::int64_t>{1, 2});
  CHECK_FALSE(fs::exists(dir / "snapshot_iter_1"));
  CHECK(the_number_in(dir / "snapshot_iter_2") == 2.0);
}

}  // namespace snapshot_corner_test

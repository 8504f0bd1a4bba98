#include "rondo/loop/loop.hpp"

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim.h>
#include <torch/types.h>

#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>
#include <asio/steady_timer.hpp>
#include <csignal>
#include <future>
#include <range/v3/view/filter.hpp>
#include <range/v3/view/generate_n.hpp>
#include <range/v3/view/iota.hpp>
#include <string>
#include <thread>
#include <vector>

#include "rondo/async/mailbox.hpp"
#include "rondo/async/timer.hpp"
#include "rondo/data/data.hpp"
#include "rondo/event/once.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"
#include "support/small_loops.hpp"
#include "support/temporary_directory.hpp"

namespace loop_test {

using namespace rondo;
using namespace rondo::literals;
using rondo::testing::contains;
using rondo::testing::counting_loop;
using rondo::testing::journal;
using rondo::testing::message_of;
using rondo::testing::problem;

TEST_CASE("a supervised loop learns and reports its loss", "[loop]") {
  problem p;
  auto l = p.loop({.max_epochs = 60});
  double first = 0;
  double last = 0;
  l | make_extension("watch", [&](context& ctx) {
    ctx.on<event::iteration_completed>([&] {
      if (ctx.iteration() == 1) first = ctx.observed("train/loss");
      last = ctx.observed("train/loss");
    });
  });
  const auto result = l.run();
  REQUIRE(result.iteration == 480);
  REQUIRE(result.epoch == 60);
  REQUIRE(result.stop_reason == "60 epochs completed");
  REQUIRE_FALSE(result.resumed_from);
  REQUIRE(last < first / 100);
}

TEST_CASE("the loop computes the same bits as the loop that a user would write", "[loop]") {
  problem by_hand;
  auto batches = by_hand.batches();
  for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
    data::set_epoch(batches, epoch);
    for (const auto& batch : batches) {
      by_hand.optimizer->zero_grad();
      torch::nn::functional::mse_loss(by_hand.model->forward(batch.data), batch.target).backward();
      by_hand.optimizer->step();
    }
  }
  problem p;
  p.loop({.max_epochs = 3}).run();
  REQUIRE(p.digest() == by_hand.digest());
}

TEST_CASE("events come in the documented order", "[loop][event]") {
  problem p;
  p.x = p.x.slice(0, 0, 8);
  p.y = p.y.slice(0, 0, 8);
  journal seen;
  auto l = p.loop({.max_epochs = 2});
  l | make_extension("watch", [&](context& ctx) {
    const auto note = [&seen](std::string text) { seen.push_back(std::move(text)); };
    ctx.on<event::restoring>([=] { note("restoring"); });
    ctx.on<event::training_started>([=](const auto& e) { note("training " + std::to_string(e.iteration)); });
    ctx.on<event::training_completed>([=](const auto& e) { note("end: " + e.stop_reason); });
    ctx.on<event::epoch_started>([=](const auto& e) { note("epoch " + std::to_string(e.epoch)); });
    ctx.on<event::epoch_completed>([=](const auto& e) { note("epochs " + std::to_string(e.epoch)); });
    ctx.on<event::iteration_started>([=](const auto& e) { note("iteration " + std::to_string(e.iteration)); });
    ctx.on<event::iteration_completed>([=](const auto& e) { note("iterations " + std::to_string(e.iteration)); });
    ctx.on<event::update_started>([=](const auto& e) { note("update " + e.optimizer); });
    ctx.on<event::update_completed>([=](const auto& e) { note("updated " + e.optimizer); });
  });
  l.run();
  journal expected{"restoring", "training 0"};
  for (int epoch = 0; epoch < 2; ++epoch) {
    expected.push_back("epoch " + std::to_string(epoch));
    for (int i = 1; i <= 2; ++i) {
      expected.push_back("iteration " + std::to_string(2 * epoch + i));
      expected.push_back("update main");
      expected.push_back("updated main");
      expected.push_back("iterations " + std::to_string(2 * epoch + i));
    }
    expected.push_back("epochs " + std::to_string(epoch + 1));
  }
  expected.push_back("end: 2 epochs completed");
  REQUIRE(seen == expected);
}

TEST_CASE("the snapshot priority comes after everybody has seen the end of the epoch", "[loop][event]") {
  journal seen;
  auto l = counting_loop(2, {.max_epochs = 1});
  const auto add = [&](const std::string& name, int priority) {
    l | make_extension(name,
                       [&seen, name](context& ctx) {
                         ctx.when_due([&seen, name] { seen.push_back(name + " due"); });
                         ctx.on<event::epoch_completed>([&seen, name] { seen.push_back(name + " epoch"); });
                       })
            .at_priority(priority)
            .triggered(every(1_epochs));
  };
  add("snapshot", priority::snapshot);
  add("reader", priority::reader);
  add("writer", priority::writer);
  l.run();
  REQUIRE(seen ==
          journal{"writer due", "reader due", "writer epoch", "reader epoch", "snapshot due", "snapshot epoch"});
}

TEST_CASE("a coroutine extension lives as long as the run and holds its state in its locals", "[loop][extension]") {
  std::vector<std::int64_t> seen;
  bool ended = false;
  auto l = counting_loop(3, {.max_epochs = 4});
  l | make_extension("listener", [&](context& ctx) -> task<> {
    std::int64_t sum = 0;
    while (const auto* epoch = co_await ctx.next<event::epoch_completed>()) {
      co_await sleep_for(std::chrono::milliseconds(1));  // training waits for the acknowledgement
      sum += epoch->epoch;
      seen.push_back(sum);
      REQUIRE(ctx.epoch() == epoch->epoch);
    }
    ended = true;
  });
  l.run();
  REQUIRE(seen == std::vector<std::int64_t>{1, 3, 6, 10});
  REQUIRE(ended);
}

TEST_CASE("a listener may wait for different events in turn", "[loop][extension]") {
  journal seen;
  auto l = counting_loop(3, {.max_epochs = 2});
  l | make_extension("listener", [&](context& ctx) -> task<> {
    for (;;) {
      const auto* started = co_await ctx.next<event::epoch_started>();
      if (started == nullptr) break;
      seen.push_back("epoch " + std::to_string(started->epoch));
      const auto* first = co_await ctx.next<event::iteration_completed>();
      seen.push_back("iteration " + std::to_string(first->iteration));
    }
  });
  l.run();
  REQUIRE(seen == journal{"epoch 0", "iteration 1", "epoch 1", "iteration 4"});
}

TEST_CASE("stop is a request with a reason; everybody still sees the current events", "[loop]") {
  journal seen;
  auto l = counting_loop(10, {.max_epochs = 100});
  l | make_extension("stopper", [&](context& ctx) {
    ctx.on<event::iteration_completed>([&] {
      if (ctx.iteration() == 13) ctx.stop("enough");
      if (ctx.iteration() == 13) ctx.stop("too late");
    });
  }) | make_extension("reader", [&](context& ctx) {
    ctx.on<event::iteration_completed>([&] {
      if (ctx.iteration() == 13) seen.push_back(ctx.stop_requested() ? "asked to stop" : "?");
    });
    ctx.on<event::epoch_completed>([&] { seen.push_back("epoch"); });
    ctx.on_end<event::epoch_completed>([&](const auto& e) {
      if (e.error) seen.push_back("epoch broken off");
    });
    ctx.on<event::training_completed>([&] { seen.push_back("end"); });
  });
  const auto result = l.run();
  REQUIRE(result.iteration == 13);
  REQUIRE(result.stop_reason == "enough");
  REQUIRE(seen == journal{"epoch", "asked to stop", "epoch broken off", "end"});
}

TEST_CASE("max_iterations and stop triggers end training", "[loop]") {
  REQUIRE(counting_loop(4, {.max_iterations = 6}).run().stop_reason == "6 iterations completed");
  auto l = counting_loop(4, {.stop_trigger = every(5_iterations)});
  const auto result = l.run();
  REQUIRE(result.iteration == 5);
  REQUIRE(contains(result.stop_reason, "every 5 iterations"));
}

TEST_CASE("an error in a step reaches every extension exactly once and is rethrown unchanged", "[loop][error]") {
  struct my_error : std::runtime_error {
    using std::runtime_error::runtime_error;
    int code = 42;
  };
  journal seen;
  auto step = [](context& ctx, const std::int64_t&) {
    if (ctx.iteration() == 5) throw my_error("broken step");
  };
  rondo::loop l(models{}, optimizers{}, ranges::views::iota(std::int64_t{0}, std::int64_t{4}), step, {.max_epochs = 3});
  for (const std::string name : {"a", "b", "c"})
    l | make_extension(name, [&seen, name](context& ctx) {
      ctx.on<event::failed>([&seen, name](const auto& e) {
        try {
          std::rethrow_exception(e.cause);
        } catch (const my_error& error) {
          seen.push_back(name + ": " + error.what());
        }
        if (name == "a") throw std::runtime_error("the handler breaks too");  // and masks nothing
      });
      ctx.on<event::iteration_completed>([&ctx] { REQUIRE(ctx.iteration() <= 5); });
      ctx.on_end<event::iteration_completed>([&seen, name](const auto& e) {
        if (e.error) seen.push_back(name + ": iteration " + std::to_string(e.iteration));
      });
      ctx.on<event::training_completed>([] { FAIL("training did not complete"); });
      ctx.on_end<event::training_completed>(
          [&seen, name](const auto& e) { seen.push_back(name + (e.error ? ": end" : "?")); });
    });
  try {
    l.run();
    FAIL("nothing was thrown");
  } catch (const my_error& e) {
    REQUIRE(e.code == 42);
  }
  REQUIRE(seen == journal{"a: iteration 6", "b: iteration 6", "c: iteration 6", "a: broken step", "b: broken step",
                          "c: broken step", "a: end", "b: end", "c: end"});
}

TEST_CASE("an error in an extension ends training wherever it is thrown", "[loop][error]") {
  const auto run_with = [](extension e) {
    auto l = counting_loop(4, {.max_epochs = 3});
    int told = 0;
    l | std::move(e) | make_extension("observer", [&](context& ctx) { ctx.on<event::failed>([&] { ++told; }); });
    const auto what = message_of<std::runtime_error>([&] { l.run(); });
    REQUIRE(told == 1);
    return what;
  };
  SECTION("inline handler") {
    REQUIRE(run_with(make_extension("x", [](context& ctx) {
              ctx.on<event::epoch_completed>([] { throw std::runtime_error("inline"); });
            })) == "inline");
  }
  SECTION("coroutine handler after a suspension") {
    REQUIRE(run_with(make_extension("x", [](context& ctx) {
              ctx.on<event::iteration_completed>([]() -> task<> {
                co_await sleep_for(std::chrono::milliseconds(1));
                throw std::runtime_error("coroutine");
              });
            })) == "coroutine");
  }
  SECTION("listener while the emitter waits for it") {
    REQUIRE(run_with(make_extension("x", [](context& ctx) -> task<> {
              static_cast<void>(co_await ctx.next<event::iteration_completed>());
              co_await sleep_for(std::chrono::milliseconds(1));
              throw std::runtime_error("listener");
            })) == "listener");
  }
  SECTION("listener on the first event of all") {
    REQUIRE(run_with(make_extension("x", [](context& ctx) -> task<> {
              static_cast<void>(co_await ctx.next<event::training_started>());
              throw std::runtime_error("early");
            })) == "early");
  }
  SECTION("background coroutine") {
    REQUIRE(run_with(make_extension("x", [](context& ctx) {
              ctx.spawn([]() -> task<> {
                co_await sleep_for(std::chrono::milliseconds(1));
                throw std::runtime_error("background");
              });
              ctx.on<event::iteration_completed>([]() -> task<> { co_await sleep_for(std::chrono::milliseconds(2)); });
            })) == "background");
  }
  SECTION("at the very end") {
    REQUIRE(run_with(make_extension("x", [](context& ctx) {
              ctx.on<event::training_completed>([] { throw std::runtime_error("end"); });
            })) == "end");
  }
}

TEST_CASE("an extension that waits for something else than events does not keep the run alive", "[loop][extension]") {
  auto l = counting_loop(4, {.max_epochs = 1});
  bool cancelled = false;
  bool background_cancelled = false;
  l | make_extension("sleeper", [&](context&) -> task<> {
    try {
      co_await sleep_for(std::chrono::hours(1));
    } catch (const asio::system_error&) {
      cancelled = true;
      throw;
    }
  }) | make_extension("spawner", [&](context& ctx) {
    ctx.spawn([&]() -> task<> {
      try {
        co_await sleep_for(std::chrono::hours(1));
      } catch (const asio::system_error&) {
        background_cancelled = true;
        throw;
      }
    });
  });
  REQUIRE(l.run().iteration == 4);
  REQUIRE(cancelled);
  REQUIRE(background_cancelled);
}

TEST_CASE("everything of a run happens on the calling thread, offloaded work does not", "[loop]") {
  const auto here = std::this_thread::get_id();
  auto l = counting_loop(3, {.max_epochs = 1});
  int checked = 0;
  l | make_extension("threads", [&](context& ctx) {
    ctx.on<event::iteration_completed>([&]() -> task<> {
      REQUIRE(std::this_thread::get_id() == here);
      auto work = [] { return std::this_thread::get_id(); };
      const auto there = co_await ctx.offload(work);
      REQUIRE(there != here);
      REQUIRE(std::this_thread::get_id() == here);
      ++checked;
    });
  });
  l.run();
  REQUIRE(checked == 3);
}

TEST_CASE("run_async runs on the caller's event loop, beside other coroutines, and can be cancelled", "[loop]") {
  asio::io_context events(1);
  auto l = counting_loop(4, {.max_epochs = 2});
  std::optional<run_result> result;
  asio::co_spawn(events, l.run_async(), [&](std::exception_ptr e, run_result r) {
    REQUIRE_FALSE(e);
    result = std::move(r);
  });
  events.run();
  REQUIRE(result->iteration == 8);

  auto endless = counting_loop(1000, {.max_epochs = 1000000});
  bool told = false;
  endless | make_extension("slow", [&](context& ctx) {
    ctx.on<event::iteration_completed>([]() -> task<> { co_await sleep_for(std::chrono::milliseconds(1)); });
    ctx.on<event::failed>([&] { told = true; });
  });
  asio::cancellation_signal cancel;
  std::exception_ptr error;
  events.restart();
  asio::co_spawn(events, endless.run_async(),
                 asio::bind_cancellation_slot(cancel.slot(), [&](std::exception_ptr e, run_result) { error = e; }));
  asio::steady_timer timer(events, std::chrono::milliseconds(20));
  timer.async_wait([&](auto) { cancel.emit(asio::cancellation_type::terminal); });
  events.run();
  REQUIRE(error);
  REQUIRE(told);
}

TEST_CASE("custom steps: several models and optimizers, each update announced", "[loop][step]") {
  torch::manual_seed(1);
  torch::nn::Linear a(1, 1);
  torch::nn::Linear b(1, 1);
  torch::optim::SGD first(a->parameters(), 0.1);
  torch::optim::SGD second(b->parameters(), 0.1);
  journal seen;
  auto step = [&](context& ctx, const std::int64_t&) -> task<> {
    for (auto* o : {&first, &second}) {
      o->zero_grad();
      auto& m = o == &first ? a : b;
      m->forward(torch::ones({1, 1})).sum().backward();
      co_await ctx.update(*o);
    }
    ctx.report("both", 1.0);
  };
  rondo::loop l(models{{"a", a}, {"b", b}}, optimizers{{"first", first}, {"second", second}},
                ranges::views::iota(std::int64_t{0}, std::int64_t{2}), step, {.max_epochs = 1});
  l | make_extension("watch", [&](context& ctx) {
    ctx.on<event::update_started>([&](const auto& e) { seen.push_back("> " + e.optimizer); });
    ctx.on<event::update_completed>([&](const auto& e) -> task<> {
      co_await sleep_for(std::chrono::milliseconds(1));
      seen.push_back("< " + e.optimizer);
    });
    ctx.on<event::iteration_completed>([&] { REQUIRE(ctx.observed("both") == 1.0); });
  });
  const auto before = b->weight.clone();
  l.run();
  REQUIRE(seen == journal{"> first", "< first", "> second", "< second", "> first", "< first", "> second", "< second"});
  REQUIRE_FALSE(torch::equal(before, b->weight));
}

TEST_CASE("a step that returns a loss is managed", "[loop][step]") {
  problem p;
  auto step = [&](context&, const data::example& batch) {
    return torch::mse_loss(p.model->forward(batch.data), batch.target);
  };
  rondo::loop l(p.model, p.optimizer, p.batches(), step, {.max_epochs = 3});
  l.run();
  problem supervised;
  supervised.loop({.max_epochs = 3}).run();
  REQUIRE(p.digest() == supervised.digest());
}

TEST_CASE("accumulated gradients equal those of the larger batch, also in a short last window", "[loop][step]") {
  const auto train = [](std::int64_t batch, std::int64_t accumulate) {
    problem p;
    torch::optim::SGD optimizer(p.model->parameters(), 0.1);
    rondo::loop l(p.model, optimizer,
                  data::tensor_dataset(p.x.slice(0, 0, 28), p.y.slice(0, 0, 28)) | data::batch(batch),
                  torch::nn::functional::mse_loss, {.max_epochs = 2, .accumulate = accumulate});
    int updates = 0;
    l | make_extension("count", [&](context& ctx) { ctx.on<event::update_completed>([&] { ++updates; }); });
    l.run();
    return std::pair(torch::cat({p.model->weight.flatten(), p.model->bias}).detach().clone(), updates);
  };
  const auto [small, small_updates] = train(4, 2);  // windows of 2, 2, 2 and 1 batches
  const auto [large, large_updates] = train(8, 1);  // batches of 8, 8, 8 and 4
  REQUIRE(small_updates == 8);
  REQUIRE(large_updates == 8);
  REQUIRE(torch::allclose(small, large, 1e-5, 1e-7));
}

TEST_CASE("gradients are clipped by norm and by value", "[loop][step]") {
  torch::nn::Linear model(torch::nn::LinearOptions(4, 1).bias(false));
  torch::optim::SGD optimizer(model->parameters(), 1.0);
  const auto one_step = [&](loop_options options) {
    auto step = [&](context&, const std::int64_t&) { return model->forward(torch::full({1, 4}, 10.0)).sum(); };
    rondo::loop l(model, optimizer, ranges::views::iota(std::int64_t{0}, std::int64_t{1}), step, std::move(options));
    double norm = 0;
    l | make_extension("norm", [&](context& ctx) {
      ctx.on<event::iteration_completed>([&] {
        if (const auto* n = ctx.reported().find("train/grad_norm")) norm = n->value();
      });
    });
    const auto before = model->weight.detach().clone();
    l.run();
    return std::pair((before - model->weight.detach()).norm().item<double>(), norm);
  };
  const auto [by_norm, norm] = one_step({.max_iterations = 1, .clip_grad_norm = 0.5});
  REQUIRE(by_norm == Approx(0.5).epsilon(1e-4));
  REQUIRE(norm == Approx(20.0));
  REQUIRE(one_step({.max_iterations = 1, .clip_grad_value = 2.0}).first == Approx(4.0));
  REQUIRE(one_step({.max_iterations = 1}).first == Approx(20.0));
}

TEST_CASE("ranges without a size and of one pass work as far as they can", "[loop][data]") {
  int made = 0;
  auto step = [](context&, const int&) {};
  SECTION("no size") {
    auto evens = ranges::views::iota(0, 10) | ranges::views::filter([](int i) { return i % 2 == 0; });
    rondo::loop l(models{}, optimizers{}, evens, step, {.max_epochs = 2});
    std::vector<bool> known;
    l | make_extension("watch", [&](context& ctx) {
      ctx.on<event::epoch_completed>([&] { known.push_back(ctx.epoch_length().has_value()); });
    });
    const auto result = l.run();
    REQUIRE(result.iteration == 10);
    REQUIRE(known == std::vector<bool>{true, true});
  }
  SECTION("generated") {
    auto numbers = ranges::views::generate_n([&] { return made++; }, 3);
    rondo::loop l(models{}, optimizers{}, numbers, step, {.max_iterations = 3});
    REQUIRE(l.run().iteration == 3);
    REQUIRE(made == 3);
  }
  SECTION("empty") {
    rondo::loop l(models{}, optimizers{}, std::vector<int>{}, step, {.max_epochs = 1});
    REQUIRE(contains(message_of<option_error>([&] { l.run(); }), "batches"));
  }
}

TEST_CASE("options that make no sense fail before training, naming option, value and what is allowed",
          "[loop][options]") {
  const auto refused = [](loop_options options) {
    bool trained = false;
    auto step = [&](context&, const int&) { trained = true; };
    rondo::loop l(models{}, optimizers{}, ranges::views::iota(0, 3), step, std::move(options));
    const auto what = message_of<option_error>([&] { l.run(); });
    REQUIRE_FALSE(trained);
    return what;
  };
  REQUIRE(contains(refused({}), "max_epochs"));
  REQUIRE(contains(refused({.max_epochs = 0}), "max_epochs' = 0"));
  REQUIRE(contains(refused({.max_iterations = -3}), "max_iterations' = -3"));
  REQUIRE(contains(refused({.max_epochs = 1, .accumulate = 0}), "accumulate"));
  REQUIRE(contains(refused({.max_epochs = 1, .clip_grad_norm = -1.0}), "clip_grad_norm' = -1"));
  REQUIRE(contains(refused({.max_epochs = 1, .background_threads = 0}), "background_threads"));
}

TEST_CASE("two extensions of one name, and an output directory that cannot be written to, are refused",
          "[loop][options]") {
  auto twice = counting_loop(2, {.max_epochs = 1});
  const auto nothing = [](context&) {};
  twice | make_extension("same", nothing) | make_extension("same", nothing);
  REQUIRE(contains(message_of<option_error>([&] { twice.run(); }), "'same' twice"));

  auto renamed = counting_loop(2, {.max_epochs = 1});
  renamed | make_extension("same", nothing) | make_extension("same", nothing).named("other");
  REQUIRE(renamed.run().iteration == 2);

  auto out = counting_loop(2, {.max_epochs = 1, .out = "/proc/no/such/place"});
  out | make_extension("writes", [](context& ctx) { static_cast<void>(ctx.out()); });
  REQUIRE(contains(message_of<option_error>([&] { out.run(); }), "/proc/no/such/place"));
}

TEST_CASE("a second trainer in the same output directory is refused", "[loop][options]") {
  testing::temporary_directory dir;
  auto first = counting_loop(2, {.max_epochs = 1, .out = dir.path() / "run"});
  std::string refusal;
  first | make_extension("writes", [&](context& ctx) {
    static_cast<void>(ctx.out());
    ctx.on<event::epoch_completed>([&] {
      auto second = counting_loop(2, {.max_epochs = 1, .out = dir.path() / "run"});
      second | make_extension("writes", [](context& c) { static_cast<void>(c.out()); });
      refusal = message_of<error>([&] { second.run(); });
    });
  });
  first.run();
  REQUIRE(contains(refusal, std::to_string(getpid())));
}

TEST_CASE("a loop runs once", "[loop]") {
  auto l = counting_loop(2, {.max_epochs = 1});
  l.run();
  REQUIRE(contains(message_of<error>([&] { l.run(); }), "has run already"));
}

TEST_CASE("SIGTERM stops after the current iteration; the handler from before is called and is back afterwards",
          "[loop][signals]") {
  static volatile std::sig_atomic_t called = 0;
  struct sigaction mine {};
  struct sigaction original {};
  mine.sa_handler = [](int) { called = called + 1; };
  sigaction(SIGTERM, &mine, &original);

  auto l = counting_loop(1000, {.max_epochs = 1000000});
  bool told = false;
  l | make_extension("killer", [&](context& ctx) {
    ctx.on<event::iteration_completed>([&]() -> task<> {
      if (ctx.iteration() == 5) std::raise(SIGTERM);
      co_await sleep_for(std::chrono::milliseconds(1));
    });
    ctx.on<event::signal_received>([&](const auto& s) { told = s.number == SIGTERM; });
  });
  const auto result = l.run();
  REQUIRE(result.stop_reason == "SIGTERM");
  REQUIRE(result.iteration >= 5);
  REQUIRE(called == 1);
  REQUIRE(told);

  struct sigaction after {};
  sigaction(SIGTERM, &original, &after);
  REQUIRE(after.sa_handler == mine.sa_handler);
}

TEST_CASE("user-defined events are first class", "[loop][event]") {
  struct milestone {
    std::string name;
  };
  journal seen;
  auto l = counting_loop(4, {.max_epochs = 1});
  l | make_extension("emitter", [&](context& ctx) {
    ctx.on<event::iteration_completed>([&]() -> task<> {
      if (ctx.iteration() == 2) co_await acknowledged(ctx.emit<milestone>("half way"));
      if (ctx.iteration() == 3) ctx.post<milestone>("posted");
    });
  }) | make_extension("listener", [&](context& ctx) -> task<> {
    while (const auto* m = co_await ctx.next<milestone>()) seen.push_back(m->name);
  });
  l.run();
  REQUIRE(seen == journal{"half way", "posted"});
}

TEST_CASE("a trigger given to an extension that never acts when due is refused, not ignored", "[loop][options]") {
  auto l = counting_loop(2, {.max_epochs = 1});
  l | make_extension("deaf", [](context&) {}).triggered(every(1_epochs));
  const auto what = message_of<option_error>([&] { l.run(); });
  REQUIRE(contains(what, "deaf"));
  REQUIRE(contains(what, "every 1 epochs"));
}

TEST_CASE("a signal in the first iteration stops the loop", "[loop][signals]") {
  struct sigaction by_default {};  // the test runner has a handler of its own, which would be called as well
  struct sigaction original {};
  by_default.sa_handler = SIG_DFL;
  sigaction(SIGINT, &by_default, &original);
  bool stopped_early = false;
  auto step = [&](context& ctx, const std::int64_t&) -> task<> {
    if (ctx.iteration() == 0) std::raise(SIGINT);
    co_await sleep_for(std::chrono::milliseconds(1));
  };
  rondo::loop l(models{}, optimizers{}, ranges::views::iota(std::int64_t{0}, std::int64_t{1000}), step,
                {.max_epochs = 1});
  l | make_extension("watch", [&](context& ctx) {
    ctx.on<event::training_completed>([&] { stopped_early = ctx.iteration() < 1000; });
  });
  const auto result = l.run();
  sigaction(SIGINT, &original, nullptr);
  REQUIRE(result.stop_reason == "SIGINT");
  REQUIRE(stopped_early);
}

TEST_CASE("everybody hears of the end, whatever the others throw", "[loop][error]") {
  journal seen;
  auto l = counting_loop(2, {.max_epochs = 1});
  l | make_extension("breaks", [](context& ctx) {
    ctx.on<event::training_completed>([] { throw std::runtime_error("at the end"); });
  }) | make_extension("after", [&](context& ctx) {
    ctx.on<event::training_completed>([&] { seen.push_back("completed"); });
    ctx.on<event::failed>([&] { seen.push_back("failed"); });
  }) | make_extension("late", [&](context& ctx) -> task<> {
    while (const auto* e = co_await ctx.next<event::epoch_completed>())
      seen.push_back("epoch " + std::to_string(e->epoch));
    seen.push_back("wakes up");
  });
  REQUIRE(message_of<std::runtime_error>([&] { l.run(); }) == "at the end");
  REQUIRE(seen == journal{"epoch 1", "completed", "failed", "wakes up"});
}

TEST_CASE("the trigger of a single subscription is asked at every emission, an extension's own once per iteration",
          "[loop][trigger]") {
  struct ping {};
  int fired = 0;
  int own = 0;
  auto l = counting_loop(2, {.max_epochs = 1});
  l | make_extension("emitter", [&](context& ctx) {
    ctx.on<event::iteration_completed>([&] {
      for (int i = 0; i < 3; ++i) static_cast<void>(ctx.emit<ping>());
    });
    ctx.on<ping>(once(), [&] { ++fired; });
  }) | make_extension("twice", [&](context& ctx) {
         ctx.when_due([&] { ++own; });
         ctx.when_due([&] { ++own; });
       }).triggered(once());
  l.run();
  REQUIRE(fired == 1);
  REQUIRE(own == 2);
}

TEST_CASE("a run that is abandoned with its event loop leaves nothing behind", "[loop][abandon]") {
  // The event loop goes first, the loop afterwards, as a program does that leaves main early.
  const std::string place = GENERATE(as<std::string>(), "step", "handler", "listener", "restoring", "offload");
  INFO(place);
  struct sigaction before {};
  sigaction(SIGPIPE, nullptr, &before);
  std::promise<void> working;
  {
    mailbox<int> nothing;  // nobody ever delivers
    const auto stuck = [&](const char* here) -> task<> {
      if (place == here) {
        working.set_value();
        static_cast<void>(co_await nothing.next());
      }
    };
    auto step = [&](context& ctx, const std::int64_t&) -> task<> {
      co_await stuck("step");
      if (place == "offload") {
        auto slow = [&working] {
          working.set_value();
          std::this_thread::sleep_for(std::chrono::milliseconds(20));  // still busy when the event loop goes
        };
        co_await ctx.offload(slow);
      }
    };
    rondo::loop l(models{}, optimizers{}, ranges::views::iota(std::int64_t{0}, std::int64_t{4}), step,
                  {.max_epochs = 1});
    l | make_extension("handlers", [&](context& ctx) {
      ctx.on<event::restoring>([&]() -> task<> { return stuck("restoring"); });
      ctx.on<event::iteration_completed>([&]() -> task<> { return stuck("handler"); });
    }) | make_extension("listener", [&](context& ctx) -> task<> {
      while (const auto* e = co_await ctx.next<event::iteration_completed>())
        if (e->iteration > 0) co_await stuck("listener");
    });
    bool finished = false;
    {
      asio::io_context events(1);
      asio::co_spawn(events, l.run_async(), [&](std::exception_ptr, run_result) { finished = true; });
      auto reached = working.get_future();
      while (reached.wait_for(std::chrono::seconds(0)) != std::future_status::ready) events.poll();
    }
    REQUIRE_FALSE(finished);
  }
  struct sigaction after {};
  sigaction(SIGPIPE, nullptr, &after);
  REQUIRE(after.sa_handler == before.sa_handler);
}

TEST_CASE("a coroutine that goes on asking for events after the end gets an error", "[loop][coroutine]") {
  auto l = counting_loop(3, {.max_iterations = 2});
  l | make_extension("deaf", [](context& ctx) -> task<> {
    for (;;) static_cast<void>(co_await ctx.next<event::iteration_completed>());
  });
  REQUIRE(contains(message_of<error>([&] { l.run(); }), "'deaf' calls ctx.next() again and again"));
}

}  // namespace loop_test

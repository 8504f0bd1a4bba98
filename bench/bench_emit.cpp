// What an event costs, by the kind of its subscribers, beside plain calls of the same handlers. All on one thread, from
// a coroutine, as the loop does it.

#include <ATen/ops/tensor.h>
#include <benchmark/benchmark.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <range/v3/view/iota.hpp>
#include <string>
#include <vector>

#include "rondo/event/bus.hpp"
#include "rondo/event/events.hpp"
#include "rondo/event/interval.hpp"
#include "rondo/loop/loop.hpp"
#include "rondo/report/observations.hpp"
#include "support.hpp"

namespace rondo::bench {
namespace {

using namespace rondo::literals;
using step_event = event::iteration_completed;

/// What every handler here does.
struct counting {
  std::int64_t* calls;
  void operator()(const step_event& e) const { *calls += e.iteration; }
};

struct counting_coroutine {
  std::int64_t* calls;
  task<> operator()(const step_event& e) const {
    *calls += e.iteration;
    co_return;
  }
};

void report_cost(benchmark::State& state, std::int64_t calls) {
  benchmark::DoNotOptimize(calls);
  if (state.range(0) > 0) state.counters["ns_each"] = nanoseconds_for_each_of(static_cast<double>(state.range(0)));
}

// ---- plain calls ----

[[gnu::noinline]] void count_directly(std::int64_t& calls, const step_event& e) { calls += e.iteration; }

void direct_call(benchmark::State& state) {
  std::int64_t calls = 0;
  for (auto _ : state) {
    const step_event e{1, nullptr};
    for (std::int64_t i = 0; i != state.range(0); ++i) count_directly(calls, e);
    benchmark::ClobberMemory();
  }
  report_cost(state, calls);
}

void std_function(benchmark::State& state) {
  std::int64_t calls = 0;
  std::vector<std::function<void(const step_event&)>> handlers(static_cast<std::size_t>(state.range(0)),
                                                               counting{&calls});
  for (auto _ : state) {
    const step_event e{1, nullptr};
    for (const auto& handler : handlers) handler(e);
    benchmark::ClobberMemory();
  }
  report_cost(state, calls);
}

// ---- emit ----

task<> emit_again_and_again(benchmark::State& state, bus& events) {
  for (auto _ : state) {
    auto rest = events.emit<step_event>(1, nullptr);
    if (rest) co_await std::move(*rest);
  }
}

template <class Handler>
void emit_to_handlers(benchmark::State& state) {
  std::int64_t calls = 0;
  bus events;
  for (std::int64_t i = 0; i != state.range(0); ++i) events.on<step_event>({}, Handler{&calls});
  run_to_end([&] { return emit_again_and_again(state, events); });
  report_cost(state, calls);
}

/// A session that nobody runs: gates read the progress of training from it.
detail::session idle_session() {
  return {loop_options{.max_iterations = 1}, {}, {}, {}, nullptr, detail::supervision{}};
}

task<> emit_in_new_iterations(benchmark::State& state, bus& events, detail::session& progress) {
  for (auto _ : state) {
    ++progress.execution;  // gates remember their answer for one iteration
    auto rest = events.emit<step_event>(1, nullptr);
    if (rest) co_await std::move(*rest);
  }
}

// Each subscriber has a trigger of its own, as extensions have; none of them ever fires.
void emit_to_gated(benchmark::State& state) {
  std::int64_t calls = 0;
  detail::session progress = idle_session();
  progress.now.iteration = 1;
  bus events;
  for (std::int64_t i = 0; i != state.range(0); ++i) {
    auto gate = std::make_shared<detail::trigger_gate>(every(1'000'000_iterations), progress, true);
    events.on<step_event>({priority::reader, std::move(gate), false}, counting{&calls});
  }
  run_to_end([&] { return emit_in_new_iterations(state, events, progress); });
  if (calls != 0) state.SkipWithError("a gate that should have been shut was open");
  report_cost(state, calls);
}

struct ping {
  std::int64_t value;
};

// Long-lived coroutines that wait in `context::next`, in a training whose only step emits.
void emit_to_listeners(benchmark::State& state) {
  std::int64_t calls = 0;
  auto step = [&state](context& ctx, int&) -> task<> {
    for (auto _ : state) {
      auto rest = ctx.emit<ping>(1);
      if (rest) co_await std::move(*rest);
    }
  };
  rondo::loop loop(models{}, optimizers{}, ranges::views::iota(0, 1), step, {.max_iterations = 1});
  for (std::int64_t i = 0; i != state.range(0); ++i)
    loop | make_extension("listener " + std::to_string(i), [&calls](context& ctx) -> task<> {
      while (const ping* p = co_await ctx.next<ping>()) calls += p->value;
    });
  loop.run();
  if (calls == 0) state.SkipWithError("nobody listened");
  report_cost(state, calls);
}

// ---- reports ----

constexpr observable<double> train_loss{"train/loss"};

/// The last one of so many keys, as in an iteration in the middle of training.
template <class Value>
void report_to_observations(benchmark::State& state, const Value& value) {
  observations observed;
  for (std::int64_t i = 1; i < state.range(0); ++i) observed.report("train/other_" + std::to_string(i), 0.0);
  for (auto _ : state) {
    observed.report(train_loss.name, value, 64.0);
    benchmark::ClobberMemory();
  }
  double last = observed.at(train_loss.name).value();
  benchmark::DoNotOptimize(last);
}

void report_double(benchmark::State& state) { report_to_observations(state, 0.5); }
void report_tensor(benchmark::State& state) { report_to_observations(state, at::tensor(0.5)); }

BENCHMARK(direct_call)->Name("call/direct")->Arg(0)->Arg(1)->Arg(10)->Arg(20);
BENCHMARK(std_function)->Name("call/std_function")->Arg(0)->Arg(1)->Arg(10)->Arg(20);
BENCHMARK_TEMPLATE(emit_to_handlers, counting)->Name("emit/inline")->Arg(0)->Arg(1)->Arg(10)->Arg(20);
BENCHMARK(emit_to_gated)->Name("emit/gated")->Arg(1)->Arg(10)->Arg(20);
BENCHMARK_TEMPLATE(emit_to_handlers, counting_coroutine)->Name("emit/coroutine")->Arg(1)->Arg(10)->Arg(20);
BENCHMARK(emit_to_listeners)->Name("emit/listener")->Arg(1)->Arg(10)->Arg(20);
BENCHMARK(report_double)->Name("report/double")->ArgName("keys")->Arg(1)->Arg(10);
BENCHMARK(report_tensor)->Name("report/tensor")->ArgName("keys")->Arg(1)->Arg(10);

}  // namespace
}  // namespace rondo::bench

BENCHMARK_MAIN();

// One rank of a training that may lose ranks at any moment; see ranks_test.py.
//
//   ranks_program WRITER OUT [OPTION...]
//   ranks_program meet WHAT [--timeout MS]
//
// The second form trains nothing: its ranks meet in barriers, collectives or parts (WHAT) until one of them is gone.
//
//   --iterations N        of the whole training; default 60
//   --mode MODE           of the snapshots: distributed (default), sharded, or gathered, which is distributed with an
//                         optimizer whose state is spread over the ranks, as with sharded
//   --saver-rank R        of the snapshots
//   --timeout MS          of the group
//   --pause MS            what every step takes; the results do not depend on it
//   --fail ITERATION      this rank throws in that iteration's step
//   --disk-full N         this rank's disk is full from its N-th file on
//   --disk-broken N       the same with EIO
//   --disk-slow N         from then on each file takes three times as long as ranks wait for each other
//   --on-failure warn     a snapshot that cannot be written does not end the training
//   --on-error save       a training that fails leaves its last state
//   --stop-at ITERATION   this rank asks for the end there
//   --hold MOMENT         this rank stands still for the snapshot of iteration 4: when it has come there (iteration),
//                         before it writes (writing), before or after the snapshot gets its name (naming, named). It
//                         says "held", and goes on when there is a file OUT.go
//   --calls FILE          says there what it makes durable and which names it gives (support/watched_calls.hpp)
//
// The rank is found as in any program. Says "begun", "iteration N" after each, "saved N" or "not saved N: reason" for
// each snapshot, and at the end one JSON object. Goes on from the newest snapshot in OUT.

#include <torch/nn.h>
#include <torch/optim.h>

#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <rondo/distributed/consolidate.hpp>
#include <rondo/distributed/rank_group.hpp>
#include <rondo/distributed/sharded_optimizer.hpp>
#include <rondo/extensions.hpp>
#include <rondo/rondo.hpp>
#include <string>
#include <thread>
#include <vector>

#include "support/bad_disk.hpp"
#include "support/watched_calls.hpp"

namespace F = torch::nn::functional;
namespace data = rondo::data;
using std::chrono::milliseconds;

namespace {

constexpr std::int64_t global_batch = 24;
constexpr std::int64_t examples_count = 12 * global_batch;

struct settings {
  std::string writer;
  std::string out;
  std::int64_t iterations = 60;
  std::string mode = "distributed";
  int saver_rank = 0;
  milliseconds timeout{20000};
  milliseconds pause{0};
  std::optional<std::int64_t> fail;
  std::string bad_disk;
  std::int64_t bad_from = 0;
  std::optional<std::int64_t> stop_at;
  std::string hold;
  std::string calls;
  bool warn = false;
  bool save_on_error = false;
};

settings parse(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() < 2) throw rondo::error("usage: ranks_program WRITER OUT [OPTION...]");
  settings s;
  s.writer = arguments[0];
  s.out = arguments[1];
  for (std::size_t i = 2; i < arguments.size(); ++i) {
    const auto& option = arguments[i];
    const auto& value = arguments.at(++i);
    if (option == "--iterations")
      s.iterations = std::stoll(value);
    else if (option == "--mode")
      s.mode = value;
    else if (option == "--saver-rank")
      s.saver_rank = std::stoi(value);
    else if (option == "--timeout")
      s.timeout = milliseconds(std::stoll(value));
    else if (option == "--pause")
      s.pause = milliseconds(std::stoll(value));
    else if (option == "--fail")
      s.fail = std::stoll(value);
    else if (option == "--disk-full" || option == "--disk-broken" || option == "--disk-slow") {
      s.bad_disk = option;
      s.bad_from = std::stoll(value);
    } else if (option == "--stop-at")
      s.stop_at = std::stoll(value);
    else if (option == "--hold")
      s.hold = value;
    else if (option == "--calls")
      s.calls = value;
    else if (option == "--on-error")
      s.save_on_error = value == "save";
    else if (option == "--on-failure")
      s.warn = value == "warn";
    else
      throw rondo::error("ranks_program: unknown option " + option);
  }
  return s;
}

void say(const std::string& line) { std::cout << line << std::endl; }

void stand_still(const settings& s) {
  say("held");
  while (!std::filesystem::exists(s.out + ".go")) std::this_thread::sleep_for(milliseconds(2));
}

void watch_calls(const settings& s) {
  auto& calls = rondo::testing::watched_calls::of_this_program();
  const auto hold_at_name = [s](const std::string& name) {
    if (name.ends_with("/snapshot_iter_4")) stand_still(s);
  };
  if (s.hold == "naming") calls.naming = hold_at_name;
  if (s.hold == "named") calls.named = hold_at_name;
  if (!s.calls.empty()) calls.write_to(s.calls);
}

struct network : torch::nn::Module {
  network() {
    hidden = register_module("hidden", torch::nn::Linear(16, 64));
    output = register_module("output", torch::nn::Linear(64, 4));
    to(torch::kDouble);
  }
  torch::Tensor forward(const torch::Tensor& x) { return output(torch::tanh(hidden(x))); }

  torch::nn::Linear hidden{nullptr};
  torch::nn::Linear output{nullptr};
};

std::shared_ptr<rondo::writing::file_system> make_disk(const settings& s) {
  using rondo::testing::fails_with;
  if (s.hold == "writing")
    return std::make_shared<rondo::testing::bad_disk>(2, [s](const std::filesystem::path&) { stand_still(s); });
  if (s.bad_disk.empty()) return rondo::writing::posix_file_system();
  auto happening = fails_with(s.bad_disk == "--disk-full" ? std::errc::no_space_on_device : std::errc::io_error);
  if (s.bad_disk == "--disk-slow")
    happening = [time = 3 * s.timeout](const std::filesystem::path&) { std::this_thread::sleep_for(time); };
  return std::make_shared<rondo::testing::bad_disk>(s.bad_from, happening);
}

std::shared_ptr<rondo::writing::writer> make_writer(const settings& s) {
  const auto files = make_disk(s);
  if (s.writer == "simple") return rondo::writers::simple({.files = files});
  if (s.writer == "thread") return rondo::writers::thread({.files = files});
  if (s.writer == "thread_queue") return rondo::writers::thread_queue({.files = files});
  if (!s.bad_disk.empty())
    throw rondo::error("ranks_program: " + s.bad_disk + " needs another writer than " + s.writer);
  if (s.writer == "process") return rondo::writers::process();
  if (s.writer == "process_queue") return rondo::writers::process_queue();
  throw rondo::error("ranks_program: no writer " + s.writer);
}

std::string message_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  }
}

rondo::extension narrator(const settings& s) {
  auto subscribe = [s](rondo::context& ctx) {
    ctx.on<rondo::event::training_started>([] { say("begun"); });
    ctx.on<rondo::event::iteration_completed>([s, &ctx] {
      say("iteration " + std::to_string(ctx.iteration()));
      if (s.hold == "iteration" && ctx.iteration() == 4) stand_still(s);
      if (s.stop_at == ctx.iteration()) ctx.stop("asked for");
    });
    ctx.on_end<rondo::event::snapshot_completed>([](const rondo::event::snapshot_completed& done) {
      const auto iteration = std::to_string(done.iteration);
      say(done.error ? "not saved " + iteration + ": " + message_of(done.error) : "saved " + iteration);
    });
  };
  return rondo::make_extension("narrator", subscribe).at_priority(rondo::priority::writer + 1);
}

std::unique_ptr<torch::optim::Optimizer> make_optimizer(const settings& s, const network& model,
                                                        const rondo::distributed::rank_group& group) {
  using torch::optim::SGD;
  const auto options = torch::optim::SGDOptions(5e-2).momentum(0.9);
  if (s.mode == "distributed") return std::make_unique<SGD>(model.parameters(), options);
  return std::make_unique<rondo::distributed::sharded_optimizer<SGD>>(model.parameters(), options, group);
}

rondo::task<> compute_digest(rondo::context& ctx, std::string& digest) {
  rondo::state::value state =
      rondo::state::dict{{"model", rondo::state::module_state(*ctx.models().front().module)},
                         {"optimizer", rondo::state::optimizer_state(*ctx.optimizers().front().optimizer)}};
  const auto whole = co_await rondo::distributed::consolidate(std::move(state), ctx.group());
  digest = rondo::state::digest_of(whole);
}

rondo::extension digest_at_end(std::string& digest) {
  auto subscribe = [&digest](rondo::context& ctx) {
    ctx.on<rondo::event::training_completed>(
        [&ctx, &digest]() -> rondo::task<> { return compute_digest(ctx, digest); });
  };
  return rondo::make_extension("digest_at_end", subscribe);
}

rondo::task<> use(rondo::distributed::rank_group group) {
  const auto text = std::to_string(group.rank());
  const auto least = co_await group.agree_minimum(group.rank());
  const auto told = co_await group.broadcast(text, group.world_size() - 1);
  const auto all = co_await group.all_gather(text);
  const auto sum = torch::ones({100'000});
  co_await group.all_reduce(sum);
  const auto tensors = co_await group.all_gather(sum);
  if (least != 0 || told != all.back() || tensors.size() != all.size()) throw rondo::error("a collective is wrong");
}

rondo::task<> meet_for_ever(rondo::distributed::rank_group group, std::string what) {
  auto splitting = group.split(group.rank() % 2);
  const auto part = co_await std::move(splitting);
  for (bool first = true;; first = false) {
    if (what == "barriers") {
      co_await group.barrier();
    } else {
      auto meeting = use(what == "parts" ? part : group);
      co_await std::move(meeting);
    }
    if (what == "parts") co_await group.barrier();
    if (first) say("begun");
  }
}

int meet(const settings& s) {
  const auto group = rondo::distributed::rank_group::connect(rondo::distributed::environment(), {.timeout = s.timeout});
  asio::io_context events(1);
  std::exception_ptr failure;
  asio::co_spawn(events, meet_for_ever(group, s.out), [&](std::exception_ptr e) { failure = e; });
  events.run();
  group.leave(message_of(failure));
  std::rethrow_exception(failure);
}

int train(const settings& s) {
  const auto group = rondo::distributed::rank_group::connect(rondo::distributed::environment(), {.timeout = s.timeout});
  // Other ranks begin with other parameters, until they are given those of rank 0.
  torch::manual_seed(1);
  const data::tensor_dataset examples{torch::randn({examples_count, 16}, torch::kDouble),
                                      torch::randint(4, {examples_count})};
  torch::manual_seed(static_cast<std::uint64_t>(1 + group.rank()));
  auto model = std::make_shared<network>();
  const auto optimizer = make_optimizer(s, *model, group);
  if (global_batch % group.world_size() != 0) throw rondo::error("ranks_program: 24 is no multiple of the ranks");
  auto batches = examples | data::shuffle(1) | data::distributed(group.rank(), group.world_size()) |
                 data::batch(global_batch / group.world_size());

  const auto step = [s, model](rondo::context& ctx, const data::example& batch) {
    std::this_thread::sleep_for(s.pause);
    if (s.fail == ctx.iteration() + 1) throw std::runtime_error("this rank has had enough");
    return F::cross_entropy(model->forward(batch.data), batch.target);
  };
  rondo::loop training(model, *optimizer, batches, step,
                       {.max_iterations = s.iterations, .out = s.out, .group = group});
  std::string digest;
  training | narrator(s) | digest_at_end(digest) |
      rondo::snapshot({.snapshot_on_error = s.save_on_error,
                       .n_retains = 3,
                       .autoload = true,
                       .writer = make_writer(s),
                       .mode = s.mode == "sharded" ? rondo::snapshot_mode::sharded : rondo::snapshot_mode::distributed,
                       .saver_rank = s.saver_rank,
                       .on_failure = s.warn ? rondo::snapshot_failure::warn : rondo::snapshot_failure::fail})
          .triggered(rondo::every(rondo::iterations(2)));
  const rondo::run_result result = training.run();

  double sum = 0;
  for (const auto& p : model->parameters()) sum += p.abs().sum().item<double>();
  const nlohmann::json summary{
      {"rank", group.rank()},
      {"iteration", result.iteration},
      {"resumed_from", result.resumed_from ? nlohmann::json(result.resumed_from->string()) : nlohmann::json()},
      {"stop_reason", result.stop_reason},
      {"parameters_sum", sum},
      {"state_digest", digest}};
  say(summary.dump());
  return rondo::exit_code(result);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const settings s = parse(argc, argv);
    torch::set_num_threads(1);
    watch_calls(s);
    return s.writer == "meet" ? meet(s) : train(s);
  } catch (const rondo::distributed::rank_error& e) {
    std::cerr << "ranks_program: " << e.what() << "\nnamed:";
    for (const int rank : e.ranks()) std::cerr << ' ' << rank;
    std::cerr << '\n';
    return 1;
  } catch (const std::exception& e) {
    std::cerr << "ranks_program: " << e.what() << '\n';
    return 1;
  }
}

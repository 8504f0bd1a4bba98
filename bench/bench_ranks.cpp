// What several ranks cost. Every benchmark starts its other ranks as real processes, with one thread of LibTorch each.
//
//   data_parallel/MODEL   a training step of two ranks, in seven ways that take turns in changing order inside one
//                         benchmark; times are medians in ms:
//                           compute              forward and backward alone
//                           per_parameter        then c10d's allreduce for each parameter, one after the other: what
//                                                programs for LibTorch do today
//                           overlap              distributed::data_parallel, gradients travel during backward
//                           agreement            the same, and then what the loop exchanges after each iteration
//                           no_overlap           all of them at its end
//                           small_buckets        overlap with buckets of 1 MiB
//                           communication        all gradients as one tensor, alone
//                         wait_…: the part of it after backward, until the gradients are there
//                         to_practice: overlap / per_parameter, agreement_to_overlap: the medians of neighbours' ratios
//   latency/RANKS         what a meeting takes: barrier, agree, and the exchanges of a snapshot in the modes
//                         distributed and sharded, and an all_reduce of 1,000 floats, in µs; plain_…: c10d's own
//                         blocking calls in turns with them, …_to_plain: the median of neighbours' ratios
//   stall                 what training loses to a snapshot that a thread writes: 25 million parameters with Adam
//                         (300 MB) on each of two ranks, ms, medians (`snapshot_completed::stall_seconds` of rank 0):
//                           alone                two processes that do not know each other, one of them saves
//                           distributed, sharded both train together and save in that mode
//   roll_call/RANKS       a barrier of many ranks that are coroutines of this process: one connection each, and a
//                         thread. us_per_message: of the 2 (RANKS - 1) that rank 0 has to do with; what the other ends
//                         cost is in it, too
//   hub/RANKS             rank 0 alone, with a connection to each of the others, which are nothing but their messages
//                         and live in one other process: what rank 0 costs where those are on other machines.
//                         ms: median on the clock, the other process on the same cores; cpu_us: processor time of rank
//                         0's process for each of the 2 (RANKS - 1) messages. barrier; iteration: what the loop
//                         exchanges after each iteration; gather: 5 KB of each rank

#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <torch/nn.h>
#include <torch/optim.h>
#include <unistd.h>

#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <algorithm>
#include <array>
#include <asio/buffer.hpp>
#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/read.hpp>
#include <asio/write.hpp>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <range/v3/view/iota.hpp>
#include <string>
#include <thread>
#include <vector>

#include "rondo/distributed/data_parallel.hpp"
#include "rondo/distributed/rank_group.hpp"
#include "rondo/distributed/roll_call.hpp"
#include "rondo/event/interval.hpp"
#include "rondo/extensions/snapshot/snapshot.hpp"
#include "rondo/loop/loop.hpp"

extern char** environ;

namespace rondo::bench {
namespace {

using clock = std::chrono::steady_clock;
using distributed::rank_group;
using results = std::map<std::string, double>;

std::uint16_t free_port() {
  asio::io_context events;
  const asio::ip::tcp::acceptor acceptor(events, {asio::ip::address_v4::loopback(), 0});
  return acceptor.local_endpoint().port();
}

double median(std::vector<double> numbers) {
  const auto middle = numbers.begin() + static_cast<std::ptrdiff_t>(numbers.size() / 2);
  std::nth_element(numbers.begin(), middle, numbers.end());
  return *middle;
}

template <class F>
void run(F make) {
  asio::io_context events;
  std::exception_ptr failure;
  asio::co_spawn(events, make(), [&](std::exception_ptr e) { failure = e; });
  events.run();
  if (failure) std::rethrow_exception(failure);
}

distributed::launch launch_of(int rank, int world_size, std::uint16_t port) {
  distributed::launch who;
  who.rank = who.local_rank = rank;
  who.world_size = who.local_world_size = world_size;
  who.master_port = port;
  return who;
}

// ---- data parallel -----------------------------------------------------------------------------------------------

struct model_of_steps {
  torch::nn::Sequential network;
  at::Tensor input;
  at::Tensor target;
};

model_of_steps make_model(const std::string& name) {
  torch::manual_seed(1);
  namespace nn = torch::nn;
  nn::Sequential network;
  if (name == "mlp") {
    for (int i = 0; i < 16; ++i) {
      network->push_back(nn::Linear(512, 512));
      network->push_back(nn::ReLU());
    }
    network->push_back(nn::Linear(512, 10));
    return {network, torch::rand({64, 512}), torch::randint(10, {64})};
  }
  for (std::int64_t channels = 1, i = 0; i < 6; ++i, channels = 32) {
    network->push_back(nn::Conv2d(nn::Conv2dOptions(channels, 32, 3).padding(1)));
    network->push_back(nn::ReLU());
  }
  network->push_back(nn::Flatten());
  network->push_back(nn::Linear(32 * 14 * 14, 10));
  return {network, torch::rand({16, 1, 14, 14}), torch::randint(10, {16})};
}

/// As loop::run does it, where nobody has anything to say.
task<> agree(rank_group group) {
  group.require_same("the end of iteration 1");
  std::string nothing = R"([false,0,false,""])";
  co_await group.all_gather(std::move(nothing));
}

/// One of the ways to be measured: a model of its own, because the ways differ in the hooks that it has.
class contender {
 public:
  contender(const std::string& name, std::string way, const rank_group& group, c10d::ProcessGroup& plain)
      : model_(make_model(name)), way_(std::move(way)), group_(group), plain_(plain) {
    if (way_ == "overlap" || way_ == "agreement" || way_ == "no_overlap" || way_ == "small_buckets") {
      distributed::data_parallel_options options;
      options.overlap = way_ != "no_overlap";
      if (way_ == "small_buckets") options.bucket_mb = 1;
      parallel_ = std::make_unique<distributed::data_parallel>(model_.network.ptr(), group_, options);
    }
    std::int64_t count = 0;
    for (const auto& p : model_.network->parameters()) count += p.numel();
    flat_ = torch::zeros({count});
  }

  [[nodiscard]] const std::string& name() const { return way_; }

  void step() {
    if (way_ == "communication") return run([this] { return group_.all_reduce(flat_); });
    model_.network->zero_grad();
    const auto loss = torch::nn::functional::cross_entropy(model_.network->forward(model_.input), model_.target);
    if (parallel_) parallel_->begin(model_.input.size(0));
    loss.backward();
    const auto computed = clock::now();
    if (parallel_) run([this] { return parallel_->finish(); });
    if (way_ == "per_parameter") reduce_each();
    if (way_ == "agreement") run([this] { return agree(group_); });
    waits_.push_back(std::chrono::duration<double, std::milli>(clock::now() - computed).count());
  }

  /// How long it has waited after backward, as a rule; nothing if never.
  [[nodiscard]] double wait() const { return waits_.empty() ? 0.0 : median(waits_); }

 private:
  void reduce_each() {
    for (const auto& p : model_.network->parameters()) {
      std::vector<at::Tensor> gradient{p.grad()};
      plain_.allreduce(gradient)->wait();
      gradient.front().div_(group_.world_size());
    }
  }

  model_of_steps model_;
  std::string way_;
  rank_group group_;
  c10d::ProcessGroup& plain_;
  std::unique_ptr<distributed::data_parallel> parallel_;
  at::Tensor flat_;
  std::vector<double> waits_;
};

/// Debian's LibTorch 2 is built without it.
template <class Options>
void do_without_libuv(Options& store) {
  if constexpr (requires { store.useLibUV; }) store.useLibUV = false;
}

/// c10d as a program without Rondo uses it.
c10::intrusive_ptr<c10d::ProcessGroupGloo> plain_group(int rank, int world_size, std::uint16_t port) {
  c10d::TCPStoreOptions meeting_point;
  meeting_point.port = static_cast<std::uint16_t>(port + 1);
  meeting_point.isServer = rank == 0;
  do_without_libuv(meeting_point);
  auto options = c10d::ProcessGroupGloo::Options::create();
  options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1"));
  return c10::make_intrusive<c10d::ProcessGroupGloo>(c10::make_intrusive<c10d::TCPStore>("127.0.0.1", meeting_point),
                                                     rank, world_size, options);
}

results data_parallel(const std::string& model, int rank, int world_size, std::uint16_t port) {
  torch::set_num_threads(1);
  const auto group = rank_group::connect(launch_of(rank, world_size, port));
  const auto plain = plain_group(rank, world_size, port);

  std::vector<std::unique_ptr<contender>> all;
  for (const char* const way :
       {"compute", "per_parameter", "overlap", "agreement", "no_overlap", "small_buckets", "communication"})
    all.push_back(std::make_unique<contender>(model, way, group, *plain));
  std::map<std::string, std::vector<double>> times;
  std::mt19937 order(1);  // the same on both ranks
  for (int round = -3; round < 60; ++round) {
    std::shuffle(all.begin(), all.end(), order);
    for (const auto& one : all) {
      run([&] { return group.barrier(); });
      const auto begun = clock::now();
      one->step();
      run([&] { return group.barrier(); });
      const std::chrono::duration<double, std::milli> spent = clock::now() - begun;
      if (round >= 0) times[one->name()].push_back(spent.count());
    }
  }
  results found;
  for (const auto& [name, each] : times) found[name] = median(each);
  for (const auto& one : all) found["wait_" + one->name()] = one->wait();
  const auto ratio = [&](const char* one, const char* other) {
    std::vector<double> ratios;
    for (std::size_t i = 0; i < times[one].size(); ++i) ratios.push_back(times[one][i] / times[other][i]);
    return median(ratios);
  };
  found["to_practice"] = ratio("overlap", "per_parameter");
  found["agreement_to_overlap"] = ratio("agreement", "overlap");
  all.clear();
  group.leave();
  return found;
}

// ---- latency -----------------------------------------------------------------------------------------------------

task<> exchange_distributed(rank_group group, std::string random) {
  co_await group.gather(random);
  co_await group.broadcast("go");
  co_await group.broadcast("durable");
}

task<> exchange_sharded(rank_group group, std::string random) {
  co_await group.gather(random);
  co_await group.broadcast("go");
  co_await group.gather(random);  // the receipts, of a thousand tensors
  co_await group.broadcast("durable");
}

task<> exchange_agree(rank_group group) { co_await group.agree(true); }

results latency(const std::string&, int rank, int world_size, std::uint16_t port) {
  const auto group = rank_group::connect(launch_of(rank, world_size, port));
  const std::string random(5056, 'r');  // as large as the state of a CPU's generator
  const std::vector<std::pair<std::string, std::function<task<>()>>> meetings{
      {"barrier", [&] { return group.barrier(); }},
      {"agree", [&] { return exchange_agree(group); }},
      {"commit_distributed", [&] { return exchange_distributed(group, random); }},
      {"commit_sharded", [&] { return exchange_sharded(group, random); }},
  };
  results found;
  const auto microseconds_of = [](const auto& call) {
    const auto begun = clock::now();
    call();
    return std::chrono::duration<double, std::micro>(clock::now() - begun).count();
  };
  for (const auto& [name, meet] : meetings) {
    std::vector<double> times;
    for (int round = 0; round < 200; ++round) times.push_back(microseconds_of([&] { run(meet); }));
    found[name] = median(times);
  }
  const auto plain = plain_group(rank, world_size, port);
  const int rounds = world_size <= 4 ? 300 : 30;  // more processes than cores are slow with c10d
  const auto tensor = torch::ones({1000});
  const auto beside = [&](const std::string& name, const auto& ours, const auto& theirs) {
    std::vector<double> times;
    std::vector<double> plain_times;
    std::vector<double> ratios;
    for (int round = 0; round < rounds; ++round) {
      times.push_back(microseconds_of([&] { run(ours); }));
      plain_times.push_back(microseconds_of(theirs));
      ratios.push_back(times.back() / plain_times.back());
    }
    found[name] = median(times);
    found["plain_" + name] = median(plain_times);
    found[name + "_to_plain"] = median(ratios);
  };
  beside(
      "barrier", [&] { return group.barrier(); }, [&] { plain->barrier()->wait(); });
  beside(
      "all_reduce", [&] { return group.all_reduce(tensor); },
      [&] {
        std::vector<at::Tensor> tensors{tensor};
        plain->allreduce(tensors)->wait();
      });
  group.leave();
  return found;
}

// ---- stall -------------------------------------------------------------------------------------------------------

/// Trains with a snapshot every four iterations; gives the median of what they cost the training thread, in ms.
double stall_of(const rank_group& group, bool saves, snapshot_mode mode, const std::filesystem::path& out) {
  constexpr std::int64_t width = 1024;
  torch::nn::Sequential model;
  for (int i = 0; i < 24; ++i) model->push_back(torch::nn::Linear(width, width));
  torch::optim::Adam optimizer(model->parameters(), 1e-4);
  const auto x = torch::rand({16, width});
  const auto step = [&](context&, int&) -> at::Tensor { return model->forward(x).square().mean(); };
  loop training(models(model), optimizer, ranges::views::ints(0, 1'000'000), step,
                {.max_iterations = 41, .out = out, .group = group});
  std::vector<double> stalls;
  training | make_extension("measure", [&](context& ctx) {
    ctx.on<event::snapshot_completed>([&](const event::snapshot_completed& e) {
      // The first ones find memory that has not been used before.
      if (e.iteration > 8) stalls.push_back(e.stall_seconds * 1e3);
    });
  });
  if (saves)
    training | snapshot({.n_retains = 1, .writer = writers::thread(), .mode = mode}).triggered(every(iterations(4)));
  training.run();
  return stalls.empty() ? 0.0 : median(stalls);
}

results stall(const std::string& folder, int rank, int world_size, std::uint16_t port) {
  torch::set_num_threads(1);
  torch::manual_seed(1);
  const auto group = rank_group::connect(launch_of(rank, world_size, port));
  const std::filesystem::path out(folder);
  results found;
  run([&] { return group.barrier(); });
  found["alone"] = stall_of({}, rank == 0, snapshot_mode::standard, out / ("alone" + std::to_string(rank)));
  run([&] { return group.barrier(); });
  found["distributed"] = stall_of(group, true, snapshot_mode::distributed, out / "distributed");
  run([&] { return group.barrier(); });
  found["sharded"] = stall_of(group, true, snapshot_mode::sharded, out / "sharded");
  group.leave();
  return found;
}

/// Where snapshots go: in $RONDO_BENCH_DIR, else in the current folder.
std::filesystem::path folder_of_snapshots() {
  const char* chosen = std::getenv("RONDO_BENCH_DIR");
  const auto parent = chosen != nullptr ? std::filesystem::path(chosen) : std::filesystem::current_path();
  return parent / (".rondo-bench-ranks-" + std::to_string(::getpid()));
}

// ---- rank 0 with many ranks --------------------------------------------------------------------------------------

struct stage_of_hub {
  const char* name;
  distributed::meeting_kind kind;
  std::size_t bytes;
  int rounds;
};

constexpr std::array<stage_of_hub, 4> stages_of_hub{{{"warm_up", distributed::meeting_kind::barrier, 0, 3},
                                                     {"barrier", distributed::meeting_kind::barrier, 0, 21},
                                                     {"iteration", distributed::meeting_kind::all_gather, 26, 21},
                                                     {"gather", distributed::meeting_kind::gather, 5056, 7}}};

void add_number(std::string& to, std::uint64_t value) {
  for (int i = 0; i < 8; ++i, value >>= 8) to.push_back(static_cast<char>(value & 0xff));
}

void add_text(std::string& to, const std::string& text) {
  add_number(to, text.size());
  to += text;
}

/// A rank that is nothing but its messages (see roll_call.cpp), so that one thread can be thousands of them.
class light_rank {
 public:
  light_rank(asio::io_context& events, std::uint16_t port, int rank, int world_size) : socket_(events) {
    socket_.connect({asio::ip::address_v4::loopback(), port});
    socket_.set_option(asio::ip::tcp::no_delay(true));
    std::string hello(1, '\0');
    add_text(hello, "token");
    add_number(hello, static_cast<std::uint64_t>(rank));
    add_number(hello, static_cast<std::uint64_t>(world_size));
    add_text(hello, "here");
    send(hello);
  }

  void go_on() {
    while (stage_ < stages_of_hub.size() && round_ == stages_of_hub[stage_].rounds) {
      ++stage_;
      round_ = 0;
    }
    if (stage_ == stages_of_hub.size()) return say_goodbye();
    take_part(stages_of_hub[stage_]);
    ++round_;
    ++meetings_;
    wait_for_answer();
  }

 private:
  void send(const std::string& message) {
    std::string framed;
    add_text(framed, message);
    asio::write(socket_, asio::buffer(framed));
  }

  void take_part(const stage_of_hub& stage) {
    std::string part(1, '\1');
    add_text(part, "bench");
    add_number(part, meetings_);
    add_number(part, 0);
    part.push_back(static_cast<char>(stage.kind));
    add_number(part, 0);
    add_number(part, 300'000);
    add_text(part, std::string(stage.bytes, 'r'));
    send(part);
  }

  void say_goodbye() {
    std::string goodbye(1, '\4');
    add_text(goodbye, "");
    send(goodbye);
  }

  void wait_for_answer() {
    asio::async_read(socket_, asio::buffer(head_), [this](const asio::error_code& failed, std::size_t) {
      if (failed) throw std::runtime_error("rank 0 is gone: " + failed.message());
      std::size_t size = 0;
      for (std::size_t i = 8; i-- > 0;) size = size << 8 | static_cast<unsigned char>(head_[i]);
      body_.resize(size);
      read_answer();
    });
  }

  void read_answer() {
    asio::async_read(socket_, asio::buffer(body_), [this](const asio::error_code& failed, std::size_t) {
      if (failed) throw std::runtime_error("rank 0 is gone: " + failed.message());
      if (body_ == "\6") {
        send(std::string("\7\0", 2));
        return wait_for_answer();
      }
      if (body_.empty() || body_.front() != '\2') throw std::runtime_error("rank 0 has not answered, but said else");
      go_on();
    });
  }

  asio::ip::tcp::socket socket_;
  std::array<char, 8> head_{};
  std::string body_;
  std::size_t stage_ = 0;
  int round_ = 0;
  std::uint64_t meetings_ = 0;
};

results be_light_ranks(const std::string&, int, int world_size, std::uint16_t port) {
  asio::io_context events{1};
  std::vector<std::unique_ptr<light_rank>> all;
  for (int rank = 1; rank < world_size; ++rank)
    all.push_back(std::make_unique<light_rank>(events, port, rank, world_size));
  for (const auto& one : all) one->go_on();
  events.run();
  return {};
}

double processor_seconds() {
  ::rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  const auto seconds = [](const ::timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}

task<> meet_light_ranks(std::shared_ptr<distributed::roll_call> roll, int world_size, results& found) {
  for (const auto& stage : stages_of_hub) {
    std::vector<double> times;
    const double used = processor_seconds();
    for (int round = 0; round < stage.rounds; ++round) {
      distributed::meeting everybody;
      everybody.kind = stage.kind;
      everybody.channel = "bench";
      everybody.mine = std::string(stage.bytes, 'r');
      everybody.timeout = std::chrono::minutes(5);
      const auto begun = clock::now();
      co_await roll->meet(std::move(everybody));
      times.push_back(std::chrono::duration<double, std::milli>(clock::now() - begun).count());
    }
    const double messages = 2.0 * (world_size - 1) * stage.rounds;
    found[std::string(stage.name) + "_ms"] = median(times);
    found[std::string(stage.name) + "_cpu_us"] = (processor_seconds() - used) * 1e6 / messages;
  }
}

// ---- other ranks -------------------------------------------------------------------------------------------------

using scenario = results (*)(const std::string& what, int rank, int world_size, std::uint16_t port);
const std::map<std::string, scenario> scenarios{
    {"data_parallel", data_parallel}, {"latency", latency}, {"stall", stall}, {"light_ranks", be_light_ranks}};

pid_t start_rank(const std::string& name, const std::string& what, int rank, int world_size, std::uint16_t port) {
  std::vector<std::string> texts{
      "bench_ranks", "--rank", name, what, std::to_string(rank), std::to_string(world_size), std::to_string(port)};
  std::vector<char*> arguments;
  for (auto& text : texts) arguments.push_back(text.data());
  arguments.push_back(nullptr);
  pid_t process = 0;
  if (::posix_spawn(&process, "/proc/self/exe", nullptr, nullptr, arguments.data(), environ) != 0)
    throw std::runtime_error("bench_ranks cannot start itself as another rank");
  return process;
}

int be_rank(char** arguments) {
  scenarios.at(arguments[0])(arguments[1], std::atoi(arguments[2]), std::atoi(arguments[3]),
                             static_cast<std::uint16_t>(std::atoi(arguments[4])));
  return 0;
}

void wait_for(benchmark::State& state, pid_t process) {
  int status = 0;
  if (::waitpid(process, &status, 0) != process || status != 0) state.SkipWithError("another rank has failed");
}

void with_ranks(benchmark::State& state, const std::string& name, const std::string& what, int world_size) {
  for (auto _ : state) {
    const auto port = free_port();
    std::vector<pid_t> others;
    for (int rank = 1; rank < world_size; ++rank) others.push_back(start_rank(name, what, rank, world_size, port));
    for (const auto& [key, value] : scenarios.at(name)(what, 0, world_size, port)) state.counters[key] = value;
    for (const auto process : others) wait_for(state, process);
  }
}

void hub(benchmark::State& state, int world_size) {
  for (auto _ : state) {
    const auto roll = distributed::roll_call::listen(world_size, "token");
    const auto others = start_rank("light_ranks", "-", 1, world_size, roll->port());
    results found;
    run([&] { return meet_light_ranks(roll, world_size, found); });
    for (const auto& [key, value] : found)
      if (!key.starts_with("warm_up")) state.counters[key] = value;
    roll->leave("", std::chrono::seconds(10));
    wait_for(state, others);
  }
}

/// As many open files as this process may have; other ranks inherit that.
rlim_t raise_limit_of_files() {
  ::rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  return limit.rlim_cur;
}

// ---- many ranks --------------------------------------------------------------------------------------------------

task<> meet_often(std::shared_ptr<distributed::roll_call> roll, int rounds) {
  for (int i = 0; i < rounds; ++i) {
    distributed::meeting everybody;
    everybody.channel = "bench";
    everybody.timeout = std::chrono::minutes(5);
    co_await roll->meet(std::move(everybody));
  }
}

double seconds_of(const std::vector<std::shared_ptr<distributed::roll_call>>& ranks, int rounds) {
  asio::io_context events;
  for (const auto& rank : ranks)
    asio::co_spawn(events, meet_often(rank, rounds), [](std::exception_ptr e) {
      if (e) std::rethrow_exception(e);
    });
  const auto begun = clock::now();
  events.run();
  return std::chrono::duration<double>(clock::now() - begun).count();
}

void many_ranks(benchmark::State& state) {
  using distributed::roll_call;
  const auto count = static_cast<int>(state.range(0));
  constexpr int rounds = 20;
  for (auto _ : state) {
    std::vector<std::shared_ptr<roll_call>> ranks{roll_call::listen(count, "token")};
    for (int rank = 1; rank < count; ++rank)
      ranks.push_back(
          roll_call::connect("127.0.0.1", ranks.front()->port(), rank, count, "token", std::chrono::minutes(5)));
    seconds_of(ranks, 2);
    const double seconds = seconds_of(ranks, rounds) / rounds;
    state.counters["barrier_ms"] = seconds * 1e3;
    state.counters["us_per_message"] = seconds * 1e6 / (2.0 * (count - 1));
    for (const auto& rank : ranks) rank->leave("", {});
  }
}

void register_all() {
  for (const char* const model : {"mlp", "cnn"})
    benchmark::RegisterBenchmark((std::string("data_parallel/") + model).c_str(),
                                 [model](benchmark::State& s) { with_ranks(s, "data_parallel", model, 2); })
        ->Iterations(1)
        ->Unit(benchmark::kSecond);
  for (const int ranks : {2, 4, 8, 16})
    benchmark::RegisterBenchmark(("latency/" + std::to_string(ranks)).c_str(),
                                 [ranks](benchmark::State& s) { with_ranks(s, "latency", "-", ranks); })
        ->Iterations(1)
        ->Unit(benchmark::kSecond);
  benchmark::RegisterBenchmark("stall",
                               [](benchmark::State& s) {
                                 const auto folder = folder_of_snapshots();
                                 with_ranks(s, "stall", folder.string(), 2);
                                 std::filesystem::remove_all(folder);
                               })
      ->Iterations(1)
      ->Unit(benchmark::kSecond);
  benchmark::RegisterBenchmark("roll_call", many_ranks)
      ->RangeMultiplier(4)
      ->Range(16, 2048)
      ->Iterations(1)
      ->Unit(benchmark::kSecond);
  const auto files = raise_limit_of_files();
  for (const int ranks : {16, 256, 1024, 4096, 10'000}) {
    if (static_cast<rlim_t>(ranks) + 100 > files) continue;
    benchmark::RegisterBenchmark(("hub/" + std::to_string(ranks)).c_str(),
                                 [ranks](benchmark::State& s) { hub(s, ranks); })
        ->Iterations(1)
        ->Unit(benchmark::kSecond);
  }
}

}  // namespace
}  // namespace rondo::bench

int main(int argc, char** argv) {
  if (argc == 7 && std::string(argv[1]) == "--rank") return rondo::bench::be_rank(argv + 2);
  rondo::bench::register_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}

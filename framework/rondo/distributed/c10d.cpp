#include "rondo/distributed/tensor_backend.hpp"

#ifdef RONDO_WITH_C10D
#include <fmt/format.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/Types.hpp>
#ifdef RONDO_WITH_GLOO
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#endif

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "rondo/distributed/c10d.hpp"
#endif

#include "rondo/distributed/roll_call.hpp"

namespace rondo::distributed {

#ifdef RONDO_WITH_C10D

namespace {

using std::chrono::milliseconds;

// Under this name rank 0 says in the store where it listens, until all have read it.
constexpr const char* meeting_point = "rondo/roll_call";

c10d::ReduceOp to_c10d(reduce_op op) {
  switch (op) {
    case reduce_op::min:
      return c10d::ReduceOp::MIN;
    case reduce_op::max:
      return c10d::ReduceOp::MAX;
    case reduce_op::sum:
      break;
  }
  return c10d::ReduceOp::SUM;
}

std::string new_token() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}{:08x}{:08x}", random(), random(), random(), random());
}

void tell(c10d::Store& store, const std::string& key, const std::string& text) {
  store.set(key, std::vector<std::uint8_t>(text.begin(), text.end()));
}

/// All that has to happen until the ranks have found each other happens within one limit.
class time_limit {
 public:
  explicit time_limit(milliseconds limit) : end_(std::chrono::steady_clock::now() + limit) {}
  [[nodiscard]] milliseconds left() const {
    const auto rest = std::chrono::duration_cast<milliseconds>(end_ - std::chrono::steady_clock::now());
    return std::max(rest, milliseconds(1));
  }

 private:
  std::chrono::steady_clock::time_point end_;
};

std::string where_rank_0_listens(c10d::Store& store, const launch& who, milliseconds timeout) {
  try {
    store.wait({meeting_point}, timeout);
  } catch (const std::exception& e) {
    throw rank_error(fmt::format("rank {} waits for rank 0, which has not come to {}:{} within {} ms: {}", who.rank,
                                 who.master_addr, who.master_port, timeout.count(), without_backtrace(e.what())),
                     {0});
  }
  const auto bytes = store.get(meeting_point);
  return {bytes.begin(), bytes.end()};
}

void meet_all(roll_call& roll, const char* why, milliseconds timeout) {
  meeting everybody;
  everybody.channel = why;
  everybody.timeout = timeout;
  roll.meet_blocking(std::move(everybody));
}

std::shared_ptr<roll_call> meet_at(c10d::Store& store, const launch& who, const group_options& options,
                                   const time_limit& limit) {
  std::shared_ptr<roll_call> roll;
  if (who.rank == 0) {
    const auto token = new_token();
    roll = roll_call::listen(who.world_size, token, options.heartbeat_timeout);
    tell(store, meeting_point, fmt::format("{} {}", roll->port(), token));
  } else {
    const auto text = where_rank_0_listens(store, who, limit.left());
    const auto space = text.find(' ');
    if (space == std::string::npos) throw rank_error("rank 0 has said something unknown about where it listens", {0});
    roll = roll_call::connect(who.master_addr, static_cast<std::uint16_t>(std::stoul(text.substr(0, space))), who.rank,
                              who.world_size, text.substr(space + 1), limit.left(), options.heartbeat_timeout);
  }
  meet_all(*roll, "rondo/connect", limit.left());
  // Whoever comes to this store for another group must not read it.
  if (who.rank == 0) store.deleteKey(meeting_point);
  meet_all(*roll, "rondo/met", limit.left());
  return roll;
}

/// PyTorch 2 takes libuv unless it is told otherwise, and fails where it was built without, as Debian's is. Both
/// servers understand both kinds of clients.
template <class Options>
void do_without_libuv(Options& store) {
  if constexpr (requires { store.useLibUV; }) store.useLibUV = false;
}

/// The launcher's store outlives a failed start of all ranks; each start has keys of its own.
c10::intrusive_ptr<c10d::Store> open_store(const launch& who, const group_options& options) {
  c10d::TCPStoreOptions store;
  store.port = who.master_port;
  store.isServer = who.rank == 0 && !who.agent_store;
  do_without_libuv(store);
  store.waitWorkers = false;
  store.timeout = std::max(options.connect_timeout, milliseconds(1000));  // c10d counts it in whole seconds
  try {
    return c10::make_intrusive<c10d::PrefixStore>("rondo/start/" + who.attempt,
                                                  c10::make_intrusive<c10d::TCPStore>(who.master_addr, store));
  } catch (const std::exception& e) {
    const auto why = without_backtrace(e.what());
    if (store.isServer)
      throw rank_error(fmt::format("rank 0 cannot listen on port {}: {}; another training may use it: choose another "
                                   "MASTER_PORT",
                                   who.master_port, why),
                       {0});
    throw rank_error(fmt::format("rank {} does not find the other ranks at {}:{}: {}; is rank 0 running, and are "
                                 "MASTER_ADDR and MASTER_PORT its machine's?",
                                 who.rank, who.master_addr, who.master_port, why),
                     {0});
  }
}

/// c10d's own errors as ours.
template <class F>
auto or_rank_error(const launch& who, F meet) {
  try {
    return meet();
  } catch (const error&) {
    throw;
  } catch (const std::exception& e) {
    throw rank_error(fmt::format("rank {} has not found the other ranks: {}", who.rank, without_backtrace(e.what())),
                     {});
  }
}

#ifdef RONDO_WITH_GLOO

backend_maker maker_of_gloo(const launch& who, const group_options& options) {
  const bool local = who.local_world_size == who.world_size;
  return [local, host = who.master_addr, timeout = options.timeout](c10::intrusive_ptr<c10d::Store> store, int rank,
                                                                    int world_size) {
    auto settings = c10d::ProcessGroupGloo::Options::create(timeout);
    const char* interface = std::getenv("GLOO_SOCKET_IFNAME");
    settings->devices.push_back(interface != nullptr ? c10d::ProcessGroupGloo::createDeviceForInterface(interface)
                                : local              ? c10d::ProcessGroupGloo::createDeviceForHostname(host)
                                                     : c10d::ProcessGroupGloo::createDefaultDevice());
    settings->threads = 2;
    return c10::make_intrusive<c10d::ProcessGroupGloo>(std::move(store), rank, world_size, settings);
  };
}

#endif

backend_maker maker_of_backends(const launch& who, const group_options& options) {
#ifdef RONDO_WITH_GLOO
  if (options.backend == "gloo") return maker_of_gloo(who, options);
  throw option_error(
      "backend", options.backend,
      "gloo; any other one (NCCL, MPI, …) as an object, see rondo::distributed::over in rondo/distributed/c10d.hpp");
#else
  static_cast<void>(who);
  throw option_error(
      "backend", options.backend,
      "an object, see rondo::distributed::over in rondo/distributed/c10d.hpp: this Rondo was built without "
      "Gloo; on Debian, install libgloo-dev and build it again");
#endif
}

/// Backends wait for the others in their constructors, with limits of their own, and hear of nobody's death. So one is
/// made on a thread that is left to itself when the ranks fail meanwhile, or the limit is over.
c10::intrusive_ptr<c10d_backend> make_in_time(const backend_maker& make, const c10::intrusive_ptr<c10d::Store>& store,
                                              roll_call& roll, const launch& who, const group_options& options,
                                              const time_limit& limit) {
  struct outcome {
    std::mutex mutex;
    std::condition_variable changed;
    c10::intrusive_ptr<c10d_backend> made;
    std::exception_ptr failed;
  };
  const auto result = std::make_shared<outcome>();
  const auto failed = [result](std::exception_ptr why) {
    const std::lock_guard lock(result->mutex);
    if (!result->failed) result->failed = std::move(why);
    result->changed.notify_all();
  };
  roll.on_failure(result.get(), failed);
  std::thread([result, failed, make, store, rank = who.rank, world_size = who.world_size] {
    try {
      auto made = make(store, rank, world_size);
      const std::lock_guard lock(result->mutex);
      result->made = std::move(made);
      result->changed.notify_all();
    } catch (...) {
      failed(std::current_exception());
    }
  }).detach();
  std::unique_lock lock(result->mutex);
  result->changed.wait_for(lock, limit.left(), [&] { return result->made || result->failed; });
  const auto made = result->made;
  const auto why = result->failed;
  lock.unlock();
  roll.forget(result.get());
  if (made) return made;
  if (why) std::rethrow_exception(why);
  throw rank_error(fmt::format("rank {}: the ranks have met, but their backend for tensors has not connected them "
                               "within {} ms",
                               who.rank, options.connect_timeout.count()),
                   {});
}

/// The backends of a group and of those that were split off it. Any thread.
class family {
 public:
  using backend = c10::intrusive_ptr<c10d_backend>;

  family() = default;
  explicit family(backend first) : all_{std::move(first)} {}
  void add(backend one) {
    const std::lock_guard lock(mutex_);
    all_.push_back(std::move(one));
  }
  void remove(const backend& one) {
    const std::lock_guard lock(mutex_);
    std::erase(all_, one);
  }
  /// Their destructors would wait for operations whose other side is gone, until their timeout.
  void abandon() noexcept {
    static auto* const abandoned = new std::vector<backend>();
    static auto* const mutex = new std::mutex();  // of groups on several threads
    const std::scoped_lock lock(*mutex, mutex_);
    abandoned->insert(abandoned->end(), all_.begin(), all_.end());
  }

 private:
  std::mutex mutex_;
  std::vector<backend> all_;
};

class over_c10d final : public tensor_backend {
 public:
  explicit over_c10d(c10::intrusive_ptr<c10d_backend> backend)
      : backend_(std::move(backend)), kin_(std::make_shared<family>(backend_)) {}
  /// Makes its backend, and those of its parts, in `store`.
  over_c10d(backend_maker make, c10::intrusive_ptr<c10d::Store> store, std::shared_ptr<family> kin, roll_call& roll,
            const launch& who, const group_options& options, const time_limit& limit)
      : backend_(make_in_time(make, store, roll, who, options, limit)),
        make_(std::move(make)),
        store_(std::move(store)),
        kin_(std::move(kin)) {
    kin_->add(backend_);
  }
  over_c10d(const over_c10d&) = delete;
  over_c10d& operator=(const over_c10d&) = delete;
  ~over_c10d() override { kin_->remove(backend_); }

  synchronize all_reduce(at::Tensor tensor, reduce_op op, finished then) override {
    std::vector<at::Tensor> tensors{std::move(tensor)};
    c10d::AllreduceOptions options;
    options.reduceOp = to_c10d(op);
    return watch([&] { return backend_->allreduce(tensors, options); }, std::move(then));
  }

  synchronize broadcast(at::Tensor tensor, int root, finished then) override {
    std::vector<at::Tensor> tensors{std::move(tensor)};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    return watch([&] { return backend_->broadcast(tensors, options); }, std::move(then));
  }

  synchronize all_gather(std::vector<at::Tensor> all, at::Tensor mine, finished then) override {
    std::vector<std::vector<at::Tensor>> outputs{std::move(all)};
    std::vector<at::Tensor> inputs{std::move(mine)};
    return watch([&] { return backend_->allgather(outputs, inputs); }, std::move(then));
  }

  std::shared_ptr<tensor_backend> split(roll_call& roll, const std::string& name, const launch& who,
                                        const group_options& options) override {
    if (!make_) return nullptr;
    return std::make_shared<over_c10d>(make_, c10::make_intrusive<c10d::PrefixStore>(name, store_), kin_, roll, who,
                                       options, time_limit(options.connect_timeout));
  }

  void abandon() noexcept override { kin_->abandon(); }

 private:
  template <class Start>
  synchronize watch(Start start, finished then) {
    c10::intrusive_ptr<c10d::Work> work;
    try {
      work = start();
    } catch (...) {
      then(std::current_exception());
      return nullptr;
    }
    c10::intrusive_ptr<c10::ivalue::Future> future;
    try {
      future = work->getFuture();
    } catch (const c10::Error&) {
      // This backend offers no future.
    }
    if (!future) {
      std::thread([work, then = std::move(then)] { then(wait_for(*work)); }).detach();
      return [work] { work->synchronize(); };
    }
    future->addCallback([work, then = std::move(then)](c10::ivalue::Future& done) {
      then(done.hasError() ? done.exception_ptr() : nullptr);
    });
    return [future] { future->wait(); };
  }

  static std::exception_ptr wait_for(c10d::Work& work) {
    try {
      work.wait();
      return nullptr;
    } catch (...) {
      return std::current_exception();
    }
  }

  c10::intrusive_ptr<c10d_backend> backend_;
  backend_maker make_;
  c10::intrusive_ptr<c10d::Store> store_;
  std::shared_ptr<family> kin_;
};

/// All ranks of the store: first they meet, then their backend is made.
rendezvous meet_in(const c10::intrusive_ptr<c10d::Store>& store, const backend_maker& make, const launch& who,
                   const group_options& options, const time_limit& limit) {
  std::shared_ptr<roll_call> roll;
  try {
    roll = meet_at(*store, who, options, limit);
    auto tensors = std::make_shared<over_c10d>(make, store, std::make_shared<family>(), *roll, who, options, limit);
    // Whoever keeps the store must not go before all have read it.
    meet_all(*roll, "rondo/connected", limit.left());
    return {std::move(roll), std::move(tensors)};
  } catch (const std::exception& e) {
    if (roll) roll->leave(without_backtrace(e.what()), {});
    throw;
  }
}

}  // namespace

rendezvous meet_with_c10d(const launch& who, const group_options& options) {
  const auto make = maker_of_backends(who, options);
  const time_limit limit(options.connect_timeout);
  return or_rank_error(who, [&] { return meet_in(open_store(who, options), make, who, options, limit); });
}

rank_group over(c10::intrusive_ptr<c10d_backend> backend, c10::intrusive_ptr<c10d::Store> store, const launch& who,
                const group_options& options) {
  if (backend->getRank() != who.rank || backend->getSize() != who.world_size)
    throw option_error("who", fmt::format("rank {} of {}", who.rank, who.world_size),
                       fmt::format("that of the backend, rank {} of {}", backend->getRank(), backend->getSize()));
  auto roll = or_rank_error(who, [&] { return meet_at(*store, who, options, time_limit(options.connect_timeout)); });
  return {std::move(roll), std::make_shared<over_c10d>(std::move(backend)), who, options};
}

rank_group over(backend_maker make, c10::intrusive_ptr<c10d::Store> store, const launch& who,
                const group_options& options) {
  const time_limit limit(options.connect_timeout);
  auto met = or_rank_error(who, [&] { return meet_in(store, make, who, options, limit); });
  return {std::move(met.roll), std::move(met.tensors), who, options};
}

#else

rendezvous meet_with_c10d(const launch&, const group_options&) {
  throw option_error(
      "world_size", "more than 1",
      "1: the LibTorch that this Rondo was built with has no headers of c10d, its distributed part; "
      "Debian's libtorch-dev has them, as have the archives of pytorch.org, where USE_DISTRIBUTED is on");
}

#endif

}  // namespace rondo::distributed

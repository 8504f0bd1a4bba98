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

// Under this name rank 0 says in the store where it listens.
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

class over_c10d final : public tensor_backend {
 public:
  explicit over_c10d(c10::intrusive_ptr<c10d_backend> backend) : backend_(std::move(backend)) {}

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

  // Its destructor would wait for operations whose other side is gone, until their timeout.
  void abandon() noexcept override {
    static auto* const abandoned = new std::vector<c10::intrusive_ptr<c10d_backend>>();
    static auto* const mutex = new std::mutex();  // of groups on several threads
    const std::lock_guard lock(*mutex);
    abandoned->push_back(backend_);
  }

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
};

std::string new_token() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}{:08x}{:08x}", random(), random(), random(), random());
}

void tell(c10d::Store& store, const std::string& key, const std::string& text) {
  store.set(key, std::vector<std::uint8_t>(text.begin(), text.end()));
}

std::string ask(c10d::Store& store, const std::string& key, milliseconds timeout) {
  store.wait({key}, timeout);
  const auto bytes = store.get(key);
  return {bytes.begin(), bytes.end()};
}

std::shared_ptr<roll_call> meet_at(c10d::Store& store, const launch& who, const group_options& options) {
  std::shared_ptr<roll_call> roll;
  if (who.rank == 0) {
    const auto token = new_token();
    roll = roll_call::listen(who.world_size, token);
    tell(store, meeting_point, fmt::format("{} {}", roll->port(), token));
  } else {
    const auto text = ask(store, meeting_point, options.connect_timeout);
    const auto space = text.find(' ');
    if (space == std::string::npos) throw rank_error("rank 0 has said something unknown about where it listens", {0});
    roll = roll_call::connect(who.master_addr, static_cast<std::uint16_t>(std::stoul(text.substr(0, space))), who.rank,
                              who.world_size, text.substr(space + 1), options.connect_timeout);
  }
  meeting everybody;
  everybody.channel = "rondo/connect";
  everybody.timeout = options.connect_timeout;
  roll->meet_blocking(std::move(everybody));
  return roll;
}

/// The launcher's store outlives a failed start of all ranks; each start has keys of its own.
c10::intrusive_ptr<c10d::Store> open_store(const launch& who, const group_options& options) {
  c10d::TCPStoreOptions store;
  store.port = who.master_port;
  store.isServer = who.rank == 0 && !who.agent_store;
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

/// Ends before the group's timeout, so that there is time to find out who is missing.
[[maybe_unused]] milliseconds backend_timeout(const group_options& options) {
  return std::max(milliseconds(1), options.timeout - std::min(options.timeout / 4, milliseconds(2500)));
}

[[noreturn]] void cannot_find(const launch& who, const std::exception& e) {
  throw rank_error(fmt::format("rank {} has not found the other ranks: {}", who.rank, without_backtrace(e.what())), {});
}

#ifdef RONDO_WITH_GLOO

c10::intrusive_ptr<c10d_backend> make_gloo(c10::intrusive_ptr<c10d::Store> store, const launch& who,
                                           const group_options& options) {
  auto settings = c10d::ProcessGroupGloo::Options::create(backend_timeout(options));
  const char* interface = std::getenv("GLOO_SOCKET_IFNAME");
  const bool local = who.local_world_size == who.world_size && interface == nullptr;
  settings->devices.push_back(interface != nullptr ? c10d::ProcessGroupGloo::createDeviceForInterface(interface)
                              : local              ? c10d::ProcessGroupGloo::createDeviceForHostname(who.master_addr)
                                                   : c10d::ProcessGroupGloo::createDefaultDevice());
  settings->threads = 2;
  return c10::make_intrusive<c10d::ProcessGroupGloo>(store, who.rank, who.world_size, settings);
}

#endif

c10::intrusive_ptr<c10d_backend> make_backend(const c10::intrusive_ptr<c10d::Store>& store, const launch& who,
                                              const group_options& options) {
#ifdef RONDO_WITH_GLOO
  if (options.backend == "gloo") return make_gloo(store, who, options);
  throw option_error("backend", options.backend, "gloo; any other one as an object (rondo/distributed/c10d.hpp)");
#else
  static_cast<void>(store);
  static_cast<void>(who);
  throw option_error("backend", options.backend,
                     "an object (rondo/distributed/c10d.hpp): this Rondo was built without Gloo's headers");
#endif
}

}  // namespace

rendezvous meet_with_c10d(const launch& who, const group_options& options) {
  std::shared_ptr<roll_call> roll;
  try {
    const auto store = open_store(who, options);
    roll = meet_at(*store, who, options);
    auto tensors = std::make_shared<over_c10d>(make_backend(store, who, options));
    // Whoever keeps the store must not go before all have read it.
    meeting everybody;
    everybody.channel = "rondo/connected";
    everybody.timeout = options.connect_timeout;
    roll->meet_blocking(std::move(everybody));
    return {std::move(roll), std::move(tensors)};
  } catch (const error& e) {
    if (roll) roll->leave(e.what(), {});
    throw;
  } catch (const std::exception& e) {
    if (roll) roll->leave(e.what(), {});
    cannot_find(who, e);
  }
}

rank_group over(c10::intrusive_ptr<c10d_backend> backend, c10::intrusive_ptr<c10d::Store> store, const launch& who,
                const group_options& options) {
  if (backend->getRank() != who.rank || backend->getSize() != who.world_size)
    throw option_error("who", fmt::format("rank {} of {}", who.rank, who.world_size),
                       fmt::format("that of the backend, rank {} of {}", backend->getRank(), backend->getSize()));
  try {
    return {meet_at(*store, who, options), std::make_shared<over_c10d>(std::move(backend)), who, options};
  } catch (const error&) {
    throw;
  } catch (const std::exception& e) {
    cannot_find(who, e);
  }
}

#else

rendezvous meet_with_c10d(const launch&, const group_options&) {
  throw option_error("world_size", "more than 1", "1: the LibTorch that this Rondo was built with has no c10d headers");
}

#endif

}  // namespace rondo::distributed

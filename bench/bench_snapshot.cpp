// What a snapshot costs: a model with Adam's state, written durably by Rondo, by torch::save and as raw bytes, and read
// back. Files go to the folder in the environment variable RONDO_BENCH_DIR, else to the current one; it should be on a
// real disk with room for 1 GB.

#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adam.h>
#include <torch/serialize.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

#include "rondo/checkpoint/crc32.hpp"
#include "rondo/checkpoint/planner.hpp"
#include "rondo/checkpoint/reader.hpp"
#include "rondo/checkpoint/tensors.hpp"
#include "rondo/checkpoint/verify.hpp"
#include "rondo/extensions/snapshot/capture.hpp"
#include "rondo/extensions/snapshot/snapshot_file.hpp"
#include "rondo/state/module.hpp"
#include "rondo/state/optimizer.hpp"
#include "rondo/writing/process_writer.hpp"
#include "rondo/writing/simple_writer.hpp"
#include "rondo/writing/thread_writer.hpp"
#include "support.hpp"

namespace rondo::bench {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t mebi = std::size_t{1} << 20;
constexpr std::size_t chunk = 8 * mebi;

// ---- files ----

std::size_t checked(long result, const char* operation) {
  if (result < 0) throw std::system_error(errno, std::generic_category(), operation);
  return static_cast<std::size_t>(result);
}

/// A folder for this process's files, removed at the end.
class work_folder {
 public:
  work_folder() {
    const char* chosen = std::getenv("RONDO_BENCH_DIR");
    const fs::path parent = chosen != nullptr ? fs::path(chosen) : fs::current_path();
    path_ = parent / fmt::format(".rondo-bench-{}", getpid());
    fs::create_directory(path_);
  }
  work_folder(const work_folder&) = delete;
  work_folder& operator=(const work_folder&) = delete;
  ~work_folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  [[nodiscard]] fs::path file(const std::string& name) const { return path_ / name; }

 private:
  fs::path path_;
};

const work_folder& folder() {
  static const work_folder only;
  return only;
}

class open_file {
 public:
  open_file(const fs::path& name, int flags)
      : descriptor_(static_cast<int>(checked(::open(name.c_str(), flags | O_CLOEXEC, 0666), "open"))) {}
  open_file(const open_file&) = delete;
  open_file& operator=(const open_file&) = delete;
  ~open_file() { ::close(descriptor_); }
  [[nodiscard]] int get() const noexcept { return descriptor_; }

 private:
  int descriptor_;
};

/// Memory that direct input and output can use, written to once so that every page is there.
class warm_buffer {
 public:
  explicit warm_buffer(std::size_t size) : size_(size) {
    void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    bytes_ = static_cast<std::byte*>(memory);
    std::memset(bytes_, 1, size);
  }
  warm_buffer(const warm_buffer&) = delete;
  warm_buffer& operator=(const warm_buffer&) = delete;
  ~warm_buffer() { ::munmap(bytes_, size_); }
  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return {bytes_, size_}; }

 private:
  std::byte* bytes_;
  std::size_t size_;
};

void write_in_chunks(int file, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const auto wanted = std::min(bytes.size(), chunk);
    bytes = bytes.subspan(checked(::write(file, bytes.data(), wanted), "write"));
  }
}

void read_in_chunks(int file, std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    const auto count = checked(::read(file, bytes.data(), std::min(bytes.size(), chunk)), "read");
    if (count == 0) throw std::runtime_error("read: the file is shorter than expected");
    bytes = bytes.subspan(count);
  }
}

// ---- what the process has used ----

rusage used() {
  rusage result{};
  ::getrusage(RUSAGE_SELF, &result);
  return result;
}
double seconds(const timeval& t) { return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6; }
double cpu_seconds() { return seconds(used().ru_utime) + seconds(used().ru_stime); }
long page_faults() { return used().ru_minflt; }

// ---- what is saved ----

struct saved_training {
  torch::nn::Sequential model;
  std::unique_ptr<torch::optim::Adam> optimizer;

  /// About so many MiB: parameters and Adam's two averages.
  explicit saved_training(std::int64_t mebibytes) {
    constexpr std::int64_t width = 1024;  // 4 MiB of parameters to a layer, and 8 of averages
    for (std::int64_t i = 0; i < std::max<std::int64_t>(mebibytes / 12, 1); ++i)
      model->push_back(torch::nn::Linear(width, width));
    optimizer = std::make_unique<torch::optim::Adam>(model->parameters(), 1e-3);
    for (auto& p : model->parameters()) p.mutable_grad() = torch::full_like(p, 1e-3);
    optimizer->step();
    optimizer->zero_grad();
  }

  [[nodiscard]] state::value state_dict() const {
    return state::dict{{"models", state::dict{{"main", state::module_state(*model)}}},
                       {"optimizers", state::dict{{"main", state::optimizer_state(*optimizer)}}}};
  }
};

/// One training of each size.
const saved_training& training_of(std::int64_t mebibytes) {
  static std::map<std::int64_t, saved_training> all;
  return all.try_emplace(mebibytes, mebibytes).first->second;
}

/// The state of a training, planned as a file.
struct planned_file {
  explicit planned_file(const saved_training& t) {
    plan.plan(t.state_dict(), extensions::snapshot_info_of("snapshot", 1, 1, false));
  }
  [[nodiscard]] const checkpoint::encoder& encoder() const { return plan.file(); }
  [[nodiscard]] std::uint64_t memory() const {
    return writing::file_image::memory_for(encoder().size(), encoder().checksum_count());
  }

  checkpoint::planner plan;
};

writing::write_receipt write_snapshot(const saved_training& t, const fs::path& target) {
  writing::write_receipt receipt;
  run_to_end([&]() -> task<> {
    const planned_file file(t);
    const auto writer = writers::simple();
    writing::write_request request(target, file.encoder().size(),
                                   [&](const writing::append_function& append) { file.encoder().write(append); });
    receipt = co_await writer->write(std::move(request));
  });
  return receipt;
}

/// Size of a snapshot, which is what the raw writes write as well: rounded up to whole blocks.
std::size_t snapshot_size(const saved_training& t) {
  const std::size_t block = 4096;
  const auto exact = static_cast<std::size_t>(planned_file(t).encoder().size());
  return (exact + block - 1) / block * block;
}

void save_by_torch(const saved_training& t, const fs::path& target) {
  torch::serialize::OutputArchive all, model, optimizer;
  t.model->save(model);
  t.optimizer->save(optimizer);
  all.write("model", model);
  all.write("optimizer", optimizer);
  all.save_to(target.string());
}

// ---- writing ----

/// Measures `write(path)` to a new file each time. Removing it is not measured.
template <class Write>
void measure_writes(benchmark::State& state, std::size_t size, Write write) {
  const auto target = folder().file("written");
  for (auto _ : state) {
    write(target);
    state.PauseTiming();
    fs::remove(target);
    ::sync();
    state.ResumeTiming();
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(size) * state.iterations());
}

void write_simple(benchmark::State& state) {
  const auto& t = training_of(state.range(0));
  writing::write_receipt last;
  measure_writes(state, snapshot_size(t), [&](const fs::path& target) { last = write_snapshot(t, target); });
  state.counters["write_ms"] = last.write_seconds * 1e3;
  state.counters["sync_ms"] = last.sync_seconds * 1e3;
  state.counters["commit_ms"] = last.commit_seconds * 1e3;
}

/// What a writer with memory does after the state has been copied; the copying is not in the time.
void write_image(benchmark::State& state, const std::shared_ptr<writing::writer>& writer) {
  const auto& t = training_of(state.range(0));
  const auto target = folder().file("written");
  std::uint64_t bytes = 0;
  double cpu = 0.0;
  for (auto _ : state) {
    run_to_end([&]() -> task<> {
      const planned_file file(t);
      auto slot = co_await writer->memory()->acquire(file.memory());
      std::optional<extensions::capture> taken(std::in_place, file.plan, std::move(slot),
                                               extensions::resting_storages());
      writing::write_request request(target, taken->image());
      taken.reset();
      const auto cpu_before = cpu_seconds();
      const auto start = std::chrono::steady_clock::now();
      const auto receipt = co_await writer->write(std::move(request));
      state.SetIterationTime(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
      cpu += cpu_seconds() - cpu_before;
      bytes += receipt.bytes;
      co_await writer->close();
    });
    fs::remove(target);
    ::sync();
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes));
  state.counters["cpu_s_per_GB"] = cpu / (static_cast<double>(bytes) * 1e-9);
}

void write_thread(benchmark::State& state) { write_image(state, writers::thread({.capacity = 1})); }
void write_process(benchmark::State& state) { write_image(state, writers::process_queue({.capacity = 1})); }

void write_torch_save(benchmark::State& state) {
  const auto& t = training_of(state.range(0));
  measure_writes(state, snapshot_size(t), [&](const fs::path& target) {
    save_by_torch(t, target);
    const open_file file(target, O_RDWR);
    checked(::fsync(file.get()), "fsync");
  });
}

void write_raw(benchmark::State& state, int flags, int (*make_durable)(int)) {
  const warm_buffer content(snapshot_size(training_of(state.range(0))));
  measure_writes(state, content.bytes().size(), [&](const fs::path& target) {
    const open_file file(target, O_CREAT | O_EXCL | O_WRONLY | flags);
    const int failed = ::posix_fallocate(file.get(), 0, static_cast<off_t>(content.bytes().size()));
    if (failed != 0) throw std::system_error(failed, std::generic_category(), "fallocate");
    write_in_chunks(file.get(), content.bytes());
    checked(make_durable(file.get()), "sync");
  });
}

void write_direct(benchmark::State& state) { write_raw(state, O_DIRECT, ::fdatasync); }
void write_buffered(benchmark::State& state) { write_raw(state, 0, ::fsync); }

// ---- in memory ----

void copy_memory(benchmark::State& state) {
  const warm_buffer from(snapshot_size(training_of(state.range(0))));
  const warm_buffer to(from.bytes().size());
  for (auto _ : state) {
    std::memcpy(to.bytes().data(), from.bytes().data(), from.bytes().size());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(from.bytes().size()) * state.iterations());
}

void checksum(benchmark::State& state) {
  const warm_buffer content(snapshot_size(training_of(state.range(0))));
  for (auto _ : state) {
    auto sum = checkpoint::crc32(content.bytes());
    benchmark::DoNotOptimize(sum);
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(content.bytes().size()) * state.iterations());
}

/// The whole state into staging memory that has been used before.
void capture_all(benchmark::State& state) {
  const auto& t = training_of(state.range(0));
  const auto writer = writers::thread({.capacity = 1});
  std::uint64_t bytes = 0;
  for (auto _ : state) {
    run_to_end([&]() -> task<> {
      const planned_file file(t);
      auto slot = co_await writer->memory()->acquire(file.memory());
      const auto faults_before = page_faults();
      const auto start = std::chrono::steady_clock::now();
      const extensions::capture taken(file.plan, std::move(slot), extensions::resting_storages());
      state.SetIterationTime(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
      bytes += file.encoder().size();
      state.counters["page_faults"] = static_cast<double>(page_faults() - faults_before);
    });
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes));
}

/// Everything but the disk: description of the state, layout, and one pass over the bytes for the checksums.
void encode(benchmark::State& state) {
  const auto& t = training_of(state.range(0));
  std::size_t written = 0;
  for (auto _ : state) {
    const planned_file file(t);
    file.encoder().write([&](std::span<const std::byte> bytes) { written += bytes.size(); });
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(written));
}

/// The first part of that, which does not grow with the size of tensors.
void describe(benchmark::State& state) {
  const auto& t = training_of(state.range(0));
  for (auto _ : state) {
    planned_file file(t);
    benchmark::DoNotOptimize(file);
  }
}

// ---- reading: from the page cache, so that it is the code that is measured, not the disk ----

/// A file that `write(path)` has made and that is in the page cache.
template <class Write>
class cached_file {
 public:
  explicit cached_file(Write write) : name(folder().file("read")) {
    fs::remove(name);
    write(name);
    size = static_cast<std::size_t>(fs::file_size(name));
    const warm_buffer content(size);
    const open_file file(name, O_RDONLY);
    read_in_chunks(file.get(), content.bytes());
  }
  cached_file(const cached_file&) = delete;
  cached_file& operator=(const cached_file&) = delete;
  ~cached_file() { fs::remove(name); }

  fs::path name;
  std::size_t size = 0;
};

auto cached_snapshot(std::int64_t mebibytes) {
  return cached_file([mebibytes](const fs::path& p) { write_snapshot(training_of(mebibytes), p); });
}

void count_bytes(benchmark::State& state, std::size_t size) {
  state.SetBytesProcessed(static_cast<std::int64_t>(size) * state.iterations());
}

void read_plain(benchmark::State& state) {
  const auto source = cached_snapshot(state.range(0));
  const warm_buffer content(source.size);
  for (auto _ : state) {
    const open_file file(source.name, O_RDONLY);
    read_in_chunks(file.get(), content.bytes());
  }
  count_bytes(state, source.size);
}

void read_open(benchmark::State& state) {
  const auto source = cached_snapshot(state.range(0));
  for (auto _ : state) {
    auto file = checkpoint::reader::open(source.name);
    benchmark::DoNotOptimize(file);
  }
}

void read_verify(benchmark::State& state) {
  const auto source = cached_snapshot(state.range(0));
  for (auto _ : state) checkpoint::verify(checkpoint::reader::open(source.name));
  count_bytes(state, source.size);
}

void read_materialize(benchmark::State& state) {
  const auto source = cached_snapshot(state.range(0));
  for (auto _ : state) {
    auto loaded = checkpoint::materialize(checkpoint::reader::open(source.name));
    benchmark::DoNotOptimize(loaded);
  }
  count_bytes(state, source.size);
}

void read_snapshot(benchmark::State& state) {
  const auto source = cached_snapshot(state.range(0));
  for (auto _ : state) {
    auto loaded = extensions::read_snapshot(source.name, {});
    benchmark::DoNotOptimize(loaded);
  }
  count_bytes(state, source.size);
}

void read_torch_load(benchmark::State& state) {
  const auto& t = training_of(state.range(0));
  const cached_file source([&t](const fs::path& p) { save_by_torch(t, p); });
  saved_training loaded(state.range(0));
  for (auto _ : state) {
    torch::serialize::InputArchive all, model, optimizer;
    all.load_from(source.name.string());
    all.read("model", model);
    all.read("optimizer", optimizer);
    loaded.model->load(model);
    loaded.optimizer->load(optimizer);
  }
  count_bytes(state, source.size);
}

void configure(benchmark::internal::Benchmark* b) {
  b->ArgName("MiB")->Arg(256)->Unit(benchmark::kMillisecond)->UseRealTime();
}
void configure_disk(benchmark::internal::Benchmark* b) {
  configure(b);
  b->Iterations(3);
}
/// For those that say themselves how long the part lasted that counts.
void configure_manual(benchmark::internal::Benchmark* b) {
  b->ArgName("MiB")->Arg(256)->Unit(benchmark::kMillisecond)->UseManualTime()->Iterations(3);
}
BENCHMARK(write_simple)->Name("write/simple")->Apply(configure_disk);
BENCHMARK(write_thread)->Name("write/thread_image")->Apply(configure_manual);
BENCHMARK(write_process)->Name("write/process_image")->Apply(configure_manual);
BENCHMARK(write_direct)->Name("write/raw_direct")->Apply(configure_disk);
BENCHMARK(write_buffered)->Name("write/raw_buffered")->Apply(configure_disk);
BENCHMARK(write_torch_save)->Name("write/torch_save")->Apply(configure_disk);
BENCHMARK(describe)->Name("memory/describe")->Apply(configure);
BENCHMARK(capture_all)->Name("memory/capture")->Apply(configure_manual);
BENCHMARK(encode)->Name("memory/encode")->Apply(configure);
BENCHMARK(checksum)->Name("memory/crc32")->Apply(configure);
BENCHMARK(copy_memory)->Name("memory/memcpy")->Apply(configure);
BENCHMARK(read_open)->Name("read/open")->Apply(configure);
BENCHMARK(read_verify)->Name("read/verify")->Apply(configure);
BENCHMARK(read_materialize)->Name("read/materialize")->Apply(configure);
BENCHMARK(read_snapshot)->Name("read/snapshot")->Apply(configure);
BENCHMARK(read_plain)->Name("read/plain")->Apply(configure);
BENCHMARK(read_torch_load)->Name("read/torch_load")->Apply(configure);

}  // namespace
}  // namespace rondo::bench

BENCHMARK_MAIN();

#include "rondo/extensions/snapshot/snapshot_file.hpp"

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <torch/version.h>

#include <chrono>

#include "rondo/checkpoint/reader.hpp"
#include "rondo/checkpoint/sharded.hpp"
#include "rondo/checkpoint/tensors.hpp"
#include "rondo/extensions/snapshot/sharding.hpp"
#include "rondo/log.hpp"
#include "rondo/version.hpp"

namespace rondo::extensions {

checkpoint::snapshot_info snapshot_info_of(std::string made_by, std::int64_t iteration, std::int64_t epoch,
                                           bool mid_iteration) {
  checkpoint::snapshot_info info;
  info.made_by = std::move(made_by);
  info.iteration = iteration;
  info.epoch = epoch;
  info.mid_iteration = mid_iteration;
  info.libraries = {{"rondo", std::string(version)}, {"torch", TORCH_VERSION}};
  info.num_threads = at::get_num_threads();
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  info.created = std::chrono::duration_cast<std::chrono::seconds>(now).count();
  return info;
}

namespace {

void warn_about_threads(const std::filesystem::path& file, const checkpoint::snapshot_info& info) {
  if (info.num_threads == at::get_num_threads()) return;
  log::warn(fmt::format("'{}' was computed with {} threads, now there are {}: sums may differ in their last bits",
                        file.string(), info.num_threads, at::get_num_threads()));
}

}  // namespace

state::value read_snapshot(const std::filesystem::path& file, const state::value& wanted) {
  if (checkpoint::is_sharded(file)) {
    const auto reader = checkpoint::sharded_reader::open(file);
    auto state = load_sharded(reader, wanted);
    warn_about_threads(file, reader.info());
    return state;
  }
  const auto reader = checkpoint::reader::open(file);
  auto state = checkpoint::materialize_verified(reader);
  if (reader.info()) warn_about_threads(file, reader.info()->info);
  return state;
}

}  // namespace rondo::extensions

#include "rondo/extensions/snapshot/snapshot_file.hpp"

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <torch/version.h>

#include "rondo/checkpoint/reader.hpp"
#include "rondo/checkpoint/verify.hpp"
#include "rondo/log.hpp"
#include "rondo/version.hpp"

namespace rondo::extensions {

snapshot_file::snapshot_file(const state::value& state, checkpoint::snapshot_info info)
    : described_(checkpoint::describe(state)), encoder_(described_.tree, described_.views(), std::move(info)) {}

writing::write_request snapshot_file::request(std::filesystem::path target) const {
  return {std::move(target), encoder_.size(),
          [this](const writing::append_function& append) { encoder_.write(append); }};
}

checkpoint::snapshot_info snapshot_info_of(std::string made_by, std::int64_t iteration, std::int64_t epoch,
                                           bool mid_iteration) {
  checkpoint::snapshot_info info;
  info.made_by = std::move(made_by);
  info.iteration = iteration;
  info.epoch = epoch;
  info.mid_iteration = mid_iteration;
  info.libraries = {{"rondo", std::string(version)}, {"torch", TORCH_VERSION}};
  info.num_threads = at::get_num_threads();
  return info;
}

state::value read_snapshot(const std::filesystem::path& file) {
  checkpoint::require_readable(file);
  const auto reader = checkpoint::reader::open(file);
  checkpoint::verify(reader);
  if (reader.info() && reader.info()->info.num_threads != at::get_num_threads())
    log::warn(fmt::format("'{}' was computed with {} threads, now there are {}: sums may differ in their last bits",
                          file.string(), reader.info()->info.num_threads, at::get_num_threads()));
  return checkpoint::materialize(reader);
}

}  // namespace rondo::extensions

#include "rondo/data/prefetch.hpp"

#include <ATen/Context.h>
#include <fmt/format.h>

namespace rondo::data::detail {

void check_prefetch(std::int64_t depth, std::int64_t workers, const prefetch_options& options) {
  if (depth < 1) throw option_error("prefetch depth", fmt::format("{}", depth), "1 or more");
  if (workers < 0) throw option_error("prefetch workers", fmt::format("{}", workers), "0 or more");
  if (options.pin_memory.value_or(false) && !at::hasCUDA())
    throw option_error("pin_memory", "true",
                       "false where there is no CUDA device, or nothing: memory is then pinned when the device of the "
                       "loop is one");
}

void check_stream_workers(std::int64_t workers) {
  if (workers > 1)
    throw option_error(
        "prefetch workers", fmt::format("{}", workers),
        "0 or 1 for a stream, which only one thread can read; prefetch a random access range to use more");
}

}  // namespace rondo::data::detail

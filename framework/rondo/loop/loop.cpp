#include "rondo/loop/loop.hpp"

#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>
#include <exception>
#include <optional>

namespace rondo {

void detail::refuse_counts(const loop_options& options) {
  if (!options.counts) return;
  throw option_error("counts", "set in a loop with a custom step, or whose targets are no tensors",
                     "ctx.weigh_batch(weight) in the step");
}

loop& loop::remember(std::string name, state::stateful_ref object) {
  state_objects_.push_back({std::move(name), std::move(object)});
  return *this;
}

loop& loop::extend(extension e) {
  extensions_.push_back(std::move(e));
  return *this;
}

run_result loop::run() {
  asio::io_context events(1);
  std::exception_ptr error;
  std::optional<run_result> result;
  asio::co_spawn(events, run_async(), [&](std::exception_ptr e, run_result r) {
    error = std::move(e);
    result = std::move(r);
  });
  events.run();
  session_.reset();  // before the event loop that its coroutines belong to
  if (error) std::rethrow_exception(error);
  return std::move(*result);
}

task<run_result> loop::run_async() {
  if (!source_) throw error("this loop has run already; make a new one (snapshots carry the state over)");
  session_ =
      std::make_unique<detail::session>(std::move(options_), std::move(models_.all_), std::move(optimizers_.all_),
                                        std::move(state_objects_), std::move(source_), std::move(supervised_));
  co_return co_await session_->drive(std::move(extensions_));
}

}  // namespace rondo

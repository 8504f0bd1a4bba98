#include "rondo/extensions/evaluator.hpp"

#include <c10/core/GradMode.h>
#include <torch/nn/module.h>

#include <chrono>
#include <exception>
#include <utility>

#include "rondo/error.hpp"
#include "rondo/event/events.hpp"
#include "rondo/event/interval.hpp"
#include "rondo/event/priority.hpp"
#include "rondo/extensions/evaluation_mode.hpp"
#include "rondo/log.hpp"

namespace rondo::extensions {

evaluation::evaluation(evaluator_options options, std::unique_ptr<evaluation_pass> pass)
    : options_(std::move(options)), pass_(std::move(pass)) {}

void evaluation::attach(context& ctx) {
  pass_->check(ctx);
  evaluated_at_ = -1;
  ctx.when_due([this, &ctx] { return evaluate(ctx); });
  ctx.on<event::training_started>([this, &ctx] { begun_at_ = ctx.state_version(); });
  if (options_.final) ctx.on<event::training_completed>([this, &ctx] { return evaluate_at_end(ctx); });
}

task<> evaluation::evaluate_at_end(context& ctx) {
  const bool trained = ctx.state_version() != begun_at_;
  if (ctx.preempted() || !trained || evaluated_at_ == ctx.state_version()) co_return;
  co_await evaluate(ctx);
}

task<> evaluation::evaluate(context& ctx) {
  const auto began = std::chrono::steady_clock::now();
  std::exception_ptr error;
  try {
    auto rest = ctx.emit<event::evaluation_started>(options_.name);
    if (rest) co_await std::move(*rest);
    co_await measure(ctx);
  } catch (...) {
    error = std::current_exception();
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  try {
    auto rest = ctx.emit<event::evaluation_completed>(options_.name, seconds, error);
    if (rest) co_await std::move(*rest);
  } catch (...) {
    if (!error) throw;
    log::error("'" + options_.name + "' failed, and then an extension threw another error at evaluation_completed");
  }
  if (error) std::rethrow_exception(error);
  evaluated_at_ = ctx.state_version();
}

task<> evaluation::measure(context& ctx) {
  auto work = ctx.interruptible_work();
  pass_->begin(ctx);
  bool any = false;
  for (;;) {
    auto rest = pass_->ready();
    if (rest) co_await work.wait(std::move(*rest));
    if (pass_->exhausted()) break;
    evaluate_some(ctx, work);
    any = true;
    if (work.due()) co_await work.point();
  }
  if (ctx.group().world_size() > 1) any = co_await join_ranks(ctx, any);
  if (!any)
    throw option_error("batches", "no batch for '" + options_.name + "'",
                       "a range that gives batches every time it is iterated over");
  const auto scope = ctx.report_scope(options_.name + "/");
  pass_->report(ctx);
}

/// Whether any rank has had a batch.
task<bool> evaluation::join_ranks(context& ctx, bool any) {
  const auto group = ctx.group().channel(options_.name);
  std::string mine = any ? "1" : "0";
  mine += pass_->part();
  distributed::rank_group::joiner join = [this](const std::vector<std::string>& parts) { return joined(parts); };
  auto merging = group.merge(std::move(mine), std::move(join));
  const auto whole = co_await std::move(merging);
  pass_->join({whole.substr(1)});
  co_return whole.front() == '1';
}

/// The part that says what all of these do. Whether there was a batch, and what was measured.
std::string evaluation::joined(std::vector<std::string> parts) {
  bool any = false;
  for (auto& part : parts) {
    any = any || part.front() == '1';
    part.erase(0, 1);
  }
  pass_->join(parts);
  std::string whole = any ? "1" : "0";
  whole += pass_->part();
  return whole;
}

// Not a coroutine: gradient mode belongs to the thread, and all of this must be as it was before anybody else runs.
void evaluation::evaluate_some(context& ctx, const interruptible_work& work) {
  const c10::AutoGradMode no_gradients(false);
  std::vector<torch::nn::Module*> models;
  for (const auto& model : ctx.models()) models.push_back(model.module.get());
  const evaluation_mode modes(std::move(models));
  auto reports = ctx.put_reports_aside();
  do pass_->step(ctx, reports.current());
  while (!work.due() && !pass_->ready() && !pass_->exhausted());
}

extension make_evaluator(evaluator_options options, std::unique_ptr<evaluation_pass> pass) {
  if (options.name.empty()) throw option_error("name", "empty", "a name for the evaluator, such as \"validation\"");
  auto name = options.name;
  auto made = std::make_shared<evaluation>(std::move(options), std::move(pass));
  return make_extension(std::move(name), std::move(made)).at_priority(priority::writer).triggered(every(epochs(1)));
}

}  // namespace rondo::extensions

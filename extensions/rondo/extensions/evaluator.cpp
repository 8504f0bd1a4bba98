#include "rondo/extensions/evaluator.hpp"

#include <c10/core/GradMode.h>
#include <torch/nn/module.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <unordered_map>

#include "rondo/error.hpp"
#include "rondo/event/events.hpp"
#include "rondo/event/interval.hpp"
#include "rondo/event/priority.hpp"
#include "rondo/log.hpp"

namespace rondo::extensions {

namespace {

/// Gives every submodule its own mode back at the end.
class mode_keeper {
 public:
  explicit mode_keeper(const context& ctx) : models_(ctx.models()) {
    for (const auto& model : models_) remember(*model.module);
  }
  mode_keeper(const mode_keeper&) = delete;
  mode_keeper& operator=(const mode_keeper&) = delete;
  ~mode_keeper() {
    for (const auto& model : models_) restore(*model.module);
  }

  void evaluate() const {
    for (const auto& model : models_) model.module->eval();
  }

 private:
  void remember(const torch::nn::Module& module) {
    training_.emplace(&module, module.is_training());
    for (const auto& child : module.children()) remember(*child);
  }
  // `train` is recursive, so parents come first, and a module with two parents again after the second.
  void restore(torch::nn::Module& module) const {
    module.train(training_.at(&module));
    for (const auto& child : module.children()) restore(*child);
  }

  const std::vector<rondo::detail::named_model>& models_;
  std::unordered_map<const torch::nn::Module*, bool> training_;
};

}  // namespace

void metric_set::add(std::unique_ptr<base> metric) {
  const auto name = metric->name();
  for (const auto& other : all_)
    if (!name.empty() && other->name() == name)
      throw option_error("metrics", "two called '" + name + "'", "one metric of each name");
  all_.push_back(std::move(metric));
}

void metric_set::add_loss() {
  const auto is_loss = [](const auto& metric) { return metric->name() == "loss"; };
  if (std::any_of(all_.begin(), all_.end(), is_loss)) return;
  all_.insert(all_.begin(), std::make_unique<model<metrics::loss>>(metrics::loss()));
}

void metric_set::reset() {
  for (const auto& metric : all_) metric->reset();
}

void metric_set::update(context& ctx, const at::Tensor& output, const at::Tensor& target) {
  for (const auto& metric : all_) metric->update(ctx, output, target);
}

void metric_set::report(context& ctx) {
  for (const auto& metric : all_) metric->report(ctx);
}

evaluation::evaluation(evaluator_options options, std::unique_ptr<evaluation_pass> pass)
    : options_(std::move(options)), pass_(std::move(pass)) {}

void evaluation::attach(context& ctx) {
  pass_->check(ctx);
  ctx.when_due([this, &ctx] { return evaluate(ctx); });
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
  if (!any)
    throw option_error("batches", "no batch for '" + options_.name + "'",
                       "a range that gives batches every time it is iterated over");
  const auto scope = ctx.report_scope(options_.name + "/");
  pass_->report(ctx);
}

// Not a coroutine: gradient mode belongs to the thread, and all of this must be as it was before anybody else runs.
void evaluation::evaluate_some(context& ctx, const interruptible_work& work) {
  const c10::AutoGradMode no_gradients(false);
  const mode_keeper modes(ctx);
  modes.evaluate();
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

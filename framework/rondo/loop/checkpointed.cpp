#include "rondo/loop/checkpointed.hpp"

#include <ATen/autocast_mode.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/nn/modules/batchnorm.h>

#include <mutex>
#include <optional>

#include "rondo/loop/autocast_state.hpp"
#include "rondo/state/random.hpp"

namespace rondo::detail {

namespace {

namespace autocast = at::autocast;
namespace autograd = torch::autograd;

struct autocast_settings {
  bool gpu = autocast_state::enabled(at::kCUDA);
  bool cpu = autocast_state::enabled(at::kCPU);
  at::ScalarType gpu_dtype = autocast_state::dtype(at::kCUDA);
  at::ScalarType cpu_dtype = autocast_state::dtype(at::kCPU);
  bool cache = autocast::is_autocast_cache_enabled();

  void apply() const {
    autocast_state::enable(at::kCUDA, gpu);
    autocast_state::enable(at::kCPU, cpu);
    autocast_state::set_dtype(at::kCUDA, gpu_dtype);
    autocast_state::set_dtype(at::kCPU, cpu_dtype);
    autocast::set_autocast_cache_enabled(cache);
  }
};

/// Copies of weights that were cast without a graph must not serve where one is built, nor the other way round.
class autocast_as {
 public:
  explicit autocast_as(const autocast_settings& settings) {
    autocast::clear_cache();
    settings.apply();
  }
  ~autocast_as() {
    autocast::clear_cache();
    before_.apply();
  }
  autocast_as(const autocast_as&) = delete;
  autocast_as& operator=(const autocast_as&) = delete;

 private:
  autocast_settings before_;
};

class random_as {
 public:
  explicit random_as(const state::value& numbers) : before_(state::random_state()) {
    state::load_random_state(numbers);
  }
  ~random_as() { state::load_random_state(before_); }
  random_as(const random_as&) = delete;
  random_as& operator=(const random_as&) = delete;

 private:
  state::value before_;
};

/// While it lives, batch normalisation leaves its running statistics as they are, and otherwise does what it does in
/// training: a momentum of 0 takes nothing of the new ones.
class statistics_at_rest {
 public:
  explicit statistics_at_rest(torch::nn::Module* module) {
    if (module != nullptr) visit(*module);
  }
  ~statistics_at_rest() {
    // Backwards: a module that the block has under two names was changed twice.
    for (auto put_back = put_back_.rbegin(); put_back != put_back_.rend(); ++put_back) (*put_back)();
  }
  statistics_at_rest(const statistics_at_rest&) = delete;
  statistics_at_rest& operator=(const statistics_at_rest&) = delete;

 private:
  void visit(torch::nn::Module& module) {
    module.apply([this](torch::nn::Module& each) {
      hold(each.as<torch::nn::BatchNorm1dImpl>());
      hold(each.as<torch::nn::BatchNorm2dImpl>());
      hold(each.as<torch::nn::BatchNorm3dImpl>());
    });
  }

  template <class Norm>
  void hold(Norm* norm) {
    if (norm == nullptr || !norm->is_training() || !norm->num_batches_tracked.defined()) return;
    put_back_.push_back([norm, momentum = norm->options.momentum(), count = norm->num_batches_tracked.clone()] {
      norm->options.momentum(momentum);
      norm->num_batches_tracked.copy_(count);
    });
    norm->options.momentum(0.0);
  }

  std::vector<std::function<void()>> put_back_;
};

class recompute final : public autograd::Node {
 public:
  recompute(recomputation block, const tensor_list& inputs, std::shared_ptr<torch::nn::Module> module)
      : block_(std::move(block)), module_(std::move(module)), random_(state::random_state()) {
    for (const auto& input : inputs) {
      inputs_.emplace_back(input, false);
      needs_gradient_.push_back(input.defined() && input.requires_grad());
    }
    set_next_edges(autograd::collect_next_edges(inputs));
  }

  autograd::variable_list apply(autograd::variable_list&& gradients) override {
    const std::lock_guard lock(mutex_);
    autograd::variable_list inputs;
    for (std::size_t i = 0; i < inputs_.size(); ++i) {
      const auto input = inputs_[i].unpack();
      inputs.push_back(input.defined() ? input.detach().requires_grad_(needs_gradient_[i]) : input);
    }
    const auto outputs = again(inputs);
    tensor_list with_gradient;
    tensor_list their_gradients;
    for (std::size_t i = 0; i < outputs.size() && i < gradients.size(); ++i) {
      if (!outputs[i].defined() || !outputs[i].requires_grad() || !gradients[i].defined()) continue;
      with_gradient.push_back(outputs[i]);
      their_gradients.push_back(gradients[i]);
    }
    if (!with_gradient.empty()) autograd::backward(with_gradient, their_gradients);
    autograd::variable_list found;
    for (std::size_t i = 0; i < inputs.size(); ++i)
      found.push_back(needs_gradient_[i] ? inputs[i].grad() : at::Tensor());
    return found;
  }

  void release_variables() override {
    const std::lock_guard lock(mutex_);
    for (auto& input : inputs_) input.reset_data();
  }

  [[nodiscard]] std::string name() const override { return "CheckpointedBackward"; }

 private:
  tensor_list again(const tensor_list& inputs) {
    const c10::AutoGradMode with_gradients(true);
    const autocast_as precision(autocast_);
    const random_as numbers(random_);
    const statistics_at_rest statistics(module_.get());
    return block_(inputs);
  }

  recomputation block_;
  std::shared_ptr<torch::nn::Module> module_;
  state::value random_;
  autocast_settings autocast_;
  std::vector<autograd::SavedVariable> inputs_;
  std::vector<bool> needs_gradient_;
  std::mutex mutex_;
};

}  // namespace

tensor_list run_checkpointed(recomputation block, const tensor_list& inputs,
                             std::shared_ptr<torch::nn::Module> module) {
  if (!c10::GradMode::is_enabled()) return block(inputs);
  // Before the block runs: it remembers the random numbers.
  const auto node = std::shared_ptr<recompute>(new recompute(block, inputs, std::move(module)), autograd::deleteNode);
  tensor_list outputs;
  {
    const c10::AutoGradMode without_gradients(false);
    const autocast_as precision(autocast_settings{});
    for (const auto& output : block(inputs)) outputs.push_back(output.defined() ? output.detach() : output);
  }
  for (auto& output : outputs) {
    if (output.defined() && autograd::isDifferentiableType(output.scalar_type()))
      autograd::set_history(output, node);
    else
      node->add_input_metadata(autograd::Node::undefined_input());
  }
  return outputs;
}

}  // namespace rondo::detail

#include "rondo/distributed/data_parallel.hpp"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

namespace rondo::distributed {

namespace {

constexpr double mebibyte = 1024.0 * 1024.0;
constexpr double first_bucket_mb = 1.0;

/// Tells of a gradient that has just been accumulated.
class accumulated_hook final : public torch::autograd::FunctionPostHook {
 public:
  explicit accumulated_hook(std::function<void()> tell) : tell_(std::move(tell)) {}

  torch::autograd::variable_list operator()(const torch::autograd::variable_list& outputs,
                                            const torch::autograd::variable_list&) override {
    tell_();
    return outputs;
  }

 private:
  std::function<void()> tell_;
};

struct named_tensor {
  std::string name;
  at::Tensor tensor;
};

std::vector<named_tensor> parameters_of(const torch::nn::Module& model) {
  std::vector<named_tensor> all;
  std::unordered_set<const c10::TensorImpl*> seen;
  for (const auto& item : model.named_parameters())
    if (item.value().defined() && seen.insert(item.value().unsafeGetTensorImpl()).second)
      all.push_back({item.key(), item.value()});
  return all;
}

std::vector<named_tensor> buffers_of(const torch::nn::Module& model) {
  std::vector<named_tensor> all;
  std::unordered_set<const c10::TensorImpl*> seen;
  for (const auto& item : model.named_buffers())
    if (item.value().defined() && seen.insert(item.value().unsafeGetTensorImpl()).second)
      all.push_back({item.key(), item.value()});
  return all;
}

std::string description(const std::vector<named_tensor>& tensors) {
  std::string text;
  for (const auto& [name, tensor] : tensors)
    text += fmt::format("{}: {} [{}]\n", name, c10::toString(tensor.scalar_type()), fmt::join(tensor.sizes(), ", "));
  return text;
}

std::string first_difference(std::string_view mine, std::string_view first) {
  const auto line = [](std::string_view& rest) {
    const auto end = rest.find('\n');
    const auto found = rest.substr(0, end);
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    return found;
  };
  while (!mine.empty() || !first.empty()) {
    const auto here = line(mine);
    const auto there = line(first);
    if (here != there)
      return fmt::format("has '{}' where rank 0 has '{}'", here.empty() ? "nothing" : here,
                         there.empty() ? "nothing" : there);
  }
  return {};
}

at::Tensor bytes_of(const at::Tensor& tensor) { return tensor.detach().contiguous().view(-1).view(at::kByte); }

/// Gives all ranks the bytes of rank 0's tensors, many at a time.
task<> broadcast_all(rank_group group, std::vector<at::Tensor> tensors, std::int64_t bytes_at_a_time) {
  const c10::AutoGradMode no_grad(false);
  std::erase_if(tensors, [](const at::Tensor& tensor) { return tensor.numel() == 0; });
  std::size_t begin = 0;
  while (begin < tensors.size()) {
    std::vector<at::Tensor> parts;
    std::int64_t size = 0;
    std::size_t end = begin;
    while (end < tensors.size() && tensors[end].device() == tensors[begin].device() &&
           (size == 0 || size + static_cast<std::int64_t>(tensors[end].nbytes()) <= bytes_at_a_time)) {
      parts.push_back(bytes_of(tensors[end]));
      size += parts.back().numel();
      ++end;
    }
    const auto flat = at::cat(parts);
    co_await group.broadcast(flat, 0);
    if (group.rank() != 0) {
      std::int64_t offset = 0;
      for (std::size_t i = begin; i < end; ++i) {
        const auto& to = tensors[i];
        const auto count = static_cast<std::int64_t>(to.nbytes());
        // A copy, because other dtypes need an aligned beginning.
        const auto from = flat.narrow(0, offset, count).clone().view(to.scalar_type()).view(to.sizes());
        to.detach().copy_(from);
        offset += count;
      }
    }
    begin = end;
  }
}

at::ScalarType sum_type(at::ScalarType gradient) {
  const auto real = c10::toRealValueType(gradient);
  return real == at::kHalf || real == at::kBFloat16 ? at::kFloat : real;
}

/// Complex numbers are pairs.
at::Tensor real_numbers(const at::Tensor& tensor) { return tensor.is_complex() ? at::view_as_real(tensor) : tensor; }

std::int64_t real_numel(const at::Tensor& tensor) { return tensor.numel() * (tensor.is_complex() ? 2 : 1); }

/// Gradients that are sent together. Behind them: for each parameter on how many ranks it has one, and the samples.
struct bucket {
  std::vector<named_tensor> parameters;
  std::int64_t numel = 0;
  at::Tensor flat = {};
  std::vector<bool> ready = {};  // whose gradients have been computed
  std::size_t waiting_for = 0;   // gradients that are still being computed
  std::optional<pending_operation> sent = std::nullopt;
};

}  // namespace

class data_parallel::reducer : public std::enable_shared_from_this<reducer> {
 public:
  reducer(std::shared_ptr<torch::nn::Module> model, rank_group group, data_parallel_options options)
      : model_(std::move(model)), group_(std::move(group)), options_(options) {
    if (!(options_.bucket_mb > 0))
      throw option_error("bucket_mb", fmt::format("{}", options_.bucket_mb), "a positive number of MiB");
  }
  ~reducer() { remove_hooks(); }
  reducer(const reducer&) = delete;
  reducer& operator=(const reducer&) = delete;

  [[nodiscard]] bool alone() const noexcept { return group_.world_size() == 1; }

  task<> broadcast_state() {
    if (alone()) co_return;
    co_await require_same_model();
    std::vector<at::Tensor> tensors;
    for (const auto& each : parameters_of(*model_)) tensors.push_back(each.tensor);
    for (const auto& each : buffers_of(*model_)) tensors.push_back(each.tensor);
    co_await broadcast_all(group_, std::move(tensors), bucket_bytes());
  }

  task<> broadcast_buffers() {
    if (alone() || !options_.broadcast_buffers) co_return;
    std::vector<at::Tensor> tensors;
    for (const auto& each : buffers_of(*model_)) tensors.push_back(each.tensor);
    if (!tensors.empty()) co_await broadcast_all(group_, std::move(tensors), bucket_bytes());
  }

  void begin(std::int64_t samples, bool last_of_window) {
    if (samples < 0) throw option_error("samples", fmt::format("{}", samples), "0 or more");
    if (alone()) return;
    samples_of_window = samples_of_window.value_or(0) + samples;
    refresh_buckets();
    armed_ = options_.overlap && last_of_window && accumulating == 0;
    if (!armed_) return;
    for (auto& each : buckets_) {
      each.waiting_for = each.parameters.size();
      each.ready.assign(each.parameters.size(), false);
    }
  }

  task<> finish() {
    if (alone()) co_return;
    refresh_buckets();
    armed_ = false;
    const auto failed = std::exchange(failed_, nullptr);
    if (failed) std::rethrow_exception(failed);
    while (next_ < buckets_.size()) send(buckets_[next_++]);
    next_ = 0;
    samples_of_window.reset();
    for (auto& each : buckets_) {
      auto sent = std::move(*each.sent);
      each.sent.reset();
      co_await sent.wait();
      take_over(each);
    }
  }

  [[nodiscard]] std::size_t bucket_count() {
    refresh_buckets();
    return buckets_.size();
  }

  int accumulating = 0;
  std::optional<std::int64_t> samples_of_window;

 private:
  [[nodiscard]] std::int64_t bucket_bytes() const {
    return std::max<std::int64_t>(1, static_cast<std::int64_t>(options_.bucket_mb * mebibyte));
  }

  task<> require_same_model() {
    const auto mine = description(parameters_of(*model_)) + description(buffers_of(*model_));
    const auto first = co_await group_.broadcast(mine, 0);
    const auto objections = co_await group_.all_gather(first_difference(mine, first));
    for (std::size_t rank = 0; rank < objections.size(); ++rank)
      if (!objections[rank].empty())
        throw state_error("",
                          fmt::format("the models of the ranks differ: that of rank {} {}", rank, objections[rank]));
  }

  // ---- buckets -----------------------------------------------------------------------------------------------------

  /// Parameters may be frozen and thawed while training, but not between two `backward` of one window.
  void refresh_buckets() {
    std::vector<named_tensor> trainable;
    for (auto& each : parameters_of(*model_))
      if (each.tensor.requires_grad()) trainable.push_back(std::move(each));
    const auto same = [](const named_tensor& a, const named_tensor& b) { return a.tensor.is_same(b.tensor); };
    if (std::ranges::equal(trainable, trainable_, same)) return;
    trainable_ = std::move(trainable);
    make_buckets();
    add_hooks();
  }

  /// From the last parameter to the first, as `backward` computes their gradients.
  void make_buckets() {
    buckets_.clear();
    next_ = 0;
    std::int64_t limit = std::min(bucket_bytes(), static_cast<std::int64_t>(first_bucket_mb * mebibyte));
    std::int64_t bytes = 0;
    for (auto at = trainable_.rbegin(); at != trainable_.rend(); ++at) {
      const auto type = sum_type(at->tensor.scalar_type());
      const auto size = real_numel(at->tensor) * static_cast<std::int64_t>(c10::elementSize(type));
      const bool fits = !buckets_.empty() && bytes + size <= limit && buckets_.back().flat.scalar_type() == type &&
                        buckets_.back().flat.device() == at->tensor.device();
      if (!fits) {
        if (!buckets_.empty()) limit = bucket_bytes();
        buckets_.emplace_back().flat = at::empty({0}, at->tensor.options().dtype(type).requires_grad(false));
        bytes = 0;
      }
      buckets_.back().parameters.push_back(*at);
      buckets_.back().numel += real_numel(at->tensor);
      bytes += size;
    }
    for (auto& each : buckets_) each.flat.resize_({each.numel + static_cast<std::int64_t>(each.parameters.size()) + 1});
  }

  void add_hooks() {
    remove_hooks();
    for (std::size_t index = 0; index < buckets_.size(); ++index)
      for (std::size_t i = 0; i < buckets_[index].parameters.size(); ++i) {
        auto node = torch::autograd::impl::grad_accumulator(buckets_[index].parameters[i].tensor);
        auto tell = [self = weak_from_this(), index, i] {
          if (const auto there = self.lock()) there->accumulated(index, i);
        };
        const auto key = node->add_post_hook(std::make_unique<accumulated_hook>(std::move(tell)));
        hooks_.push_back({std::move(node), key});
      }
  }

  void remove_hooks() {
    for (const auto& each : hooks_) each.node->del_post_hook(each.key);
    hooks_.clear();
  }

  // ---- gradients ---------------------------------------------------------------------------------------------------

  /// On the thread that computes gradients: this one, or autograd's own for a device.
  void accumulated(std::size_t index, std::size_t i) noexcept {
    const std::lock_guard lock(mutex_);
    if (!armed_ || failed_) return;
    try {
      auto& changed = buckets_[index];
      if (changed.ready[i] && index >= next_) return;  // what is sent later holds it all
      if (changed.ready[i])
        throw option_error("data_parallel.overlap",
                           fmt::format("true, but the gradient of '{}' has grown after it was sent: by a second "
                                       "backward in one step, or by a checkpointed block that is used twice",
                                       changed.parameters[i].name),
                           "false here, which sends all gradients at the end");
      changed.ready[i] = true;
      --changed.waiting_for;
      // In one order on all ranks, whatever becomes ready first.
      while (next_ < buckets_.size() && buckets_[next_].waiting_for == 0) send(buckets_[next_++]);
    } catch (...) {
      failed_ = std::current_exception();
    }
  }

  void send(bucket& b) {
    const c10::AutoGradMode no_grad(false);
    const auto weight = static_cast<double>(samples_of_window.value_or(1));
    b.flat.zero_();
    std::vector<double> notes;
    std::int64_t offset = 0;
    for (const auto& [name, parameter] : b.parameters) {
      const auto& gradient = parameter.grad();
      const auto numel = real_numel(parameter);
      notes.push_back(gradient.defined() ? 1.0 : 0.0);
      if (gradient.defined() && gradient.layout() != at::kStrided)
        throw option_error("gradient", fmt::format("a sparse one, of '{}'", name),
                           "dense gradients where several ranks train");
      if (gradient.defined() && weight > 0) {
        const auto numbers = real_numbers(gradient);
        b.flat.narrow(0, offset, numel).view(numbers.sizes()).copy_(numbers);
      }
      offset += numel;
    }
    if (weight != 1.0 && weight > 0) b.flat.narrow(0, 0, b.numel).mul_(weight);
    notes.push_back(weight);
    b.flat.narrow(0, b.numel, static_cast<std::int64_t>(notes.size())).copy_(at::tensor(notes, at::kDouble));
    b.sent = group_.start_all_reduce(b.flat);
  }

  static void take_over(bucket& b) {
    const c10::AutoGradMode no_grad(false);
    const auto count = static_cast<std::int64_t>(b.parameters.size());
    const auto notes = b.flat.narrow(0, b.numel, count + 1).to(at::TensorOptions(at::kCPU).dtype(at::kDouble));
    const auto* const note = notes.data_ptr<double>();
    const double samples = note[count];
    if (samples > 0 && samples != 1.0) b.flat.narrow(0, 0, b.numel).div_(samples);
    std::int64_t offset = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      auto& parameter = b.parameters[static_cast<std::size_t>(i)].tensor;
      const auto numel = real_numel(parameter);
      if (note[i] > 0) {
        if (!parameter.grad().defined()) parameter.mutable_grad() = at::zeros_like(parameter);
        const auto numbers = real_numbers(parameter.mutable_grad());
        numbers.copy_(b.flat.narrow(0, offset, numel).view(numbers.sizes()));
      }
      offset += numel;
    }
  }

  struct hook {
    std::shared_ptr<torch::autograd::Node> node;  // lives no longer than somebody keeps it
    std::uintptr_t key;
  };

  std::shared_ptr<torch::nn::Module> model_;
  rank_group group_;
  data_parallel_options options_;
  std::vector<named_tensor> trainable_;
  std::vector<bucket> buckets_;
  std::vector<hook> hooks_;
  std::size_t next_ = 0;       // the bucket that is to be sent next
  bool armed_ = false;         // whether the next `backward` sends
  std::mutex mutex_;           // autograd may have several threads, one for each device
  std::exception_ptr failed_;  // while sending from `backward`
};

data_parallel::data_parallel(std::shared_ptr<torch::nn::Module> model, rank_group group, data_parallel_options options)
    : reducer_(std::make_shared<reducer>(std::move(model), std::move(group), options)) {}
data_parallel::~data_parallel() = default;
data_parallel::data_parallel(data_parallel&&) noexcept = default;
data_parallel& data_parallel::operator=(data_parallel&&) noexcept = default;

task<> data_parallel::broadcast_state() { return reducer_->broadcast_state(); }
void data_parallel::begin(std::int64_t samples, bool last_of_window) { reducer_->begin(samples, last_of_window); }
task<> data_parallel::finish() { return reducer_->finish(); }
task<> data_parallel::broadcast_buffers() { return reducer_->broadcast_buffers(); }
data_parallel::accumulation data_parallel::no_sync() { return accumulation(reducer_->accumulating); }
data_parallel::accumulation::~accumulation() { --depth_; }
std::optional<std::int64_t> data_parallel::samples_of_window() const noexcept { return reducer_->samples_of_window; }
void data_parallel::resume_window(std::optional<std::int64_t> samples) noexcept {
  reducer_->samples_of_window = samples;
}
std::size_t data_parallel::bucket_count() const { return reducer_->bucket_count(); }

}  // namespace rondo::distributed

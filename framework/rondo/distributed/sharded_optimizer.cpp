#include "rondo/distributed/sharded_optimizer.hpp"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/util/Type.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <string_view>
#include <typeinfo>
#include <unordered_set>

#include "rondo/distributed/packing.hpp"
#include "rondo/error.hpp"

namespace rondo::distributed {

namespace {

/// What the messages of all ranks may take together.
constexpr std::int64_t messages_limit = std::int64_t{64} << 20;
constexpr std::int64_t message_minimum = std::int64_t{1} << 20;
/// Before the rows in the first message: what tells whether the ranks did the same.
constexpr std::int64_t mark_size = 16;

std::int64_t row_count(const at::Tensor& parameter) { return parameter.dim() == 0 ? 1 : parameter.size(0); }

/// Rows of a parameter or a gradient, over the same memory, in the parameter's version counter, without a history.
at::Tensor rows_of(const at::Tensor& whole, std::int64_t begin, std::int64_t count) {
  const auto plain = whole.detach();
  if (whole.dim() > 0) return plain.narrow(0, begin, count);
  return count > 0 ? plain : plain.reshape({1}).narrow(0, 0, 0);
}

bool is_same_memory(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes() == b.sizes() && a.strides() == b.strides() && a.scalar_type() == b.scalar_type() &&
         a.device() == b.device() && (a.numel() == 0 || a.data_ptr() == b.data_ptr());
}

std::vector<at::Tensor> parameters_in(const std::vector<torch::optim::OptimizerParamGroup>& groups) {
  std::vector<at::Tensor> all;
  for (const auto& group : groups) all.insert(all.end(), group.params().begin(), group.params().end());
  return all;
}

std::vector<torch::optim::OptimizerParamGroup> checked(std::vector<torch::optim::OptimizerParamGroup> groups) {
  std::unordered_set<const c10::TensorImpl*> seen;
  std::size_t number = 0;
  for (const auto& parameter : parameters_in(groups)) {
    if (!parameter.defined())
      throw option_error("parameters", fmt::format("parameter {} is undefined", number), "tensors");
    if (!seen.insert(parameter.unsafeGetTensorImpl()).second)
      throw option_error("parameters", fmt::format("parameter {} is listed twice", number), "each parameter once");
    ++number;
  }
  return groups;
}

std::string_view next_line(std::string_view& rest) {
  const auto end = rest.find('\n');
  const auto line = rest.substr(0, end);
  rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
  return line.empty() ? "nothing" : line;
}

void require_same_description(std::string_view first, std::string_view other, std::size_t rank) {
  while (!first.empty() || !other.empty()) {
    const auto there = next_line(first);
    const auto here = next_line(other);
    if (here != there)
      throw state_error(
          "", fmt::format("the sharded optimizers differ: rank {} has '{}' where rank 0 has '{}'", rank, here, there));
  }
}

}  // namespace

/// Which rank steps on which rows. The same on all ranks, because it follows from the parameters.
class sharded_optimizer_base::division {
 public:
  division(const std::vector<at::Tensor>& parameters, int world_size) : world_size_(world_size) {
    std::int64_t all = 0;
    for (const auto& parameter : parameters) all += weight_of(parameter);
    std::int64_t begin = 0;
    for (const auto& parameter : parameters) {
      add(parameter, begin, all);
      begin += weight_of(parameter);
    }
  }

  [[nodiscard]] std::int64_t begin(std::size_t parameter, int rank) const {
    return bounds_[parameter][static_cast<std::size_t>(rank)];
  }
  [[nodiscard]] std::int64_t count(std::size_t parameter, int rank) const {
    return begin(parameter, rank + 1) - begin(parameter, rank);
  }

 private:
  static std::int64_t weight_of(const at::Tensor& parameter) {
    return parameter.requires_grad() ? parameter.numel() : 0;
  }

  /// The part of the line that begins at `begin`. Of what has no length there, the rank has all whose part begins last
  /// before it or there.
  void add(const at::Tensor& parameter, std::int64_t begin, std::int64_t all) {
    const auto rows = row_count(parameter);
    const auto weight = weight_of(parameter);
    std::vector<std::int64_t> bounds{0};
    for (int rank = 1; rank < world_size_; ++rank) {
      const auto cut = all / world_size_ * rank + all % world_size_ * rank / world_size_;
      if (cut <= begin)
        bounds.push_back(0);
      else if (cut >= begin + weight)
        bounds.push_back(rows);
      else
        bounds.push_back(nearest_row(cut - begin, weight / rows));
    }
    bounds.push_back(rows);
    bounds_.push_back(std::move(bounds));
  }

  static std::int64_t nearest_row(std::int64_t elements, std::int64_t row) { return (elements + row / 2) / row; }

  int world_size_;
  std::vector<std::vector<std::int64_t>> bounds_;
};

/// What the ranks give each other in one message.
struct sharded_optimizer_base::round {
  struct rows {
    std::size_t parameter;
    std::int64_t begin;
    std::int64_t count;
    std::int64_t offset;  ///< in the message
  };

  at::Device device;
  bool has_mark;
  std::int64_t size;  ///< of the longest message
  std::vector<std::vector<rows>> rows_of_rank;
};

sharded_optimizer_base::sharded_optimizer_base(groups all, std::unique_ptr<torch::optim::OptimizerOptions> defaults,
                                               rank_group group, kind what)
    : torch::optim::Optimizer(checked(std::move(all)), std::move(defaults)),
      group_(std::move(group)),
      kind_(std::move(what)),
      parameters_(parameters_in(param_groups())),
      division_(std::make_unique<division>(parameters_, group_.world_size())),
      stepped_(parameters_.size(), false) {
  for (const auto& parameter : parameters_) travels_.push_back(parameter.requires_grad());
  use(own_rows());
  inner_ = optimizer_of(rows_);
}

sharded_optimizer_base::~sharded_optimizer_base() = default;

// ---- The optimizer that does the work ----

std::vector<at::Tensor> sharded_optimizer_base::own_rows() const {
  std::vector<at::Tensor> rows;
  for (std::size_t i = 0; i < parameters_.size(); ++i)
    rows.push_back(rows_of(parameters_[i], division_->begin(i, group_.rank()), division_->count(i, group_.rank())));
  return rows;
}

/// Every parameter stands in it, be it with no rows, so that it knows what all ranks have to know: how often each was
/// stepped on, and what is remembered of it.
std::unique_ptr<torch::optim::Optimizer> sharded_optimizer_base::optimizer_of(
    const std::vector<at::Tensor>& rows) const {
  groups own;
  auto next = rows.begin();
  for (const auto& group : param_groups()) {
    const auto end = next + static_cast<std::ptrdiff_t>(group.params().size());
    own.emplace_back(std::vector<at::Tensor>(next, end), group.options().clone());
    next = end;
  }
  return kind_.make(std::move(own));
}

void sharded_optimizer_base::use(const std::vector<at::Tensor>& rows) {
  parts_.clear();
  for (std::size_t i = 0; i < parameters_.size(); ++i)
    parts_.push_back({parameters_[i], division_->begin(i, group_.rank())});
  rows_ = rows;
}

/// Models can be moved to another device or dtype after the optimizer was made.
void sharded_optimizer_base::follow_parameters() {
  auto present = parameters_in(param_groups());
  if (present.size() != parameters_.size())
    throw state_error("", fmt::format("the sharded optimizer was made for {} parameters, now there are {}; give all "
                                      "groups to its constructor",
                                      parameters_.size(), present.size()));
  for (std::size_t i = 0; i < present.size(); ++i)
    if (row_count(present[i]) != division_->begin(i, group_.world_size()))
      throw state_error("", fmt::format("parameter {} of the sharded optimizer has got another shape", i));
  parameters_ = std::move(present);
  auto rows = own_rows();
  if (std::ranges::equal(rows, rows_, is_same_memory)) return;
  auto moved = optimizer_of(rows);
  state::load_optimizer_state(*moved, state::optimizer_state(*inner_));
  inner_ = std::move(moved);
  use(rows);
}

void sharded_optimizer_base::hand_over_options(torch::optim::Optimizer& to) const {
  for (std::size_t i = 0; i < param_groups().size(); ++i)
    kind_.assign(to.param_groups()[i].options(), param_groups()[i].options());
}

void sharded_optimizer_base::take_over_options() {
  for (std::size_t i = 0; i < param_groups().size(); ++i)
    kind_.assign(param_groups()[i].options(), inner_->param_groups()[i].options());
}

void sharded_optimizer_base::hand_over_gradients() {
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const auto& gradient = parameters_[i].grad();
    stepped_[i] = gradient.defined();
    if (!gradient.defined()) continue;
    if (gradient.layout() != at::kStrided)
      throw option_error("gradient", fmt::format("that of parameter {} is sparse", i), "dense gradients");
    rows_[i].mutable_grad() = rows_of(gradient, division_->begin(i, group_.rank()), division_->count(i, group_.rank()));
    travels_[i] = true;
  }
}

void sharded_optimizer_base::drop_gradients() {
  for (auto& rows : rows_) rows.mutable_grad() = at::Tensor();
}

at::Tensor sharded_optimizer_base::step(LossClosure closure) {
  if (step_is_open_)
    throw error(
        "sharded_optimizer: the parameters of the last step were not gathered; co_await gather() on all ranks "
        "after each step()");
  at::Tensor loss;
  if (closure) {
    const c10::AutoGradMode with_grad(true);
    loss = closure();
  }
  const c10::AutoGradMode no_grad(false);
  follow_parameters();
  hand_over_options(*inner_);
  drop_gradients();
  hand_over_gradients();
  step_is_open_ = group_.world_size() > 1;
  ++steps_;
  inner_->step();
  drop_gradients();
  // Some optimizers write so that autograd does not notice; others' rows are written so that it does.
  for (std::size_t i = 0; i < parameters_.size(); ++i)
    if (stepped_[i]) parameters_[i].unsafeGetTensorImpl()->bump_version();
  return loss;
}

std::int64_t sharded_optimizer_base::own_elements() const {
  std::int64_t sum = 0;
  for (const auto& rows : rows_) sum += rows.numel();
  return sum;
}

// ---- Giving all ranks the updated parameters ----

/// Parameters of one device after the other; of each, every rank's rows follow each other through as many messages as
/// they need.
std::vector<sharded_optimizer_base::round> sharded_optimizer_base::rounds() const {
  std::vector<at::Device> devices;
  for (const auto& parameter : parameters_)
    if (std::ranges::find(devices, parameter.device()) == devices.end()) devices.push_back(parameter.device());
  std::vector<round> all;
  for (const auto& device : devices) {
    const auto first = all.size();
    for (int rank = 0; rank < group_.world_size(); ++rank) add_rounds(device, rank, first, all);
  }
  return all;
}

void sharded_optimizer_base::add_rounds(at::Device device, int rank, std::size_t at, std::vector<round>& all) const {
  const auto limit = std::max(message_minimum, messages_limit / group_.world_size());
  const auto ranks = static_cast<std::size_t>(group_.world_size());
  const auto me = static_cast<std::size_t>(rank);
  std::int64_t offset = at == 0 ? mark_size : 0;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const auto& parameter = parameters_[i];
    if (!travels_[i] || parameter.device() != device || parameter.numel() == 0) continue;
    const auto row = static_cast<std::int64_t>(parameter.nbytes()) / row_count(parameter);
    const auto at_a_time = std::max<std::int64_t>(1, limit / row);
    const auto end = division_->begin(i, rank + 1);
    for (auto begin = division_->begin(i, rank); begin < end; begin += at_a_time) {
      const auto count = std::min(at_a_time, end - begin);
      const auto size = detail::aligned(count * row);
      if (at < all.size() && !all[at].rows_of_rank[me].empty() && offset + size > limit) {
        ++at;
        offset = 0;
      }
      if (at == all.size()) all.push_back({device, at == 0, 0, std::vector<std::vector<round::rows>>(ranks)});
      all[at].rows_of_rank[me].push_back({i, begin, count, offset});
      offset += size;
      all[at].size = std::max(all[at].size, offset);
    }
  }
}

std::string sharded_optimizer_base::description() const {
  std::string text = type_name() + "\n";
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    text += fmt::format("parameter {}: {} [{}]", i, c10::toString(parameters_[i].scalar_type()),
                        fmt::join(parameters_[i].sizes(), ", "));
    for (int rank = 1; rank < group_.world_size(); ++rank)
      text += fmt::format("{}{}", rank == 1 ? ", cut at rows " : ", ", division_->begin(i, rank));
    text += '\n';
  }
  return text;
}

/// The number of the step, and which parameters it was on.
at::Tensor sharded_optimizer_base::mark_of_step() const {
  std::uint64_t hash = 14695981039346656037U;  // FNV-1a
  for (const bool stepped : stepped_) hash = (hash ^ (stepped ? 2U : 1U)) * 1099511628211U;
  const std::array<std::int64_t, 2> mark{steps_, static_cast<std::int64_t>(hash)};
  static_assert(sizeof mark == mark_size);
  return detail::as_bytes(at::tensor(at::ArrayRef<std::int64_t>(mark)));
}

at::Tensor sharded_optimizer_base::message_of(const round& one) const {
  const c10::AutoGradMode no_grad(false);
  const auto message = at::zeros({one.size}, at::TensorOptions(at::kByte).device(one.device));
  if (one.has_mark) message.narrow(0, 0, mark_size).copy_(mark_of_step());
  for (const auto& [parameter, begin, count, offset] : one.rows_of_rank[static_cast<std::size_t>(group_.rank())]) {
    const auto from = rows_of(parameters_[parameter], begin, count);
    detail::place_in_message(message, offset, from).copy_(from);
  }
  return message;
}

void sharded_optimizer_base::require_same_step(const std::vector<at::Tensor>& messages) const {
  std::vector<at::Tensor> marks;
  for (const auto& message : messages) marks.push_back(message.narrow(0, 0, mark_size));
  const auto all = at::stack(marks).cpu();
  for (std::int64_t rank = 1; rank < all.size(0); ++rank)
    if (!at::equal(all[rank], all[0]))
      throw state_error("",
                        fmt::format("rank {} has stepped on other parameters than rank 0, or another number of times: "
                                    "gradients must be there for the same ones (see data_parallel)",
                                    rank));
}

void sharded_optimizer_base::take_out(const round& one, const std::vector<at::Tensor>& messages) const {
  const c10::AutoGradMode no_grad(false);
  for (std::size_t rank = 0; rank < messages.size(); ++rank) {
    if (static_cast<int>(rank) == group_.rank()) continue;
    for (const auto& [parameter, begin, count, offset] : one.rows_of_rank[rank]) {
      if (!stepped_[parameter]) continue;
      auto to = rows_of(parameters_[parameter], begin, count);
      to.copy_(detail::place_in_message(messages[rank], offset, to));
    }
  }
}

task<> sharded_optimizer_base::compare_divisions() {
  auto mine = description();
  const auto all = co_await group_.all_gather(std::move(mine));
  for (std::size_t rank = 1; rank < all.size(); ++rank) require_same_description(all[0], all[rank], rank);
  division_is_compared_ = true;
}

task<> sharded_optimizer_base::gather() {
  if (!step_is_open_) co_return;
  if (!division_is_compared_) co_await compare_divisions();
  const auto all = rounds();
  for (const auto& one : all) {
    const auto message = message_of(one);
    const auto messages = co_await group_.all_gather(message);
    if (one.has_mark) require_same_step(messages);
    take_out(one, messages);
  }
  step_is_open_ = false;
}

task<> sharded_optimizer_base::step_together() {
  step();
  co_await gather();
}

// ---- State ----

state::dict sharded_optimizer_base::state_dict() const {
  hand_over_options(*inner_);
  return group_.world_size() == 1 ? state::optimizer_state(*inner_) : state::optimizer_state(*inner_, parts_);
}

std::function<void()> sharded_optimizer_base::prepare_load(const state::value& state, state::loading& act) {
  const c10::AutoGradMode no_grad(false);
  follow_parameters();
  hand_over_options(*inner_);
  auto change = state::prepare_optimizer_load(*inner_, parts_, state, act);
  return [this, change = std::move(change)] {
    change();
    take_over_options();
  };
}

std::string sharded_optimizer_base::type_name() const {
  const auto& inner = *inner_;
  return c10::demangle(typeid(inner).name());
}

state::dict sharded_optimizer_base::wanted() const {
  auto present = state_dict();
  if (group_.world_size() == 1) return present;
  const c10::AutoGradMode no_grad(false);
  std::vector<at::Tensor> rows;
  for (const auto& own : rows_) {
    rows.push_back(at::empty(own.sizes(), own.options().device(at::kMeta)));
    rows.back().mutable_grad() = at::empty_like(rows.back());
  }
  const auto shadow = optimizer_of(rows);
  shadow->step();
  auto result = state::optimizer_state(*shadow, parts_);
  auto& states = result["state"].as<state::dict>();
  for (const auto& [number, known] : present.at("state").as<state::dict>()) states.insert_or_assign(number, known);
  return result;
}

void sharded_optimizer_base::save(torch::serialize::OutputArchive&) const {
  throw state_error("",
                    "a sharded optimizer has a part of its state only; save it with snapshots, or "
                    "distributed::consolidate(state::optimizer_state(optimizer), group)");
}

void sharded_optimizer_base::load(torch::serialize::InputArchive&) {
  throw state_error("", "a sharded optimizer loads no archives; use state::load_optimizer_state");
}

}  // namespace rondo::distributed

#include "rondo/extensions/comparer.hpp"

#include <ATen/TensorOperators.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/types.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <condition_variable>
#include <exception>
#include <limits>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "rondo/error.hpp"
#include "rondo/event/events.hpp"
#include "rondo/event/priority.hpp"
#include "rondo/loop/context.hpp"
#include "rondo/loop/extension.hpp"
#include "rondo/state/optimizer.hpp"
#include "rondo/state/random.hpp"

namespace rondo {

namespace {

struct named_value {
  std::string name;
  state::value value;
};
using values = std::vector<named_value>;

// ---- what a training has at one point ----

void flatten(const std::string& name, const state::value& value, values& to) {
  const auto flatten_items = [&](const state::list& items) {
    for (std::size_t i = 0; i < items.size(); ++i) flatten(fmt::format("{}.{}", name, i), items[i], to);
  };
  if (const auto* d = value.get_if<state::dict>()) {
    for (const auto& [key, item] : *d) flatten(name + "." + key.str(), item, to);
  } else if (const auto* l = value.get_if<state::list>()) {
    flatten_items(*l);
  } else if (const auto* t = value.get_if<state::tuple>()) {
    flatten_items(t->items);
  } else {
    to.push_back({name, value});
  }
}

void collect_gradients(const std::string& prefix, const torch::nn::Module& module, values& to) {
  for (const auto& p : module.named_parameters())
    if (p.value().grad().defined()) to.push_back({prefix + p.key(), p.value().grad().detach()});
}

/// In the order in which a training computes them.
values collect(context& ctx, const compare_options& options) {
  values all;
  if (options.buffers)
    for (const auto& m : ctx.models())
      for (const auto& b : m.module->named_buffers()) all.push_back({"models." + m.name + "." + b.key(), b.value()});
  if (options.reports)
    ctx.reported().for_each([&](const std::string& key, const observation& o) {
      all.push_back({"reports." + key, o.value()});
    });
  if (options.gradients)
    for (const auto& m : ctx.models()) collect_gradients("gradients." + m.name + ".", *m.module, all);
  if (options.optimizer_state)
    for (const auto& o : ctx.optimizers()) flatten("optimizers." + o.name, state::optimizer_state(*o.optimizer), all);
  if (options.parameters)
    for (const auto& m : ctx.models())
      for (const auto& p : m.module->named_parameters())
        all.push_back({"models." + m.name + "." + p.key(), p.value().detach()});
  if (options.only) std::erase_if(all, [&](const named_value& one) { return !options.only(one.name); });
  return all;
}

// ---- comparing two values ----

std::string shape(const at::Tensor& t) { return fmt::format("[{}]", fmt::join(t.sizes(), ", ")); }

std::string described(const state::value& value) {
  if (const auto* t = value.get_if<at::Tensor>())
    return t->defined() ? fmt::format("a tensor {} of {}", shape(*t), c10::toString(t->scalar_type())) : "no tensor";
  if (const auto* s = value.get_if<std::string>()) return "'" + *s + "'";
  if (const auto* b = value.get_if<bool>()) return *b ? "true" : "false";
  if (value.is<std::int64_t>() || value.is<double>()) return fmt::format("{}", value.number());
  return "of type " + value.type_name();
}

std::optional<difference> not_alike(const std::string& a, const std::string& b) {
  difference found;
  found.problem = fmt::format("is {} in the first training, {} in the second", a, b);
  return found;
}

std::vector<std::int64_t> unraveled(std::int64_t flat, at::IntArrayRef sizes) {
  std::vector<std::int64_t> index(sizes.size());
  for (std::size_t i = sizes.size(); i-- > 0; flat /= sizes[i]) index[i] = flat % sizes[i];
  return index;
}

/// Which elements are not equal. Both are dense tensors on the CPU of the same shape and dtype.
at::Tensor unequal(const at::Tensor& a, const at::Tensor& b, const compare_options& options) {
  auto differs = a.ne(b);
  if (!a.is_floating_point() && !a.is_complex() && options.rtol == 0.0 && options.atol == 0.0) return differs;
  const auto x = a.to(a.is_complex() ? at::kComplexDouble : at::kDouble);
  const auto y = b.to(x.scalar_type());
  const auto near = (x - y).abs().le(y.abs() * options.rtol + options.atol);
  const auto both_nan = a.ne(a).logical_and(b.ne(b));
  // Of infinities, only the same one is near.
  const auto finite = (x - y).abs().isfinite().logical_and(y.abs().isfinite());
  return differs.logical_and(both_nan.logical_or(near.logical_and(finite)).logical_not());
}

std::optional<difference> compare_tensors(const at::Tensor& one, const at::Tensor& other,
                                          const compare_options& options) {
  if (!one.defined() && !other.defined()) return std::nullopt;
  const bool alike =
      one.defined() && other.defined() && one.sizes() == other.sizes() && one.scalar_type() == other.scalar_type();
  if (!alike) return not_alike(described(one), described(other));
  const torch::NoGradGuard no_grad;
  const auto a = one.detach().cpu().contiguous();
  const auto b = other.detach().cpu().contiguous();
  const auto mask = unequal(a, b, options);
  difference found;
  found.elements = mask.sum().item<std::int64_t>();
  if (found.elements == 0) return std::nullopt;

  const auto distances = a.is_complex() ? (a - b).abs().to(at::kDouble) : (a.to(at::kDouble) - b.to(at::kDouble)).abs();
  const double infinite = std::numeric_limits<double>::infinity();
  const auto ranked =
      at::where(mask, distances.nan_to_num(infinite, infinite, infinite), at::full({}, -1.0, at::kDouble));
  const auto worst = ranked.flatten().argmax().item<std::int64_t>();
  const auto number = [&](const at::Tensor& t) {
    const auto element = t.flatten()[worst];
    return (t.is_complex() ? element.abs() : element).to(at::kDouble).item<double>();
  };
  found.index = unraveled(worst, a.sizes());
  found.max_difference = distances.flatten()[worst].item<double>();
  found.first = number(a);
  found.second = number(b);
  found.problem =
      fmt::format("{} of {} elements differ, at most by {:.6g}: at [{}], {:.17g} and {:.17g}", found.elements,
                  a.numel(), found.max_difference, fmt::join(found.index, ", "), found.first, found.second);
  return found;
}

std::optional<difference> compare_numbers(double a, double b, const compare_options& options) {
  const bool same = a == b || (std::isnan(a) && std::isnan(b));
  const bool near =
      std::isfinite(a) && std::isfinite(b) && std::abs(a - b) <= options.atol + options.rtol * std::abs(b);
  if (same || near) return std::nullopt;
  difference found;
  found.max_difference = std::abs(a - b);
  found.first = a;
  found.second = b;
  found.elements = 1;
  found.problem = fmt::format("{:.17g} and {:.17g} differ by {:.6g}", a, b, found.max_difference);
  return found;
}

std::optional<difference> compare_values(const state::value& a, const state::value& b, const compare_options& options) {
  const auto is_number = [](const state::value& v) { return v.is<std::int64_t>() || v.is<double>(); };
  if (a.is<at::Tensor>() && b.is<at::Tensor>()) return compare_tensors(a.as<at::Tensor>(), b.as<at::Tensor>(), options);
  if (is_number(a) && is_number(b)) return compare_numbers(a.number(), b.number(), options);
  if (state::equal(a, b)) return std::nullopt;
  return not_alike(described(a), described(b));
}

const state::value* find(const values& all, const std::string& name) {
  const auto at = std::find_if(all.begin(), all.end(), [&](const named_value& one) { return one.name == name; });
  return at == all.end() ? nullptr : &at->value;
}

// ---- two trainings that take turns ----

struct point {
  std::int64_t iteration = 0;
  values content;
};

/// Where the two meet. Whoever has the turn runs, the other one waits.
class meeting {
 public:
  explicit meeting(compare_options options)
      : options_(std::move(options)), waiting_generators_(state::random_state()) {}

  void wait_for_turn(int side) {
    std::unique_lock lock(mutex_);
    turn_changed_.wait(lock, [&] { return turn_ == side; });
  }

  /// Called with the turn. False: training is to end.
  [[nodiscard]] bool arrive(int side, point here) {
    const int other = 1 - side;
    {
      const std::lock_guard lock(mutex_);
      mine(side) = std::move(here);
      if (mine(other)) compare_points();
      if (!ended_[index(other)]) pass_turn(side);
    }
    wait_for_turn(side);
    const std::lock_guard lock(mutex_);
    if (mine(side) && ended_[index(other)]) {
      goes_on_alone(side, mine(side)->iteration);
      mine(side).reset();
    }
    return !stopped_;
  }

  void leave(int side, std::int64_t iteration, const std::string& error) {
    const std::lock_guard lock(mutex_);
    ended_[index(side)] = true;
    ends_[index(side)] = iteration;
    (side == 0 ? result_.first_error : result_.second_error) = error;
    if (!error.empty()) stopped_ = true;
    if (!ended_[index(1 - side)]) pass_turn(side);
  }

  [[nodiscard]] comparison result() {
    const bool errors = !result_.first_error.empty() || !result_.second_error.empty();
    if (ends_[0] != ends_[1] && !stopped_ && !errors)
      goes_on_alone(ends_[0] > ends_[1] ? 0 : 1, std::max(ends_[0], ends_[1]));
    return std::move(result_);
  }

  [[nodiscard]] const compare_options& options() const noexcept { return options_; }

 private:
  static std::size_t index(int side) { return static_cast<std::size_t>(side); }
  std::optional<point>& mine(int side) { return points_[index(side)]; }

  /// Each goes on with the random numbers that it would have alone.
  void pass_turn(int side) {
    auto mine = state::random_state();
    state::load_random_state(std::exchange(waiting_generators_, state::value(std::move(mine))));
    turn_ = 1 - side;
    turn_changed_.notify_all();
  }

  void compare_points() {
    const point a = *std::exchange(points_[0], std::nullopt);
    const point b = *std::exchange(points_[1], std::nullopt);
    ++result_.points;
    const auto before = result_.differences.size();
    if (a.iteration != b.iteration)
      add(a.iteration, "iterations", not_alike(fmt::format("{}", a.iteration), fmt::format("{}", b.iteration)));
    for (const auto& one : a.content) {
      const auto* const other = find(b.content, one.name);
      add(a.iteration, one.name,
          other != nullptr ? compare_values(one.value, *other, options_) : not_alike(described(one.value), "missing"));
    }
    for (const auto& one : b.content)
      if (find(a.content, one.name) == nullptr) add(a.iteration, one.name, not_alike("missing", described(one.value)));
    if (result_.differences.size() > before && options_.stop_at_first) stopped_ = true;
  }

  void goes_on_alone(int side, std::int64_t iteration) {
    const bool failed = !(side == 0 ? result_.second_error : result_.first_error).empty();
    if (!failed && !stopped_) {
      difference longer;
      longer.problem =
          fmt::format("the {} training ended after iteration {}, the {} goes on", side == 0 ? "second" : "first",
                      ends_[index(1 - side)], side == 0 ? "first" : "second");
      add(iteration, "iterations", std::move(longer));
    }
    stopped_ = true;
  }

  void add(std::int64_t iteration, const std::string& name, std::optional<difference> found) {
    if (!found) return;
    if (result_.differences.size() >= options_.max_differences) {
      ++result_.differences_left_out;
      return;
    }
    found->iteration = iteration;
    found->name = name;
    result_.differences.push_back(std::move(*found));
  }

  const compare_options options_;
  std::mutex mutex_;
  std::condition_variable turn_changed_;
  int turn_ = 0;
  state::value waiting_generators_;  // of the one that waits
  std::array<std::optional<point>, 2> points_;
  std::array<bool, 2> ended_{};
  std::array<std::int64_t, 2> ends_{};
  bool stopped_ = false;
  comparison result_;
};

/// Below the snapshot, so that nobody changes anything after it.
extension comparer(meeting& where, int side) {
  return make_extension("comparer",
                        [&where, side](context& ctx) {
                          ctx.on<event::iteration_completed>(where.options().trigger, [&where, &ctx, side] {
                            const bool go_on = where.arrive(side, {ctx.iteration(), collect(ctx, where.options())});
                            if (!go_on) ctx.stop("the comparison has ended");
                          });
                        })
      .at_priority(priority::snapshot - 100);
}

void run_side(meeting& where, loop& training, int side) {
  where.wait_for_turn(side);
  std::string error;
  std::int64_t iteration = 0;
  try {
    iteration = training.run().iteration;
  } catch (const std::exception& e) {
    error = e.what();
    if (error.empty()) error = "an exception without a message";
  } catch (...) {
    error = "an exception that is no std::exception";
  }
  where.leave(side, iteration, error);
}

void require_tolerance(const char* option, double value) {
  if (!(value >= 0.0) || !std::isfinite(value))
    throw option_error(option, fmt::format("{}", value), "a finite number that is not negative");
}

}  // namespace

bool comparison::equal() const noexcept { return differences.empty() && first_error.empty() && second_error.empty(); }

std::string comparison::str() const {
  std::string text = fmt::format("compared at {} {}: ", points, points == 1 ? "point" : "points");
  if (equal()) return text + "the trainings are equal";
  text += differences.empty() ? std::string("no difference")
                              : fmt::format("the first difference is after iteration {}, in {}",
                                            differences[0].iteration, differences[0].name);
  if (!first_error.empty()) text += "\nthe first training ended by an error: " + first_error;
  if (!second_error.empty()) text += "\nthe second training ended by an error: " + second_error;
  for (const auto& d : differences) text += fmt::format("\niteration {}: {}: {}", d.iteration, d.name, d.problem);
  if (differences_left_out > 0) text += fmt::format("\nand {} more", differences_left_out);
  return text;
}

comparison compare(loop& first, loop& second, compare_options options) {
  require_tolerance("rtol", options.rtol);
  require_tolerance("atol", options.atol);
  if (options.max_differences < 1) throw option_error("max_differences", "0", "1 or more");
  if (&first == &second) throw option_error("second", "the same loop as the first", "another loop");
  meeting where(std::move(options));
  first.extend(comparer(where, 0));
  second.extend(comparer(where, 1));
  std::thread beside([&] { run_side(where, second, 1); });
  run_side(where, first, 0);
  beside.join();
  return where.result();
}

}  // namespace rondo

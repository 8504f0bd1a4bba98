#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "rondo/event/interval.hpp"
#include "rondo/event/trigger.hpp"
#include "rondo/loop/loop.hpp"

namespace rondo {

struct compare_options {
  /// Two numbers a and b are taken for equal when |a - b| <= atol + rtol * |b|. NaN equals NaN. Not negative; 0 for
  /// bits that are the same (but for the sign of zero).
  double rtol = 0.0;
  double atol = 0.0;
  /// After which iterations they are compared. Each loop asks a copy of its own.
  rondo::trigger trigger = every(iterations{1});
  // What is compared.
  bool buffers = true;
  bool reports = true;  ///< what the iteration has reported
  bool gradients = true;
  bool optimizer_state = true;  ///< with the settings of its groups, such as the learning rate
  bool parameters = true;
  /// Only values for whose names it says true; see `difference::name`. Default: all.
  std::function<bool(const std::string& name)> only = {};
  /// Whether both trainings end at the first iteration at which they differ.
  bool stop_at_first = true;
  /// So many differences are kept; the others are counted. At least 1.
  std::size_t max_differences = 100;
};

/// Something that is not the same in two trainings.
struct difference {
  std::int64_t iteration = 0;  ///< iterations done
  /// "models.main.0.weight" (parameters and buffers), "gradients.main.0.weight", "reports.train/loss",
  /// "optimizers.main.state.0.exp_avg"; "iterations" when one training is longer than the other.
  std::string name;
  std::string problem;              ///< for people: what differs, and how much
  double max_difference = 0.0;      ///< the largest |a - b| among the elements that differ; NaN where one is NaN
  std::vector<std::int64_t> index;  ///< of that element; empty for what is no tensor
  double first = 0.0;               ///< the element in the first training
  double second = 0.0;              ///< and in the second
  std::int64_t elements = 0;        ///< how many elements differ
};

/// What has become of two trainings that were compared.
struct comparison {
  std::int64_t points = 0;  ///< how often they were compared
  /// In the order of iterations, within one in the order in which a training computes: buffers, reports, gradients,
  /// optimizer state, parameters.
  std::vector<difference> differences;
  std::int64_t differences_left_out = 0;
  std::string first_error;   ///< what has ended the first training, if it was an exception
  std::string second_error;  ///< the second

  /// Whether both have ended without an error and nothing differs.
  [[nodiscard]] bool equal() const noexcept;
  /// For people, of one or more lines.
  [[nodiscard]] std::string str() const;
};

/// Runs two trainings side by side, and finds the first iteration and the first tensor in which they differ: for a port
/// from somewhere else, another device, another version of a kernel, a resumed run beside an unbroken one.
///
///     auto result = compare(on_cpu, on_gpu, {.rtol = 1e-4, .atol = 1e-6});
///     if (!result.equal()) std::cout << result.str();
///
/// Each has a thread of its own, and only one of them runs at a time: the first up to the point at which they are
/// compared, then the second. Both see LibTorch's default generators as if they were alone, from the state in which
/// these are now. Values on other devices are copied to the CPU. The loops must not share models, optimizers or the
/// directory `out`.
///
/// Exceptions that end one of them are in the result, and end the other at its next point; a training that is longer
/// than the other one ends there as well. Both loops have run afterwards. Throws `option_error` for the options.
[[nodiscard]] comparison compare(loop& first, loop& second, compare_options options = {});

}  // namespace rondo

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "rondo/loop/loop.hpp"

namespace rondo {

struct lr_finder_options {
  /// The learning rate of the first iteration. Positive.
  double start_lr = 1e-7;
  /// The learning rate of the last iteration. Above `start_lr`.
  double end_lr = 10.0;
  /// How many iterations there are between them. At least 3.
  std::int64_t iterations = 100;
  /// Whether each learning rate is a multiple of the one before, or else larger by a constant.
  bool exponential = true;
  /// The weight of the past in the smoothed loss: 0 does not smooth. Below 1.
  double smoothing = 0.98;
  /// Ends the test when the smoothed loss is above this many times the lowest one before it; of losses below 0: when
  /// it is above it by `stop_factor - 1` times its amount. Above 1. Empty: goes on to the end.
  std::optional<double> stop_factor = 4.0;
  /// Points at the beginning and at the end of the curve that the suggestion does not look at. At least 0.
  std::int64_t skip_begin = 10;
  std::int64_t skip_end = 1;
  /// The observation that is the loss.
  std::string key = "train/loss";
  /// Name of a file in the loop's `out` directory that gets the curve, an object of JSON per line. Empty: none.
  std::string filename = {};
};

/// What a learning-rate range test has seen.
struct lr_curve {
  struct point {
    double lr;        ///< that the first group of parameters was trained with in this iteration
    double loss;      ///< that was reported
    double smoothed;  ///< mean of this loss and those before, which count less the older they are
  };
  std::vector<point> points;
  /// Where the smoothed loss falls most steeply over the logarithm of the learning rate (over the learning rate itself
  /// if not `exponential`). Empty when it falls nowhere, or there are too few points to tell.
  std::optional<double> suggestion;
  /// The learning rate of the lowest smoothed loss; a tenth of it is another usual choice. Empty without points.
  std::optional<double> minimum;
  /// Whether the loss has grown so much, or has become NaN or infinite, that the test ended before `end_lr`.
  bool diverged = false;
};

/// Finds a learning rate by trying: trains for a hundred iterations with one that grows from `start_lr` to `end_lr`,
/// and looks where the loss falls most steeply (learning-rate range test: L. N. Smith, "Cyclical Learning Rates for
/// Training Neural Networks", WACV 2017).
///
///     const auto make = [&] { return loop(model, optimizer, batches, loss, {.max_epochs = 10}); };
///     const auto found = find_lr(make());
///
/// `l` is used up by that. Its own goals hold as well, so they should allow the iterations; extensions that it has
/// are at work too, and should not be those that set learning rates. All its optimizers are tested; groups of
/// parameters keep the ratio of their learning rates to that of their optimizer's first group.
///
/// Afterwards, also when it throws, models (parameters and buffers), optimizers (learning rates and state), gradients
/// and LibTorch's random generators are what they were, to the bit; models, optimizers and data that the step uses
/// without the loop's knowing are not. Training happens in the loop's optimizer, which therefore must be one whose
/// state Rondo knows.
///
/// With several ranks, the loss is the mean over all of them, and the result the same on each; rank 0 writes the file.
///
/// Throws `option_error` at once for options that make no sense, and when `l` has no optimizer; `observation_error`
/// when nobody reports the loss; what the training throws; `io_error` for the file.
[[nodiscard]] lr_curve find_lr(loop l, lr_finder_options options = {});

/// Gives every group of parameters of `optimizer` this learning rate times the ratio of its present one to that of
/// the first group: what a suggestion is for. Throws `option_error` when `lr` is not a positive number.
void set_learning_rate(torch::optim::Optimizer& optimizer, double lr);

}  // namespace rondo

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "rondo/extensions/metrics/additive.hpp"
#include "rondo/extensions/metrics/metric.hpp"

/// Outputs of what is here are [n, classes] with targets [n], or [n, classes, …] with targets [n, …]; or, for two
/// classes, scores of the second one, of the targets' shape. Targets are indices of classes. Others are an `error`.
namespace rondo::metrics {

/// The fraction of samples whose target is among the `k` classes with the greatest outputs, "top5_accuracy". Ties are
/// decided by the order in which the device finds them.
class top_k_accuracy : public additive {
 public:
  /// `k` is at least 1.
  explicit top_k_accuracy(std::int64_t k);

  [[nodiscard]] std::string name() const;
  /// Throws `error` when there are fewer than k classes.
  void update(const at::Tensor& output, const at::Tensor& target);
  /// NaN when there was nothing to answer.
  [[nodiscard]] double compute() const;

 private:
  std::int64_t k_;
};

namespace detail {

/// Counts of [target, answer], from which precision and the like follow.
class answers : public additive {
 public:
  answers(std::string metric, double threshold) : metric_(std::move(metric)), threshold_(threshold) {}
  void update(const at::Tensor& output, const at::Tensor& target);
  /// Int64 [classes, classes] on the CPU; undefined when nothing was counted.
  [[nodiscard]] at::Tensor matrix() const { return sums(); }

 private:
  std::string metric_;
  double threshold_;
};

}  // namespace detail

/// How often samples of each class get each answer. Copies share the matrix, so that it can be read after an
/// evaluation: `metrics::confusion_matrix confusion; loop | evaluator(test, confusion);` … `confusion.matrix()`.
///
/// Reported are "confusion/T/A", the samples of class T that were taken for A, if there are at most `reported_classes`
/// classes.
class confusion_matrix {
 public:
  static constexpr std::int64_t reported_classes = 5;

  /// Scores of two classes: those above `threshold` are taken for the second one.
  explicit confusion_matrix(double threshold = 0.5);

  void reset() { counts_->reset(); }
  void update(const at::Tensor& output, const at::Tensor& target) { counts_->update(output, target); }
  [[nodiscard]] std::map<std::string, double> compute() const;
  [[nodiscard]] std::string pack() const { return counts_->pack(); }
  void merge(const std::vector<std::string>& parts) { counts_->merge(parts); }

  /// Int64 [classes, classes]: rows are targets, columns answers. On the CPU; undefined before the first batch.
  [[nodiscard]] at::Tensor matrix() const { return counts_->matrix(); }

 private:
  std::shared_ptr<detail::answers> counts_;
};

/// How the values of classes become one number.
enum class averaging {
  binary,    ///< the value of class `positive` alone
  macro,     ///< the mean over classes that occur among targets or answers
  weighted,  ///< the same, weighted by how many samples of a class there are
  micro,     ///< of the counts of all classes together
};

struct class_score_options {
  averaging average = averaging::binary;
  /// The class that counts with `averaging::binary`. At least 0.
  std::int64_t positive = 1;
  /// Scores of two classes: those above it are taken for the second one.
  double threshold = 0.5;
  /// The value of a class for which there is nothing to divide by.
  double zero_division = 0.0;
  /// Under which it is reported. Default (empty): "precision", "recall" or "f1".
  std::string name = {};
};

/// A number that follows from what is right and wrong of each class. NaN when there was no sample.
class class_score {
 public:
  [[nodiscard]] const std::string& name() const noexcept { return options_.name; }
  void reset() { counts_.reset(); }
  void update(const at::Tensor& output, const at::Tensor& target) { counts_.update(output, target); }
  /// Throws `error` when there is no class `positive`.
  [[nodiscard]] double compute() const;
  [[nodiscard]] std::string pack() const { return counts_.pack(); }
  void merge(const std::vector<std::string>& parts) { counts_.merge(parts); }

 protected:
  enum class kind { precision, recall, f1 };
  class_score(kind which, const char* usual_name, class_score_options options);
  ~class_score() = default;
  class_score(const class_score&) = default;
  class_score(class_score&&) = default;

 private:
  kind kind_;
  class_score_options options_;
  detail::answers counts_;
};

/// Of what was taken for a class, the fraction that is of it.
class precision final : public class_score {
 public:
  explicit precision(class_score_options options = {})
      : class_score(kind::precision, "precision", std::move(options)) {}
};
/// Of what is of a class, the fraction that was taken for it.
class recall final : public class_score {
 public:
  explicit recall(class_score_options options = {}) : class_score(kind::recall, "recall", std::move(options)) {}
};
/// The harmonic mean of precision and recall of a class, and their average as of the others.
class f1 final : public class_score {
 public:
  explicit f1(class_score_options options = {}) : class_score(kind::f1, "f1", std::move(options)) {}
};

}  // namespace rondo::metrics

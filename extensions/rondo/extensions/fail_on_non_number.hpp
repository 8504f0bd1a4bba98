#pragma once

#include <cstdint>
#include <string>

#include "rondo/error.hpp"
#include "rondo/loop/extension.hpp"

namespace rondo {

/// A parameter or a gradient has become NaN or infinite.
class non_number_error : public error {
 public:
  non_number_error(std::string model, std::string parameter, bool is_gradient, const std::string& what)
      : error(what), model_(std::move(model)), parameter_(std::move(parameter)), is_gradient_(is_gradient) {}

  [[nodiscard]] const std::string& model() const noexcept { return model_; }
  [[nodiscard]] const std::string& parameter() const noexcept { return parameter_; }
  [[nodiscard]] bool is_gradient() const noexcept { return is_gradient_; }

 private:
  std::string model_;
  std::string parameter_;
  bool is_gradient_;
};

struct fail_on_non_number_options {
  /// Whether gradients are looked at, too (ppe: check_grad). They tell one iteration earlier, and nearer to the cause.
  /// They never are where the loop skips updates with such gradients (`scaler`, `on_non_finite_gradients`).
  bool check_gradients = true;
};

/// Ends training with a `non_number_error` that names the first parameter, or gradient, with a NaN or an infinity, when
/// one has it after an iteration in which the extension's trigger fires. Each look waits for the device once, however
/// many parameters there are.
///
/// `snapshot({.snapshot_on_error = true})` beside it keeps the bad state in a file of its own for debugging; the
/// regular snapshots stay good, because this comes before them.
///
/// Default trigger: every iteration. Name "fail_on_non_number", priority `reader`, no state.
[[nodiscard]] extension fail_on_non_number(fail_on_non_number_options options = {});

}  // namespace rondo

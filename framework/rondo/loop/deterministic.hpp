#pragma once

#include <c10/core/Device.h>

namespace rondo::detail {

/// While it lives, LibTorch computes in ways that give the same bits every time, or refuses to compute: what
/// `loop_options::deterministic` means. The settings are those of the whole process (`at::globalContext()`): operations
/// without a deterministic way throw `c10::Error`, which names them, cuDNN takes deterministic algorithms only and does
/// not try out which is fastest. When it goes, they are what they were. So scopes must end in the opposite order of
/// their beginnings, as those of loops that run one inside the other do; two loops that train in two threads at the
/// same time must agree on the setting.
class deterministic_scope {
 public:
  /// `device` is where training computes. Throws `option_error` for a CUDA device when cuBLAS has not been told to be
  /// deterministic: that takes CUBLAS_WORKSPACE_CONFIG=:4096:8 or =:16:8 in the environment, before the program starts.
  explicit deterministic_scope(c10::Device device);
  ~deterministic_scope();
  deterministic_scope(const deterministic_scope&) = delete;
  deterministic_scope& operator=(const deterministic_scope&) = delete;

 private:
  bool algorithms_;
  bool warn_only_;
  bool cudnn_;
  bool benchmark_;
};

}  // namespace rondo::detail

#include "rondo/loop/deterministic.hpp"

#include <ATen/Context.h>

#include <cstdlib>
#include <string>
#include <string_view>

#include "rondo/error.hpp"

namespace rondo::detail {

namespace {

// LibTorch asks for it only when an operation is about to use cuBLAS, in the middle of training.
void require_deterministic_cublas() {
  const char* found = std::getenv("CUBLAS_WORKSPACE_CONFIG");
  const std::string_view setting = found != nullptr ? found : "";
  if (setting == ":4096:8" || setting == ":16:8") return;
  throw option_error(
      "deterministic",
      found != nullptr ? "CUBLAS_WORKSPACE_CONFIG=" + std::string(setting) : "no CUBLAS_WORKSPACE_CONFIG",
      "CUBLAS_WORKSPACE_CONFIG=:4096:8 or CUBLAS_WORKSPACE_CONFIG=:16:8 in the environment of the program, "
      "without which cuBLAS is not deterministic");
}

}  // namespace

deterministic_scope::deterministic_scope(c10::Device device)
    : algorithms_(at::globalContext().deterministicAlgorithms()),
      warn_only_(at::globalContext().deterministicAlgorithmsWarnOnly()),
      cudnn_(at::globalContext().deterministicCuDNN()),
      benchmark_(at::globalContext().benchmarkCuDNN()) {
  if (device.is_cuda()) require_deterministic_cublas();
  at::globalContext().setDeterministicAlgorithms(true, false);
  at::globalContext().setDeterministicCuDNN(true);
  at::globalContext().setBenchmarkCuDNN(false);
}

deterministic_scope::~deterministic_scope() {
  at::globalContext().setDeterministicAlgorithms(algorithms_, warn_only_);
  at::globalContext().setDeterministicCuDNN(cudnn_);
  at::globalContext().setBenchmarkCuDNN(benchmark_);
}

}  // namespace rondo::detail

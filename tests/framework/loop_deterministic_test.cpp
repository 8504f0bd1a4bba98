#include "rondo/loop/deterministic.hpp"

#include <ATen/Context.h>
#include <stdlib.h>
#include <torch/types.h>

#include <array>
#include <optional>
#include <string>

#include "rondo/error.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"

namespace loop_deterministic_test {

using namespace rondo;
using namespace rondo::testing;
using rondo::detail::deterministic_scope;

namespace {

/// Deterministic algorithms, only warnings, deterministic cuDNN, benchmarks of cuDNN.
using settings = std::array<bool, 4>;

settings present() {
  const auto& context = at::globalContext();
  return {context.deterministicAlgorithms(), context.deterministicAlgorithmsWarnOnly(), context.deterministicCuDNN(),
          context.benchmarkCuDNN()};
}

void put(const settings& s) {
  at::globalContext().setDeterministicAlgorithms(s[0], s[1]);
  at::globalContext().setDeterministicCuDNN(s[2]);
  at::globalContext().setBenchmarkCuDNN(s[3]);
}

/// Puts the settings back at the end of a test.
struct kept_settings {
  settings before = present();
  ~kept_settings() { put(before); }
};

/// CUBLAS_WORKSPACE_CONFIG for the time of a test.
class workspace_config {
 public:
  explicit workspace_config(const char* value) {
    if (const char* found = ::getenv(name)) before_ = found;
    set(value);
  }
  workspace_config(const workspace_config&) = delete;
  workspace_config& operator=(const workspace_config&) = delete;
  ~workspace_config() { set(before_ ? before_->c_str() : nullptr); }

 private:
  static constexpr const char* name = "CUBLAS_WORKSPACE_CONFIG";
  static void set(const char* value) { value != nullptr ? ::setenv(name, value, 1) : ::unsetenv(name); }
  std::optional<std::string> before_;
};

/// Where an index is there twice, the result depends on which write comes last.
void put_at_random() { torch::zeros({4}).put_(torch::tensor({1, 1}), torch::tensor({2.0F, 3.0F})); }

}  // namespace

TEST_CASE("inside the scope what is not deterministic is refused, and afterwards allowed again",
          "[loop][deterministic]") {
  const kept_settings kept;
  put({false, false, false, true});
  CHECK_NOTHROW(put_at_random());
  {
    const deterministic_scope scope(c10::kCPU);
    CHECK(present() == settings{true, false, true, false});
    CHECK(contains(message_of<c10::Error>(put_at_random), "put_"));
  }
  CHECK(present() == settings{false, false, false, true});
  CHECK_NOTHROW(put_at_random());
}

TEST_CASE("the scope leaves every setting as it was", "[loop][deterministic]") {
  const kept_settings kept;
  for (int bits = 0; bits < 16; ++bits) {
    const settings before = {(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0};
    put(before);
    {
      const deterministic_scope outer(c10::kCPU);
      const deterministic_scope inner(c10::kCPU);
      CHECK(present() == settings{true, false, true, false});
    }
    CHECK(present() == before);
  }
}

TEST_CASE("on a CUDA device cuBLAS must have been told before", "[loop][deterministic]") {
  const kept_settings kept;
  const auto before = present();
  const auto begin = [] { const deterministic_scope scope(c10::Device(c10::kCUDA, 0)); };
  for (const char* good : {":4096:8", ":16:8"}) {
    const workspace_config config(good);
    CHECK_NOTHROW(begin());
  }
  for (const char* bad : {"", ":4096:2", ":16:8 "}) {
    const workspace_config config(bad);
    const auto message = message_of<option_error>(begin);
    CHECK(contains(message, "CUBLAS_WORKSPACE_CONFIG=" + std::string(bad)));
    CHECK(contains(message, ":4096:8"));
  }
  const workspace_config config(nullptr);
  CHECK(contains(message_of<option_error>(begin), "no CUBLAS_WORKSPACE_CONFIG"));
  CHECK_NOTHROW(deterministic_scope(c10::kCPU));
  CHECK(present() == before);
}

}  // namespace loop_deterministic_test

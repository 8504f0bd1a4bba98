#include "rondo/state/environment.hpp"

#include <ATen/Context.h>
#include <ATen/Parallel.h>

#include <string>
#include <vector>

#include "rondo/error.hpp"
#include "support/catch.hpp"
#include "support/python.hpp"

namespace state_environment_test {

using namespace rondo;
using words = std::vector<std::string>;

namespace {

/// The number of LibTorch's threads for the time of a test.
class thread_count {
 public:
  explicit thread_count(int threads) : before_(at::get_num_threads()) { at::set_num_threads(threads); }
  thread_count(const thread_count&) = delete;
  thread_count& operator=(const thread_count&) = delete;
  ~thread_count() { at::set_num_threads(before_); }

 private:
  int before_;
};

}  // namespace

TEST_CASE("an environment does not differ from itself", "[state][environment]") {
  CHECK(state::environment_differences(state::environment_state()).empty());
  const c10::Device cuda(c10::kCUDA, 1);
  CHECK(state::environment_differences(state::environment_state(cuda), cuda).empty());
}

TEST_CASE("every difference is said in words", "[state][environment]") {
  auto stored = state::environment_state();
  SECTION("threads") {
    const thread_count three(3);
    stored = state::environment_state();
    const thread_count two(2);
    CHECK(state::environment_differences(stored) == words{"3 threads then, 2 threads now"});
  }
  SECTION("LibTorch") {
    const auto present = stored.at("libtorch").as<std::string>();
    stored["libtorch"] = "1.2.3";
    CHECK(state::environment_differences(stored) == words{"LibTorch 1.2.3 then, LibTorch " + present + " now"});
  }
  SECTION("the device") {
    CHECK(state::environment_differences(stored, c10::Device(c10::kCUDA, 0)) ==
          words{"device cpu then, device cuda now"});
    stored = state::environment_state(c10::Device(c10::kCUDA, 0));
    CHECK(state::environment_differences(stored, c10::Device(c10::kCUDA, 3)).empty());
  }
  SECTION("instructions, and two things at once") {
    stored["cpu"] = "AVX1024";
    stored["deterministic"] = true;
    const auto all = state::environment_differences(stored);
    REQUIRE(all.size() == 2);
    CHECK(all[0].starts_with("CPU instructions AVX1024 then, CPU instructions "));
    CHECK(all[1] == "deterministic algorithms only then, any algorithms now");
  }
}

TEST_CASE("what only one side knows, or knows as something else, is no difference", "[state][environment]") {
  CHECK(state::environment_differences(state::dict{}).empty());
  CHECK(state::environment_differences(state::dict{{"threads", "many"}, {"moon", "full"}}).empty());
  CHECK_THROWS_AS(state::environment_differences(7), state_error);
}

TEST_CASE("the instructions are those that Python's torch names", "[state][environment][python]") {
  const auto ours = state::environment_state().at("cpu").as<std::string>();
  const auto python = rondo::testing::run_python("import torch; print(torch.__config__.show())");
  INFO(python.output);
  REQUIRE(python.status == 0);
  CHECK_FALSE(ours.empty());
  CHECK(python.output.find("CPU capability usage: " + ours + "\n") != std::string::npos);
}

}  // namespace state_environment_test

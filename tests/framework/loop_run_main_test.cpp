#include "rondo/loop/run_main.hpp"

#include <c10/util/Exception.h>

#include <csignal>
#include <stdexcept>

#include "rondo/error.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"

namespace loop_run_main_test {

using namespace rondo;
using rondo::testing::captured_stderr;

TEST_CASE("run_main gives the exit status", "[loop][run_main]") {
  CHECK(run_main([] {}) == 0);
  CHECK(run_main([] { return 7; }) == 7);
  CHECK(run_main([] { return run_result(); }) == 0);
  CHECK(run_main([] {
          run_result ended;
          ended.signal = SIGTERM;
          return ended;
        }) == 143);
}

TEST_CASE("run_main makes an exception a line", "[loop][run_main]") {
  const captured_stderr said;
  SECTION("of Rondo") {
    CHECK(run_main([] { throw option_error("max_epochs", "0", "1 or more"); }) == 1);
    CHECK(said.text() == "error: option 'max_epochs' = 0: allowed is 1 or more\n");
  }
  SECTION("of LibTorch, without the backtrace") {
    CHECK(run_main([]() -> int { TORCH_CHECK(false, "sizes differ"); }) == 1);
    CHECK(said.text() == "error: sizes differ\n");
  }
  SECTION("nested") {
    CHECK(run_main([] {
            try {
              throw std::runtime_error("the disk is full");
            } catch (...) {
              std::throw_with_nested(std::runtime_error("nothing was saved"));
            }
          }) == 1);
    CHECK(said.text() == "error: nothing was saved\nerror: the disk is full\n");
  }
  SECTION("of any type") {
    CHECK(run_main([] { throw 3; }) == 1);
    CHECK(said.text() == "error: an exception of unknown type\n");
  }
}

}  // namespace loop_run_main_test

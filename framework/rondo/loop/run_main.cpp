#include "rondo/loop/run_main.hpp"

#include <c10/util/Exception.h>

#include <cstdio>

namespace rondo::detail {

namespace {

void tell(const char* what) noexcept { std::fprintf(stderr, "error: %s\n", what); }

void tell(const std::exception_ptr& error) noexcept {
  try {
    std::rethrow_exception(error);
  } catch (const c10::Error& e) {
    tell(e.what_without_backtrace());
  } catch (const std::exception& e) {
    tell(e.what());
    const auto* const outer = dynamic_cast<const std::nested_exception*>(&e);
    if (outer != nullptr && outer->nested_ptr()) tell(outer->nested_ptr());
  } catch (...) {
    tell("an exception of unknown type");
  }
}

}  // namespace

int report_failure(const std::exception_ptr& error) noexcept {
  tell(error);
  return 1;
}

}  // namespace rondo::detail
